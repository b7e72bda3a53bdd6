"""Keeps the model store: files named by their SHA-256, and one small manifest for each model name.

ROOT/blobs/sha256-HEX        model files, read-only
ROOT/folders/sha256-HEX/     links to the blobs of a model of several files, under the files' own names
ROOT/manifests/NAME.json     which blob or folder a name means, and where it came from
ROOT/partial/KEY/            unfinished downloads, kept for the next try
ROOT/locks/KEY               held (flock) by the process that works on KEY

A file gets its final name by one rename after fsync, so that a crash leaves the old state or the new one. A folder is
complete before its manifest is written. A blob or folder without a manifest is harmless: the next change of the store
deletes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from brise.errors import StoreError
from brise.files.atomic import private_folder, sync
from brise.files.digests import DIGEST, NAME, StoredFile, disk_errors, list_digest

MAX_MANIFEST_BYTES = 1 << 20  # of a model of thousands of files


@dataclass(frozen=True)
class StoredModel:
    """One model of the store. `digest` is the SHA-256 of its file, `source` what was pulled.

    A model of several files lists them in `files`; its digest is that of this list.
    """

    name: str
    digest: str
    size: int
    source: str
    added: str  # UTC, ISO 8601
    files: tuple[StoredFile, ...] = ()
    licence: str = ""  # as its source states it
    revision: str = ""  # the hub's commit


def is_name(text: str) -> bool:
    """Whether `text` can name a model in the store; a path and `hf:...` cannot."""
    return NAME.fullmatch(text) is not None and not text.endswith(".gguf")


@dataclass(frozen=True)
class ModelStore:
    """The models under `root`. Several processes may work on one store at the same time."""

    root: Path

    def names(self) -> list[str]:
        """All model names, sorted."""
        with disk_errors(self.root):
            return sorted(path.stem for path in (self.root / "manifests").glob("*.json") if is_name(path.stem))

    def get(self, name: str) -> StoredModel:
        """The entry `name`; StoreError if there is none or its manifest is damaged."""
        if name not in self.names():
            known = ", ".join(self.names())
            raise StoreError(f"there is no model {name!r} in the store",
                             hint=f"the store has: {known}" if known else "brise pull smollm2")
        path = self._manifest(name)
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
        return _parse_manifest(name, path, text)

    def has_pulled(self, source: str) -> bool:
        """Whether an entry was pulled from a hub reference."""
        return any(self.get(name).source == source for name in self.names())

    def pulled_from(self, source: str) -> StoredModel:
        """The entry that was pulled from a hub reference; StoreError if there is none, or several."""
        entries = [entry for entry in map(self.get, self.names()) if entry.source == source]
        if not entries:
            raise StoreError(f"{source!r} is on the Hugging Face hub, not on this machine",
                             hint=f"brise pull {source}")
        if len({entry.digest for entry in entries}) > 1:
            names = ", ".join(entry.name for entry in entries)
            raise StoreError(f"several models of the store were pulled from {source!r}: {names}",
                             hint="give one of these names")
        return entries[0]

    def path(self, entry: StoredModel) -> Path:
        """The file of an entry, or the folder of its files, checked to be there and as long as they should be."""
        if not entry.files:
            return self._checked(entry, self.blob(entry.digest), entry.size)
        folder = self.folder(entry.digest)
        for file in entry.files:
            self._checked(entry, folder / file.name, file.size)
        return folder

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / f"sha256-{digest}"

    def folder(self, digest: str) -> Path:
        return self.root / "folders" / f"sha256-{digest}"

    def add(self, name: str, staged: Path, digest: str, source: str, *, licence: str = "",
            revision: str = "") -> StoredModel:
        """Moves the complete file `staged` (inside `partial`) into the store as `name`."""
        check_name(name)
        entry = StoredModel(name, digest, staged.stat().st_size, source, _now(), licence=licence, revision=revision)
        with self.lock("store"), disk_errors(self.root):
            os.chmod(staged, 0o444)
            sync(staged)
            _rename(staged, self.blob(digest))
            self._write_manifest(entry)
            self._sweep()
        return entry

    def add_folder(self, name: str, staged: Path, files: Sequence[StoredFile], source: str, *, licence: str = "",
                   revision: str = "") -> StoredModel:
        """Moves the complete `files` of the folder `staged` (inside `partial`) into the store as `name`."""
        check_name(name)
        entry = StoredModel(name, list_digest(files), sum(file.size for file in files), source, _now(), tuple(files),
                            licence, revision)
        with self.lock("store"), disk_errors(self.root):
            for file in files:
                os.chmod(staged / file.name, 0o444)
                sync(staged / file.name)
                _rename(staged / file.name, self.blob(file.digest))
            self._link(entry)
            self._write_manifest(entry)
            self._sweep()
        return entry

    def remove(self, name: str) -> None:
        """Forgets `name`, and deletes its file unless another name means the same one."""
        with self.lock("store"), disk_errors(self.root):
            if name not in self.names():
                self.get(name)  # raises, with the names that are there
            self._manifest(name).unlink()
            sync(self.root / "manifests")
            self._sweep()

    def partial(self, key: str) -> Path:
        """The folder of the download `key`; hold `lock(key)` while using it."""
        with disk_errors(self.root):
            return _folder(self.root / "partial" / key)

    def drop_partial(self, key: str) -> None:
        shutil.rmtree(self.root / "partial" / key, ignore_errors=True)

    def free_bytes(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Locks `key` against all other processes; `waiting` is called if another one holds it.

        Lock files are never deleted: a waiter could hold a lock on a file that is no longer there.
        """
        with disk_errors(self.root):
            file = (_folder(self.root / "locks") / key).open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _checked(self, entry: StoredModel, path: Path, expected: int) -> Path:
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            problem = "is missing" if size is None else f"has {size} bytes instead of {expected}"
            raise StoreError(f"the file of model {entry.name!r} {problem}: {path}",
                             hint=f"pull it again: brise pull {entry.source} --name {entry.name}")
        return path

    def _link(self, entry: StoredModel) -> None:
        """Makes the folder of links. It is named by its content: one that is there is the same, unless damaged."""
        folder = self.folder(entry.digest)
        if all((folder / file.name).is_file() for file in entry.files):
            return
        staged = _folder(self.root / "partial") / f"folder-{entry.digest}"
        for path in (staged, folder):
            shutil.rmtree(path, ignore_errors=True)
        staged.mkdir()
        for file in entry.files:
            (staged / file.name).symlink_to(Path("..", "..", "blobs", self.blob(file.digest).name))
        sync(staged)
        _rename(staged, folder)

    def _manifest(self, name: str) -> Path:
        return self.root / "manifests" / f"{name}.json"

    def _write_manifest(self, entry: StoredModel) -> None:
        path = self._manifest(entry.name)
        staged = _folder(self.root / "partial") / f"manifest-{entry.name}.json"
        staged.write_text(json.dumps(asdict(entry), indent=1) + "\n", encoding="utf-8")
        sync(staged)
        _rename(staged, path)

    def _sweep(self) -> None:
        """Deletes blobs and folders that no manifest names; deletes nothing if a manifest is damaged."""
        try:
            entries = [self.get(name) for name in self.names()]
        except StoreError:
            return
        blobs = {self.blob(file.digest) for entry in entries for file in entry.files or (entry,)}
        for path in (self.root / "blobs").glob("sha256-*"):
            if path not in blobs:
                path.unlink()
        folders = {self.folder(entry.digest) for entry in entries if entry.files}
        for path in (self.root / "folders").glob("sha256-*"):
            if path not in folders:
                shutil.rmtree(path)


def check_name(name: str) -> None:
    """Raises StoreError unless the store may keep a model under this name."""
    if not is_name(name):
        raise StoreError(f"{name!r} cannot name a model",
                         hint="a name is 1 to 100 letters, digits, '.', '_' and '-', starts with a letter or "
                              "digit and does not end in .gguf")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _parse_manifest(name: str, path: Path, text: bytes) -> StoredModel:
    hint = f"brise models remove {name}, then pull it again"
    if len(text) > MAX_MANIFEST_BYTES:
        raise StoreError(f"the manifest {path} is longer than {MAX_MANIFEST_BYTES} bytes", hint=hint)
    try:
        fields = json.loads(text)
        files = tuple(StoredFile(file["name"], file["digest"], file["size"]) for file in fields.get("files", ()))
        entry = StoredModel(name, fields["digest"], fields["size"], fields["source"], fields["added"], files,
                            fields.get("licence", ""), fields.get("revision", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"the manifest {path} is damaged: {error!r}", hint=hint) from error
    texts = (entry.digest, entry.source, entry.added, entry.licence, entry.revision,
             *(text for file in files for text in (file.name, file.digest)))
    sizes = (entry.size, *(file.size for file in files))
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(size, int) for size in sizes):
        raise StoreError(f"the manifest {path} is damaged: a value has the wrong type", hint=hint)
    for digest in (entry.digest, *(file.digest for file in files)):
        if not DIGEST.fullmatch(digest):
            raise StoreError(f"the manifest {path} has the digest {digest!r}, "
                             "64 hexadecimal digits are allowed", hint=hint)
    for file in files:
        if Path(file.name).name != file.name or file.name == "..":
            raise StoreError(f"the manifest {path} has the file {file.name!r}, names without folders are allowed",
                             hint=hint)
    return entry


def _rename(source: Path, target: Path) -> None:
    """Gives `source` its final name so that the change outlives a power cut."""
    _folder(target.parent)
    os.replace(source, target)
    sync(target.parent)


def _folder(path: Path) -> Path:
    private_folder(path)
    return path
