"""Reads JSON files and headers of a checkpoint: bounded, without duplicate keys, and always an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from brise.errors import CheckpointError, bad_value

MAX_JSON_BYTES = 1 << 24  # the index of 675 billion parameters has 6 MB; a tokenizer.json 17 MB, but is not read here


def read_json(path: Path) -> dict[str, object]:
    """The object in a file of at most MAX_JSON_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", field="path", value=path) from error
    if len(data) > MAX_JSON_BYTES:
        raise bad_value(f"size of {path.name}", "more", f"{MAX_JSON_BYTES} bytes")
    return parse_json(data, path.name)


def parse_json(data: bytes, name: str) -> dict[str, object]:
    """The object in `data`; `name` is what errors call it."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        out: dict[str, object] = {}
        for key, value in pairs:
            if key in out:
                raise bad_value(f"a key of {name}", key, "a key that did not come before")
            out[key] = value
        return out

    def refuse(constant: str) -> NoReturn:
        raise bad_value(f"a number in {name}", constant, "a finite number")

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is no JSON: {error}", field=name, limit="JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise bad_value(name, type(value).__name__, "a JSON object")
    return value
