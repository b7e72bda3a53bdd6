"""All parsers that are fuzzed."""

from __future__ import annotations

from tests.fuzz import grammars, model_files, records, wire
from tests.fuzz.target import Target

ALL: tuple[Target, ...] = (*model_files.targets(), *wire.targets(), *grammars.targets(), *records.targets())


def named(name: str) -> Target:
    """The parser of this name."""
    return next(target for target in ALL if target.name == name)
