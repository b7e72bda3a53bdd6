"""Reads which shorter vectors an embedding model was trained for: its first numbers alone are a vector (Matryoshka).

    config.json                        "matryoshka_dimensions" or "matryoshka_dims": [64, 128]; "is_matryoshka": true
    config_sentence_transformers.json  "truncate_dim": 256, the length that its makers use; the other keys, too
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brise.errors import bad_value
from brise.files.json_file import read_json

FILES = ("config.json", "config_sentence_transformers.json")


@dataclass(frozen=True)
class Matryoshka:
    """Lengths of vectors that a model may be asked for (none: any up to its own), and the one that is usual."""

    sizes: tuple[int, ...] = ()
    usual: int | None = None

    def allows(self, size: int) -> bool:
        """Whether a vector may be cut to this length."""
        return not self.sizes or size in self.sizes or size == self.usual


def folder_matryoshka(folder: Path, width: int) -> Matryoshka | None:
    """What the folder of a model says; None if it was not trained for shorter vectors."""
    values: dict[str, object] = {}
    for name in FILES:
        if (folder / name).is_file():
            values |= read_json(folder / name)
    sizes = {_size(size, name, width) for name in ("matryoshka_dimensions", "matryoshka_dims")
             for size in _list(values, name)}
    usual = values.get("truncate_dim")
    if not sizes and usual is None and values.get("is_matryoshka") is not True:
        return None
    return Matryoshka(tuple(sorted(sizes)), None if usual is None else _size(usual, "truncate_dim", width))


def _list(values: Mapping[str, object], name: str) -> list[object]:
    value = values.get(name)
    if not isinstance(value, list | None):
        raise bad_value(name, value, "a list of sizes")
    return value or []


def _size(value: object, name: str, width: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= width:
        raise bad_value(name, value, f"whole numbers of 1 to {width}")
    return value
