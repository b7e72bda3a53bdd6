"""Comparing JSON values: strict parsing, a canonical form, and the fields of a value."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from brise.errors import RequestError
from brise.text.json_text import parse_json

# Differs from every JSON value: an answer that is not JSON differs from the answer null.
INVALID = object()

Leaf = tuple[str, str]


def parse(text: str) -> object:
    """The JSON value that is the whole text, or INVALID; NaN, duplicate names and deep nesting are invalid.
    """
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"), "the answer")
    except RequestError:
        return INVALID


def canonical(value: object) -> str:
    """The same text for equal values: keys sorted, 1.0 as 1, runs of white space as one blank, none at the ends."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def squeezed(text: str) -> str:
    """The text without white space at its ends, and with runs of white space as one blank."""
    return " ".join(text.split())


def leaves(value: object) -> Counter[Leaf]:
    """The fields of a value, counted: (path, canonical value).

    {"a": {"b": 1}, "c": ["x", "y"]} has a.b = 1, c[] = "x" and c[] = "y": the order within lists does not count. An
    empty list or object is a field too, unless it is the whole value.
    """
    return Counter(_leaves(value, None))


def matches(wanted: Counter[Leaf], given: Counter[Leaf]) -> tuple[int, int, int]:
    """Of two multisets: the number of elements in both, only in `given`, and only in `wanted`."""
    both = (wanted & given).total()
    return both, given.total() - both, wanted.total() - both


def _leaves(value: object, path: str | None) -> Iterator[Leaf]:
    match value:
        case dict() if value:
            for key, item in value.items():
                name = re.sub(r"([\\.\[])", r"\\\1", key)
                yield from _leaves(item, name if path is None else f"{path}.{name}")
        case list() if value:
            for item in value:
                yield from _leaves(item, f"{path or ''}[]")
        case dict() | list() if path is None:
            return
        case _:
            yield path or "", canonical(value)


def _plain(value: object) -> object:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case str():
            return squeezed(value)
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
