"""Parses untrusted JSON: depth, encoding and duplicate fields are checked here, the size by the caller."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from brise.errors import RequestError
from brise.files import long_json

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

# Deeper than any real message or schema, far below the recursion limit of Python's parser.
MAX_DEPTH = 64
# In JSON text: an escaped backslash, a whole pair, or one half.
_ESCAPED_HALF = re.compile(r"(\\\\)|(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
                           r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def parse_json(body: bytes, name: str = "the body", *, mend: bool = False) -> Json:
    """JSON text as values; duplicate fields, NaN, lone surrogates and deep nesting are refused.

    With `mend`, for rows that somebody else wrote, a lone surrogate becomes U+FFFD.
    """
    try:
        decoder = long_json.decoder(long_json.is_long(body), object_pairs_hook=_object,
                                    parse_constant=_refuse_constant, parse_float=_finite)
        value: Json = decoder.decode(long_json.decoded(body.removeprefix(codecs.BOM_UTF8)))
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8: byte {error.start}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:  # JSONDecodeError, or an integer with thousands of digits
        raise RequestError(f"{name} is not JSON: {error}", code="invalid_json") from None
    if mend and b"\\u" in body:
        try:
            value = mended(value)
        except RecursionError:
            raise _too_deep(name) from None
    check(value, name)
    return value


def mended(value: Json) -> Json:
    """A value of which every string is text: each half of a surrogate pair that stands alone becomes U+FFFD.

    So does one that is escaped in JSON within a string, such as the arguments of a call: whoever reads that meets it.
    """
    match value:
        case str() if "\\u" in value and value.lstrip()[:1] in ("{", "[", '"'):
            return mended_text(_ESCAPED_HALF.sub(
                lambda found: found[0] if found[1] or found[2] else "\\ufffd", value))
        case str():
            return mended_text(value)
        case dict():
            return mended_fields(value)
        case list():
            return [mended(item) for item in value]
        case _:
            return value


def mended_fields(fields: Mapping[str, Json]) -> dict[str, Json]:
    """The same of an object."""
    return {mended_text(name): mended(item) for name, item in fields.items()}


def mended_text(text: str) -> str:
    """The text with U+FFFD for each lone surrogate. Two halves that belong together become their character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check(root: Json, root_name: str) -> None:
    """Refuses deep nesting and lone surrogates, without recursion: a hostile body must not choose our stack's depth."""
    pending: list[tuple[Json, int]] = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, (list, dict)):
            if depth > MAX_DEPTH:
                raise _too_deep(root_name)
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
            items = value.values() if isinstance(value, dict) else value
            pending.extend((item, depth + 1) for item in items if isinstance(item, (str, list, dict)))


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"a string holds a lone surrogate at character {error.start}; it is not text",
                               code="invalid_json") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                name = name[:64]
                raise RequestError(f"the field {name!r} is given twice", param=name, code="invalid_json")
            seen.add(name)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is out of the range of a number")
    return number


def _too_deep(name: str) -> RequestError:
    return RequestError(f"{name} is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
