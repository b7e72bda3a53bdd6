"""Finds the model that a user names: in the store, at a path, or in the stores of other tools on this machine.

NAME                             the store; a path; then Ollama, LM Studio, the Hugging Face cache, llama.cpp
ollama:NAME[:TAG]                Ollama's store; without a tag `latest`, or the only one
lmstudio:PUBLISHER/REPO[/FILE]   LM Studio's folder; here and with hf: `:QUANT` (as in :Q4_K_M) may stand for /FILE
hf:OWNER/REPO[/FILE]             what was pulled under this name, then the Hugging Face cache
llama.cpp:FILE                   llama.cpp's folder
"""

from __future__ import annotations

import os
from pathlib import Path

from brise.checkpoint.model_files import find_layout, without_part
from brise.errors import StoreError
from brise.files.digests import Located
from brise.hub.found import TOOLS, Origin
from brise.hub.listed import listed, nearest
from brise.hub.other_stores import OtherStores, origin_of
from brise.hub.store import ModelStore, is_name
from brise.settings import Settings


def find_model(model: str | Path, settings: Settings) -> Located:
    """Resolves a user's `model` on this machine; StoreError says what is there instead, and how to get it."""
    return locate(str(model), ModelStore(settings.home), OtherStores(settings.home, settings.tools))


def locate(model: str, store: ModelStore, others: OtherStores | None = None) -> Located:
    """The same in this store, and in those of other tools if they are given.

    A bare word is a name first, so that a folder of the same name does not hide the store (./WORD does).
    """
    path = path_of(model)
    origin = origin_of(model)
    if origin is not None:
        return _of_tool(model, origin, store, others)
    is_path = is_there(path)
    name = _stored_name(model, store, is_path=is_path)
    if name is not None:
        entry = store.get(name)
        return Located(name, store.path(entry), entry.digest)
    if not is_path and not model.startswith((".", "~", os.sep)):
        found = None if others is None else others.find(model)
        if others is not None and found is not None:
            return others.located(*found)
        if is_name(model) or listed(model) is not None or (":" in model and os.sep not in model):
            raise _nothing(model, store)
    layout = find_layout(path)
    if path.is_file():
        return Located(Path(without_part(path.name)).stem, path)
    # A folder means all of its files: an mmproj file of another model is an error there, and not ignored.
    is_one = layout.kind == "gguf" and len(layout.files) == 1
    return Located(path.resolve().name, layout.files[0] if is_one else path)


def path_of(text: str) -> Path:
    """The path that a user wrote. Path would turn an empty one (an unset variable) into the current folder."""
    if not text:
        raise StoreError("an empty MODEL is given",
                         hint="give a name that `brise models` lists, or the path of a .gguf file or of a folder")
    return Path(os.path.expanduser(text))  # Path.expanduser raises RuntimeError where there is no such user


def unknown_name(text: str) -> str:
    """A hint for a name that is nowhere: what can be pulled that looks like it."""
    names = nearest(text)
    return (f"names that look like it: {', '.join(names)}" if names
            else "brise models search lists what can be pulled by name")


def _stored_name(model: str, store: ModelStore, *, is_path: bool) -> str | None:
    """The name in the store: as it is written, or as the list of names writes it (qwen3:0.6b is qwen3-0.6b)."""
    names = store.names()
    if is_name(model) and model in names:
        return model
    entry = None if is_path else listed(model)
    return entry.store_name if entry is not None and entry.store_name in names else None


def _of_tool(model: str, origin: Origin, store: ModelStore, others: OtherStores | None) -> Located:
    if origin == "hf" and store.has_pulled(model):
        entry = store.pulled_from(model)
        return Located(entry.name, store.path(entry), entry.digest)
    found = None if others is None else others.find(model)
    if others is not None and found is not None:
        return others.located(*found)
    if origin == "hf":
        raise StoreError(f"{model!r} is on the Hugging Face hub, not on this machine", hint=f"brise pull {model}")
    there = [] if others is None else [one.name for one in others.models(origin)]
    raise StoreError(f"there is no model {model.removeprefix(f'{origin}:')!r} in {TOOLS[origin]}",
                     hint=f"it has: {', '.join(there[:8])}" if there else "brise models list shows where models lie")


def _nothing(model: str, store: ModelStore) -> StoreError:
    known = store.names()
    entry = listed(model)
    way = unknown_name(model) if entry is None else f"brise pull {model}"
    return StoreError(f"there is no model {model!r} on this machine",
                      hint=f"the store has: {', '.join(known)}; or: {way}" if known else way)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder."""
    try:
        return path.exists()
    except OSError:  # a name too long
        return False
