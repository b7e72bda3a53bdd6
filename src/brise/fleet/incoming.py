"""Files on their way to a device: their room is reserved first, they go on where they stopped, and nobody reads them
before their digest is right.

    FOLDER/HEX       a file of its full length, by the SHA-256 that it is to have
    FOLDER/HEX.at    how many bytes of it have come
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from brise.errors import FleetError
from brise.files.atomic import output_errors, private_folder, sync
from brise.files.digests import CHUNK_BYTES
from brise.fleet.refusals import NoRoomError, SourceError, TooLongError, UntrustedError, WrongDigestError
from brise.fleet.sources import Source

MARGIN_BYTES = 16 << 20  # of the disk that downloads leave free
_STEP_BYTES = 4 << 20  # how much is fetched again, at most, after the process was killed


@dataclass(frozen=True)
class Incoming:
    """The folder of one device's downloads."""

    folder: Path

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Takes the disk's room for files of these SHA-256 and lengths; NoRoomError takes none."""
        new = {sha256: nbytes for sha256, nbytes in sizes.items() if not self._is_reserved(sha256, nbytes)}
        if not new:
            return
        with output_errors(self.folder):
            private_folder(self.folder)
            disk = os.statvfs(self.folder)
        free, needed = disk.f_bavail * disk.f_frsize, sum(new.values()) + MARGIN_BYTES
        if needed > free:
            raise NoRoomError(f"the download needs {needed} bytes on the disk of {str(self.folder)!r}, which has "
                              f"{free} free", hint="make room; nothing was fetched")
        made: list[str] = []
        try:
            for sha256, nbytes in new.items():
                made.append(sha256)
                self._allocate(sha256, nbytes)
        except OSError as error:
            for sha256 in made:
                self._part(sha256).unlink(missing_ok=True)
            raise NoRoomError(f"{needed} bytes cannot be reserved on the disk of {str(self.folder)!r}: "
                              f"{error.strerror}", hint="make room; nothing was fetched") from None

    def fetch(self, name: str, sha256: str, nbytes: int, to: Path, sources: Sequence[Source]) -> None:
        """The file `name` as `to`, from the first of these sources that has the right bytes; the last one's refusal."""
        self.reserve({sha256: nbytes})
        refusal: FleetError = SourceError(f"nobody was asked for {name}")
        for source in sources:
            try:
                self._from(source, name, sha256, nbytes)
            except (SourceError, UntrustedError) as error:
                refusal = error
                continue
            with output_errors(to):
                os.rename(self._part(sha256), to)
                _note(self._part(sha256)).unlink(missing_ok=True)
                sync(to.parent)
            return
        raise refusal

    def drop(self, keep: Sequence[str] = ()) -> None:
        """Gives back the room of all downloads but these."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if path.name.removesuffix(".at") not in keep:
                    path.unlink(missing_ok=True)

    def _from(self, source: Source, name: str, sha256: str, nbytes: int) -> None:
        """One source's bytes behind those that are there. Wrong ones are fetched once more, from the beginning."""
        part = self._part(sha256)
        with output_errors(part), part.open("r+b") as file:
            for begin in dict.fromkeys((min(_arrived(part), nbytes), 0)):
                digest = hashlib.sha256()
                _hash_into(digest, file, begin)
                self._receive(source, name, part, file.fileno(), begin, nbytes, digest)
                if digest.hexdigest() == sha256:
                    os.fsync(file.fileno())
                    return
                _note(part).write_bytes(b"0")
                file.seek(0)
        raise WrongDigestError(f"{name} has the digest {digest.hexdigest()[:12]}, signed is {sha256[:12]}")

    def _receive(self, source: Source, name: str, part: Path, number: int, at: int, nbytes: int,
                 digest: hashlib._Hash) -> None:
        noted = at
        try:
            for chunk in source.read(name, nbytes - at, at) if at < nbytes else ():
                if at + len(chunk) > nbytes:
                    raise TooLongError(f"{name} has more than the {nbytes} bytes that were signed")
                os.pwrite(number, chunk, at)
                digest.update(chunk)
                at += len(chunk)
                if at - noted >= _STEP_BYTES:
                    _note(part).write_bytes(str(at).encode())
                    noted = at
        finally:
            _note(part).write_bytes(str(at).encode())
        if at < nbytes:
            raise SourceError(f"{name} ended after {at} of {nbytes} bytes", hint="the next try goes on from there")

    def _allocate(self, sha256: str, nbytes: int) -> None:
        number = os.open(self._part(sha256), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_TRUNC, 0o600)
        try:
            if nbytes:
                os.posix_fallocate(number, 0, nbytes)
        finally:
            os.close(number)
        _note(self._part(sha256)).write_bytes(b"0")

    def _is_reserved(self, sha256: str, nbytes: int) -> bool:
        part = self._part(sha256)
        return part.is_file() and not part.is_symlink() and part.stat().st_size == nbytes

    def _part(self, sha256: str) -> Path:
        return self.folder / sha256


def has_digest(path: Path, sha256: str, nbytes: int) -> bool:
    """Whether this is a regular file of that length and digest."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != nbytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _hash_into(digest, file, nbytes)
    return digest.hexdigest() == sha256


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.at")


def _arrived(part: Path) -> int:
    """How many bytes are there, by the note beside them. Whether they are right, the digest decides."""
    try:
        with _note(part).open("rb") as file:
            text = file.read(20)
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _hash_into(digest: hashlib._Hash, file: BinaryIO, length: int) -> None:
    while length and (chunk := file.read(min(CHUNK_BYTES, length))):
        digest.update(chunk)
        length -= len(chunk)
