"""Reads dataclasses from objects of JSON: each value of the type that its field has, and no field unknown.

What a plain value may be, and which error a wrong one is, say the files that are read: fleet/strict_json.py, stats/
certificate.py, tune/kept_options.py. Ranges are the dataclasses' own matter (`__post_init__`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST_WHOLE = 2**53  # whole numbers up to it are exact as float, and in every other reader of JSON


class RecordReader:
    """Reads one kind of file. Places are names with dots, and numbers in brackets: `window.since_s`, `steps[3]`."""

    def record(self, kind: Any, place: str, value: object) -> Any:
        """The dataclass `kind` of an object that has its fields and no others; those with a default may be left out."""
        if not isinstance(value, Mapping):
            raise self.wrong(place, value, "object")
        types = _types(kind)
        for name in value:
            if name not in types:
                raise self.unknown(within(place, str(name)), types)
        for field in fields(kind):
            if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
                raise self.missing(within(place, field.name))
        return kind(**{name: self.typed(types[name], within(place, name), item) for name, item in value.items()})

    def typed(self, kind: Any, place: str, value: object) -> Any:
        """The value, if it is of this type: a dataclass, a tuple or a mapping of one type, a plain one, or one of
        several plain ones; None where it is one of them."""
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if value is None and type(None) in kinds:
            return None
        for one in kinds:
            origin = get_origin(one)
            if is_dataclass(one):
                return self.record(one, place, value)
            if origin is tuple:
                return tuple(self.items(get_args(one)[0], place, value))
            if isinstance(origin, type) and issubclass(origin, Mapping):
                return self.mapping(get_args(one)[1], place, value)
        return self.plain(tuple(one for one in kinds if one is not type(None)), place, value)

    def items(self, kind: Any, place: str, value: object) -> list[Any]:
        """The items of a list."""
        if not isinstance(value, list):
            raise self.wrong(place, value, "list")
        return [self.typed(kind, f"{place}[{at}]", item) for at, item in enumerate(value)]

    def mapping(self, kind: Any, place: str, value: object) -> dict[str, Any]:
        """The values of an object with any names."""
        if not isinstance(value, Mapping):
            raise self.wrong(place, value, "object")
        return {self.plain((str,), f"a key of {place}", name): self.typed(kind, within(place, str(name)[:64]), item)
                for name, item in value.items()}

    def plain(self, kinds: tuple[Any, ...], place: str, value: object) -> Any:
        """A text, a number, a yes or no, if it is of one of these types."""
        raise NotImplementedError

    def wrong(self, place: str, value: object, allowed: str) -> Exception:
        """The error of a value that is not what is allowed."""
        raise NotImplementedError

    def unknown(self, place: str, known: Mapping[str, Any]) -> Exception:
        """The error of a field that nobody knows; `known` are those of its object."""
        raise NotImplementedError

    def missing(self, place: str) -> Exception:
        """The error of a field that is not there."""
        raise NotImplementedError


def within(place: str, name: str) -> str:
    """The place of a field."""
    return f"{place}.{name}" if place else name


def is_text(value: object) -> bool:
    """Whether this is a text that a file, a store and a terminal can hold: without zeros and lone surrogates."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def is_whole(value: object) -> bool:
    """Whether this is a whole number that every reader of JSON has exactly."""
    return type(value) is int and abs(value) <= LARGEST_WHOLE


@functools.cache
def _types(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)
