"""Files of the fleet as JSON: dataclasses in one canonical form, and read back typed, bounded, with no field unknown.

Ranges are the dataclasses' own matter (`__post_init__`); this module knows types, lengths and numbers of items.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from brise.errors import CheckpointError
from brise.files.json_file import parse_json
from brise.files.typed_json import LARGEST_WHOLE, RecordReader, is_text, is_whole
from brise.fleet.refusals import BundleError

MOST_ITEMS, MOST_TEXT = 10_000, 10_000

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
    found: T = _FleetReader().record(kind, name, value)
    if canonical(found) != data:
        raise BundleError(name, "in another spelling", "its canonical form")
    return found


class _FleetReader(RecordReader):
    """Lists and objects are bounded, and so are texts."""

    def items(self, kind: Any, place: str, value: object) -> list[Any]:
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            raise BundleError(place, value, f"a list of at most {MOST_ITEMS}")
        return super().items(kind, place, value)

    def mapping(self, kind: Any, place: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) > MOST_ITEMS:
            raise BundleError(place, value, f"an object of at most {MOST_ITEMS}")
        return super().mapping(kind, place, value)

    def plain(self, kinds: tuple[Any, ...], place: str, value: object) -> Any:
        (kind,) = kinds
        if kind is str:
            if not isinstance(value, str) or len(value) > MOST_TEXT:
                raise BundleError(place, value, f"a text of at most {MOST_TEXT} characters")
            if not is_text(value):
                raise BundleError(place, value, "a text without zeros and lone surrogates")
            return value
        is_number = type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
        if kind is Any or kind is bool and isinstance(value, bool) or kind is int and is_whole(value) or (
                kind is float and is_number):  # as it is written: 1 and 1.0 are two spellings
            return value
        raise BundleError(place, value, {bool: "true or false", int: f"a whole number to {LARGEST_WHOLE}",
                                         float: "a finite number"}.get(kind, kind.__name__))

    def wrong(self, place: str, value: object, allowed: str) -> Exception:
        return BundleError(place, value, f"an {allowed}")

    def unknown(self, place: str, known: Mapping[str, Any]) -> Exception:
        parent, _, name = place.rpartition(".")
        return BundleError(f"a field of {parent}", name, ", ".join(known))

    def missing(self, place: str) -> Exception:
        return BundleError(place, "missing", "a value")
