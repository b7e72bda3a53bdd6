"""Filling the options dataclass of a use case from the arguments of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TypeVar

T = TypeVar("T")
_NOTHING: Mapping[str, object] = MappingProxyType({})


def fill(kind: type[T], args: argparse.Namespace, others: Mapping[str, object] = _NOTHING) -> T:
    """The dataclass `kind`, its fields from arguments of the same names; `others` wins, for fields that have none.

    A list of argparse becomes a tuple; an option that was not given, and may be given several times, an empty one.
    """
    given = vars(args)
    values: dict[str, object] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in others:
            values[field.name] = others[field.name]
        elif field.name in given:
            value = given[field.name]
            is_many = str(field.type).startswith("tuple[")
            values[field.name] = tuple(value or ()) if is_many else value
    return kind(**values)
