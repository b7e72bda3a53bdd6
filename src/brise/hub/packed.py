"""The folder of packed weights: what models become in memory, kept so that the next start maps it instead of packing.

ROOT/packed/KEY.weights   one model; KEY is a digest of all that decides the bytes

magic "brisepk1"; length of the header as 8 bytes, little endian; SHA-256 of the header; the header, JSON:
    key        KEY again
    sources    path, size, times and inode of each file that the weights were read from
    size       of the whole file
    parts      [path, format, rows, columns, offset, checksum] of each matrix and vector
then the parts, each from a multiple of 4096 bytes on, and 4096 bytes behind the last one.

Nothing here is needed: a file that is not whole, or not of the model as it is now, is packed anew. So they are written
without waiting for the disk, and the least recently used are deleted where all of them together become too many bytes.
A file is never changed once it has its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from brise.errors import OutputError, UnsupportedError
from brise.files.atomic import private_folder, remove_left_parts, staged_file
from brise.files.digests import text_digest
from brise.files.mapped import SourceFile
from brise.files.sizes import parse_size
from brise.models.packing import PackedPart, PackedSpan
from brise.models.weights import Array
from brise.settings import Settings

MOST_BYTES = 20_000_000_000  # unless BRISE_PACKED_CACHE says otherwise: a few models of the usual sizes
LEAST_BYTES = 16_000_000  # of a model: a smaller one is packed in some hundredths of a second
LEAST_FREE, FREE_SHARE = 1_000_000_000, 20  # what stays free on the disk: so much, and a twentieth of it
PAGE = 4096
_MAGIC = b"brisepk1"
_HEAD = struct.Struct("<8sQ32s")
_MAX_HEADER = 1 << 24
_NAME = re.compile(r"[0-9a-f]{64}\.weights")
_PIECE = 4 << 20  # bytes that are written at a time


@dataclass(frozen=True)
class PackedHeader:
    """What a file says of itself."""

    key: str
    sources: tuple[SourceFile, ...]
    spans: tuple[PackedSpan, ...]


@dataclass(frozen=True)
class PackedFile:
    """One file of the folder. `problem` says why it is of no use: its model is gone, or it is not whole."""

    path: Path
    nbytes: int
    used_ns: int
    sources: tuple[str, ...]
    problem: str = ""


class StoppedError(Exception):
    """The writing was to stop."""


@dataclass(frozen=True)
class PackedFolder:
    """The packed weights under `folder`, of at most `most_bytes` together. Several processes may use it at one time."""

    folder: Path
    most_bytes: int = MOST_BYTES
    least_bytes: int = LEAST_BYTES  # of a model that is kept

    @classmethod
    def in_home(cls, home: Path) -> PackedFolder:
        """The folder of a BRISE_HOME, to look at and to prune."""
        return cls(home / "packed")

    @classmethod
    def of(cls, settings: Settings) -> PackedFolder | None:
        """The folder in BRISE_HOME; None where the user wants none."""
        text = settings.packed_cache
        if text is not None and text.strip().lower() in ("no", "0", "off", "false"):
            return None
        try:
            most_bytes = MOST_BYTES if text is None else parse_size(text)
        except ValueError as error:
            raise UnsupportedError(f"BRISE_PACKED_CACHE is {error}, or `no`") from None
        return cls(settings.home / "packed", most_bytes)

    def path(self, identity: str) -> Path:
        """The file for weights of this identity."""
        return self.folder / f"{text_digest(identity)}.weights"

    def open(self, identity: str) -> tuple[int, PackedHeader] | None:
        """A descriptor of the file and its header, and the file becomes the most recently used; None if there is none
        that is whole and was written by this user or root. The bytes of the parts are not read."""
        try:
            descriptor = os.open(self.path(identity), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            header = _header(descriptor)
            if header.key != text_digest(identity):
                raise ValueError("it is of another model")
        except (OSError, ValueError):
            os.close(descriptor)
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(descriptor)
        return descriptor, header

    def write(self, identity: str, sources: Sequence[SourceFile], parts: Sequence[tuple[PackedPart, Array]],
              checksum: Callable[[Array], int], is_stopped: Callable[[], bool] = lambda: False) -> str:
        """Writes the file, and deletes those that were not used for the longest time as far as its room is needed.
        Says why it did not: no room, no right, another process is at it, or `is_stopped` became true."""
        key = text_digest(identity)
        spans, size = _layout(key, sources, parts)
        try:
            private_folder(self.folder)
            remove_left_parts(self.folder, _NAME)
            reason = self._make_room(size, self.path(identity))
            if reason:
                return reason
            spans = [replace(span, checksum=0 if is_stopped() else checksum(data))
                     for span, (_, data) in zip(spans, parts, strict=True)]
            with staged_file(self.path(identity), size, mode=0o400, replaces=True, syncs=False) as file:
                file.write(_header_bytes(key, sources, spans, size))
                for span, (_, data) in zip(spans, parts, strict=True):
                    file.write(bytes(span.offset - file.tell()))
                    for first in range(0, len(data), _PIECE):
                        if is_stopped():
                            raise StoppedError
                        file.write(memoryview(data[first:first + _PIECE]))
                file.write(bytes(size - file.tell()))
        except StoppedError:
            return "it was stopped"
        except OutputError as error:
            return str(error)
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        return ""

    def files(self) -> list[PackedFile]:
        """All files, the least recently used first."""
        found = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _NAME.fullmatch(path.name):
                    with suppress(FileNotFoundError):  # deleted just now
                        found.append(_examined(path))
        return sorted(found, key=lambda file: file.used_ns)

    def prune(self, *, everything: bool = False) -> tuple[list[PackedFile], list[PackedFile]]:
        """Deletes the files whose model is gone or changed, or all; those that were deleted, and those that remain.

        Whoever has one mapped keeps it. OSError if one may not be deleted.
        """
        files = self.files()
        gone = [file for file in files if everything or file.problem]
        if files:
            remove_left_parts(self.folder, _NAME)
        for file in gone:
            file.path.unlink(missing_ok=True)
        return gone, [file for file in files if file not in gone]

    def _make_room(self, size: int, path: Path) -> str:
        """Deletes files so that one more of this size may be there; says why it may not."""
        if size > self.most_bytes:
            return f"it has {size} bytes, and BRISE_PACKED_CACHE allows {self.most_bytes}"
        files = [file for file in self.files() if file.path != path]
        disk = shutil.disk_usage(self.folder)
        free, total = disk.free, sum(file.nbytes for file in files)
        least_free = max(LEAST_FREE, disk.total // FREE_SHARE)
        if free + total - size < least_free:
            return f"it has {size} bytes, and the disk has {free} free, of which {least_free} are left alone"
        for file in sorted(files, key=lambda file: not file.problem):  # the least recently used of each kind first
            if total + size <= self.most_bytes and free - size >= least_free and not file.problem:
                break
            file.path.unlink(missing_ok=True)
            total, free = total - file.nbytes, free + file.nbytes
        return ""


def _layout(key: str, sources: Sequence[SourceFile], parts: Sequence[tuple[PackedPart, Array]],
            ) -> tuple[list[PackedSpan], int]:
    """Where each part goes, still without checksums, and the size of the file."""
    # The header has room for the longest numbers, because offsets depend on its length.
    longest = 1 << 64
    at = _round(len(_header_bytes(key, sources, [PackedSpan(part, longest, longest) for part, _ in parts], longest)))
    spans = []
    for part, data in parts:
        spans.append(PackedSpan(part, at, 0))
        at = _round(at + len(data))
    return spans, at + PAGE


def _round(number: int) -> int:
    return -(-number // PAGE) * PAGE


def _header_bytes(key: str, sources: Sequence[SourceFile], spans: Sequence[PackedSpan], size: int) -> bytes:
    header = json.dumps({"key": key, "sources": [astuple(source) for source in sources], "size": size,
                         "parts": [(*astuple(span.part), span.offset, span.checksum) for span in spans]}).encode()
    return _HEAD.pack(_MAGIC, len(header), hashlib.sha256(header).digest()) + header


def _header(descriptor: int) -> PackedHeader:
    """The header of a file that this user or root wrote and nobody else may change; ValueError says what is wrong."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise ValueError("others may have written it")
    head = os.pread(descriptor, _HEAD.size, 0)
    if len(head) < _HEAD.size:
        raise ValueError("it is cut short")
    magic, size, digest = _HEAD.unpack(head)
    if magic != _MAGIC or size > _MAX_HEADER:
        raise ValueError("it has no header of packed weights")
    text = os.pread(descriptor, size, _HEAD.size)
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("its header was changed")
    try:
        fields = json.loads(text)
        spans = tuple(PackedSpan(PackedPart(path, format, rows, cols), offset, checksum)
                      for path, format, rows, cols, offset, checksum in fields["parts"])
        header = PackedHeader(fields["key"], tuple(SourceFile(*source) for source in fields["sources"]), spans)
        size = fields["size"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header is of another form: {error!r}") from None
    if size != found.st_size:
        raise ValueError(f"it has {found.st_size} bytes, and {size} were written")
    return header


def _examined(path: Path) -> PackedFile:
    """A file of the folder, by its header."""
    found = path.lstat()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            header = _header(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        return PackedFile(path, found.st_size, found.st_mtime_ns, (), str(error))
    sources = tuple(source.path for source in header.sources)
    changed = [source.path for source in header.sources if not source.is_current]
    return PackedFile(path, found.st_size, found.st_mtime_ns, sources,
                      f"{changed[0]} is gone or was changed" if changed else "")
