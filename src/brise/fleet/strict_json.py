"""Files of the fleet as JSON: dataclasses in one canonical form, and read back typed, bounded, with no field unknown.

Ranges are the dataclasses' own matter (`__post_init__`); this module knows types, lengths and numbers of items.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from brise.errors import CheckpointError
from brise.files.json_file import parse_json
from brise.fleet.refusals import BundleError

MOST_ITEMS, MOST_TEXT = 10_000, 10_000
LARGEST = 2**53  # whole numbers up to it are exact as float, and in every other reader of JSON

T = TypeVar("T")


def canonical(record: object) -> bytes:
    """The one form of a dataclass (or an object of JSON): sorted keys, no spaces, no number that JSON has not."""
    return json.dumps(as_json(record), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def as_json(value: object) -> Any:
    """The objects, lists and plain values of JSON that a dataclass is written as."""
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    return list(map(as_json, value)) if isinstance(value, tuple | list) else value


def read(kind: type[T], data: bytes, name: str, most: int) -> T:
    """The dataclass `kind` in the JSON object `data`, of at most `most` bytes; BundleError names the field.

    `data` must be in canonical form: so what was signed is what is read, and nothing can stand beside it.
    """
    if len(data) > most:
        raise BundleError(f"size of {name}", f"{len(data)} bytes", f"{most} bytes")
    try:
        value = parse_json(data, name)
    except CheckpointError as error:
        raise BundleError(error.field or name, error.value, error.limit, hint=str(error.args[0])) from None
    found: T = _record(kind, name, value)
    if canonical(found) != data:
        raise BundleError(name, "in another spelling", "its canonical form")
    return found


def _record(kind: Any, place: str, value: object) -> Any:
    """A dataclass of an object that has its fields and no others; those with a default may be left out."""
    if not isinstance(value, Mapping):
        raise BundleError(place, value, "an object")
    types = _types(kind)
    for name in value:
        if name not in types:
            raise BundleError(f"a field of {place}", name, ", ".join(types))
    for field in fields(kind):
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise BundleError(f"{place}.{field.name}", "missing", "a value")
    return kind(**{name: _typed(types[name], f"{place}.{name}", item) for name, item in value.items()})


@functools.cache
def _types(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _typed(kind: Any, place: str, value: object) -> Any:
    """The value, if it is of this type."""
    if get_origin(kind) is UnionType:
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if is_dataclass(kind):
        return _record(kind, place, value)
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            raise BundleError(place, value, f"a list of at most {MOST_ITEMS}")
        return tuple(_typed(get_args(kind)[0], f"{place}[{at}]", item) for at, item in enumerate(value))
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        if not isinstance(value, Mapping) or len(value) > MOST_ITEMS:
            raise BundleError(place, value, f"an object of at most {MOST_ITEMS}")
        return {_text(f"a key of {place}", name): _typed(get_args(kind)[1], f"{place}.{name[:64]}", item)
                for name, item in value.items()}
    return value if kind is Any else _plain(kind, place, value)


def _plain(kind: type, place: str, value: object) -> Any:
    if kind is str:
        return _text(place, value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and type(value) is int and abs(value) <= LARGEST:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return value  # as it is written: 1 and 1.0 are two spellings
    raise BundleError(place, value, {str: "a text", bool: "true or false", int: f"a whole number to {LARGEST}",
                                     float: "a finite number"}.get(kind, kind.__name__))


def _text(place: str, value: object) -> str:
    """A text that a file, a store and a terminal can hold."""
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise BundleError(place, value, f"a text of at most {MOST_TEXT} characters")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise BundleError(place, value, "a text without zeros and lone surrogates")
    return value
