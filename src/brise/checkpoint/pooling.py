"""Reads how an embedding model makes one vector of many: the GGUF key, or the files of sentence-transformers.

modules.json lists the steps of the model: a Transformer, a Pooling, and maybe a Normalize, which brise always does. The
folder of the Pooling (1_Pooling) has a config.json: `pooling_mode`, or one flag for each kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from brise.errors import CheckpointError, UnsupportedError
from brise.files.fields import Fields, KeyTable, errors_of
from brise.files.json_file import MAX_JSON_BYTES, read_json

Pooling = Literal["mean", "cls", "last"]
MAX_NAME_BYTES = 255  # of a file or folder, on the common file systems
MODULES, POOLING_CONFIG = "modules.json", "1_Pooling/config.json"
FLAT_POOLING_CONFIG = "1_Pooling.config.json"  # in the store, where all files of a model lie in one folder

# llama.cpp's numbers for `ARCHITECTURE.pooling_type`; 0 is none, and 4 (rank) gives scores, not embeddings.
GGUF_NUMBERS: Mapping[int, Pooling | None] = MappingProxyType({0: None, 1: "mean", 2: "cls", 3: "last"})
_MODES: Mapping[str, Pooling] = MappingProxyType({"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last"})
_FLAGS: Mapping[str, Pooling] = MappingProxyType({
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"})
_STEPS = ("Transformer", "Pooling", "Normalize")
_TABLE = KeyTable(MappingProxyType({"include_prompt": (True,)}),
                  ("word_embedding_dimension", "embedding_dimension"))  # what is not a pooling that is set to false


def gguf_pooling(metadata: Mapping[str, object]) -> Pooling | None:
    """The pooling that a GGUF file names; None for a model that makes no embeddings."""
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if isinstance(kind, bool) or not isinstance(kind, int | float) or kind not in GGUF_NUMBERS:
        raise UnsupportedError(f"pooling_type is {kind!r}; 0 (none), 1 (mean), 2 (cls), 3 (last) are known")
    return GGUF_NUMBERS[int(kind)]


def pooling_number(pooling: Pooling) -> int:
    """The number that stands for it in a GGUF file."""
    return next(number for number, name in GGUF_NUMBERS.items() if name == pooling)


def folder_pooling(folder: Path) -> Pooling | None:
    """The pooling of a folder in the layout of sentence-transformers; None for any other folder."""
    place = POOLING_CONFIG
    if (folder / MODULES).is_file():
        place = _pooling_of_modules(folder / MODULES) or ""
    if place == POOLING_CONFIG and not (folder / place).is_file():
        place = FLAT_POOLING_CONFIG
    if not place or not (folder / place).is_file():
        return None
    with errors_of(place):
        fields = Fields(read_json(folder / place), "")
        modes = [_MODES.get(fields.text("pooling_mode"))] if fields.has("pooling_mode") else [
            kind for name, kind in _FLAGS.items() if fields.flag(name, default=False)]
        if modes == [None]:
            raise fields.refused("pooling_mode", " or ".join(map(repr, _MODES)))
        fields.refuse_rest(_TABLE)
        if len(modes) != 1:
            raise CheckpointError(f"{len(modes)} poolings are set, allowed is 1", field="pooling_mode",
                                  value=len(modes), limit=1)
        return modes[0]


def _pooling_of_modules(path: Path) -> str | None:
    """The config of the pooling in the list of steps; UnsupportedError for a step that brise does not do."""
    place = None
    for entry in _entries(path):
        match entry:
            case {"type": str(kind), "path": str(own)}:
                name = kind.rpartition(".")[2]
            case _:
                raise CheckpointError(f"{path.name} has an entry without type and path", field=path.name,
                                      value=str(entry)[:80])
        if name not in _STEPS:
            raise UnsupportedError(f"{path.name} has the step {kind!r}, which brise does not implement; allowed are "
                                   f"{', '.join(_STEPS)}")
        if name == "Pooling":
            if Path(own).name != own or own in ("", "..") or len(own.encode(errors="replace")) > MAX_NAME_BYTES:
                raise CheckpointError(f"{path.name} names the folder {own[:80]!r}, which is not one of this model",
                                      field="path", value=own[:80], limit="the name of a folder")
            place = f"{own}/config.json"
    return place


def _entries(path: Path) -> list[object]:
    """The list in modules.json, the one file of these that holds no object."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path.name} has more than {MAX_JSON_BYTES} bytes", field=path.name,
                              limit=MAX_JSON_BYTES)
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no JSON: {error}", field=path.name, limit="JSON in UTF-8") from None
    if not isinstance(entries, list):
        raise CheckpointError(f"{path.name} holds no list", field=path.name, value=type(entries).__name__)
    return entries
