"""Getting a model into the store: the small default model, a file, a folder, or a hub repository."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from brise.checkpoint import wheel
from brise.checkpoint.download import Progress
from brise.checkpoint.store import (
    CHUNK_BYTES,
    Entry,
    Store,
    check_name,
    disk_errors,
    file_digest,
    gguf_file,
    is_name,
    path_of,
)
from brise.checkpoint.wheel import SMOLLM2, WheelModel
from brise.errors import CheckpointError, StoreError

HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?")
FICLONE = 0x40049409  # ioctl of btrfs, xfs, ...: the copy shares the blocks until one of the two changes


@dataclass(frozen=True)
class Puller:
    """What every pull needs. `admit` looks into a complete file and raises if it is no model that we run."""

    store: Store
    progress: Progress
    admit: Callable[[Path], None]
    waiting: Callable[[], None]
    index_url: str | None = None
    wheel_models: tuple[WheelModel, ...] = (SMOLLM2,)  # tests put tiny ones here


def pull(puller: Puller, reference: str, name: str | None = None) -> Entry:
    """Makes `reference` a model of the store, called `name` or as the reference suggests."""
    if name is not None:
        check_name(name)
    hub_name = HUB.fullmatch(reference)
    if hub_name is not None:
        return _pull_hub(puller, reference, hub_name[1], hub_name[2], name)
    if reference.startswith("hf:"):
        raise StoreError(f"{reference!r} is no hub reference",
                         hint="write hf:OWNER/REPO or hf:OWNER/REPO/FILE.gguf")
    for model in puller.wheel_models:
        if model.name == reference:
            return _pull_wheel(puller, model, name or reference)
    if is_name(reference) and not Path(reference).exists():
        raise StoreError(f"there is no model {reference!r} to pull, and no such file", hint="known names: "
                         + ", ".join(model.name for model in puller.wheel_models)
                         + "; or a path to a .gguf file, or hf:OWNER/REPO")
    return _pull_file(puller, path_of(reference), name)


def _pull_wheel(puller: Puller, model: WheelModel, name: str) -> Entry:
    store = puller.store
    key = f"wheel-{model.digest}"
    with store.lock(key, puller.waiting), disk_errors(store.root):
        present = _present(puller, name, model.digest)
        if present is not None:
            return present
        folder = store.partial(key)
        _check_room(puller, folder, model.file_size + model.size)
        staged = wheel.pull(model, folder, puller.index_url, puller.progress)
        entry = store.add(name, staged, model.digest, model.name)
        store.drop_partial(key)
        return entry


def _pull_file(puller: Puller, path: Path, name: str | None) -> Entry:
    source = gguf_file(path).resolve()
    name = name or _name_of(source.name)
    puller.admit(source)
    key = f"file-{hashlib.sha256(os.fsencode(source)).hexdigest()}"
    with puller.store.lock(key, puller.waiting), disk_errors(puller.store.root):
        staged = puller.store.partial(key) / "model.gguf"
        digest = _copy(puller, source, staged)
        puller.admit(staged)  # the source may have changed under us: what counts is our copy
        entry = puller.store.add(name, staged, digest, str(source))
        puller.store.drop_partial(key)
        return entry


def _pull_hub(puller: Puller, reference: str, repo: str, file: str | None, name: str | None) -> Entry:
    hub = importlib.import_module("brise.checkpoint.hub")  # only here: it needs an extra
    found = hub.find(repo, file)
    name = name or _name_of(Path(found.file).name)
    key = "hub-" + hashlib.sha256(f"{repo}/{found.file}@{found.commit}".encode()).hexdigest()
    with puller.store.lock(key, puller.waiting), disk_errors(puller.store.root):
        present = _present(puller, name, found.digest)
        if present is not None:
            return present
        staged = hub.download(found, puller.store.partial(key))
        digest = file_digest(staged, lambda done: puller.progress("verify", done, staged.stat().st_size))
        if found.digest is not None and digest != found.digest:
            puller.store.drop_partial(key)
            raise CheckpointError(
                f"the downloaded {found.file} has SHA-256 {digest}, {found.digest} is right",
                field="sha256", value=digest, limit=found.digest, hint="pull it again")
        puller.admit(staged)
        entry = puller.store.add(name, staged, digest, reference)
        puller.store.drop_partial(key)
        return entry


def _present(puller: Puller, name: str, digest: str | None) -> Entry | None:
    """The entry `name` if it is this very file and undamaged: then there is nothing to pull."""
    try:
        entry = puller.store.get(name)
        path = puller.store.path(entry)
    except StoreError:
        return None
    if entry.digest != digest:
        return None
    found = file_digest(path, lambda done: puller.progress("verify", done, entry.size))
    return entry if found == digest else None


def _name_of(file: str) -> str:
    """A store name from a file name: what a name may not hold becomes '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.removesuffix(".gguf")).lstrip("._-")
    if not is_name(name):
        raise StoreError(f"no name can be made of the file name {file!r}", hint="give one with --name")
    return name


def _check_room(puller: Puller, folder: Path, need_bytes: int) -> None:
    free_bytes = puller.store.free_bytes(folder)
    if free_bytes < need_bytes:
        raise StoreError(f"the pull needs {need_bytes} bytes, "
                         f"the disk of {puller.store.root} has {free_bytes} free",
                         hint="make room (`brise models remove NAME`) or set BRISE_HOME to another disk")


def _copy(puller: Puller, source: Path, target: Path) -> str:
    """Copies, and returns the SHA-256 of the copy. No hard link: a change of the source would change ours."""
    size = source.stat().st_size
    target.unlink(missing_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        if not _share_blocks(reader, writer):
            _check_room(puller, target.parent, size)
            return _copy_bytes(puller, reader, writer, size)
    return file_digest(target, lambda done: puller.progress("verify", done, size))


def _share_blocks(reader: BinaryIO, writer: BinaryIO) -> bool:
    try:
        fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
    except OSError:  # another disk, or a file system without it
        return False
    return True


def _copy_bytes(puller: Puller, reader: BinaryIO, writer: BinaryIO, size: int) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := reader.read(CHUNK_BYTES):
        digest.update(chunk)
        writer.write(chunk)
        done += len(chunk)
        puller.progress("copy", done, size)
    return digest.hexdigest()
