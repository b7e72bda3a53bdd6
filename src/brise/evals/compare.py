"""Values of JSON compared: strictly read, brought into one form, and taken apart into fields."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from brise.errors import RequestError
from brise.text.json_text import parse_json

# What no JSON text can be: an answer that is none differs from the answer null.
INVALID = object()

Leaf = tuple[str, str]


def parse(text: str) -> object:
    """The JSON value that is all of the text, or INVALID. NaN, double names and deep nesting are none, as in requests.
    """
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"), "the answer")
    except RequestError:
        return INVALID


def canonical(value: object) -> str:
    """One text for equal values: keys sorted, 1.0 as 1, white space in strings as one blank, none at the ends."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def squeezed(text: str) -> str:
    """The text without white space at its ends, and with one blank for each run of it within."""
    return " ".join(text.split())


def leaves(value: object) -> Counter[Leaf]:
    """All fields of a value with how often they are there: (path, canonical value).

    {"a": {"b": 1}, "c": ["x", "y"]} has a.b = 1, c[] = "x" and c[] = "y": the order within lists does not count. An
    empty list or object is a field too, unless it is the whole value.
    """
    return Counter(_leaves(value, None))


def matches(wanted: Counter[Leaf], given: Counter[Leaf]) -> tuple[int, int, int]:
    """Of two multisets: how many are in both, only in the given one, only in the wanted one."""
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
