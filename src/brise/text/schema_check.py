"""Checks a value against a JSON schema, in bounded time: an answer whose grammar enforces a part of the schema only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from brise.text.bounded_regex import Budget, search
from brise.text.schema_forms import Schema, resolve
from brise.text.schemas import SchemaKeyword

_MAX_STEPS = 2_000  # of the check of one answer, about a microsecond each


def violations(value: object, schema: object, left_out: Sequence[SchemaKeyword]) -> list[str]:
    """The places in an answer that break the schema, if something of it was left out: "n: uniqueItems"."""
    if not left_out or not isinstance(schema, Mapping):
        return []
    checker = _Checker(schema)
    try:
        return list(dict.fromkeys(checker.broken(value, schema, "")))[:16]
    except (_TooLongError, RecursionError):
        return ["the answer was too long to check"]


class _TooLongError(Exception):
    """The check takes too many steps."""


class _Checker:
    """Checks a value against a schema: yields "place: keyword"."""

    def __init__(self, root: Schema) -> None:
        self._root, self._num_steps, self._patterns = root, 0, Budget()

    def broken(self, value: object, schema: object, at: str) -> Iterator[str]:
        self._num_steps += 1
        if self._num_steps > _MAX_STEPS:
            raise _TooLongError
        if schema is False:
            yield f"{at or 'the answer'}: not allowed"
        if not isinstance(schema, Mapping):
            return
        for keyword in (*_own(value, schema), *self._pattern(value, schema), *self._combined(value, schema, at)):
            yield f"{at or 'the answer'}: {keyword}"
        if "$ref" in schema:
            yield from self.broken(value, resolve(schema["$ref"], self._root), at)
        for part in _list(schema.get("allOf")):
            yield from self.broken(value, part, at)
        if isinstance(value, list):
            yield from self._items(value, schema, at)
        elif isinstance(value, dict):
            yield from self._properties(value, schema, at)

    def _fits(self, value: object, schema: object, at: str) -> bool:
        return next(self.broken(value, schema, at), None) is None

    def _combined(self, value: object, schema: Schema, at: str) -> Iterator[str]:
        if "anyOf" in schema and not any(self._fits(value, part, at) for part in _list(schema["anyOf"])):
            yield "anyOf"
        if "oneOf" in schema and sum(self._fits(value, part, at) for part in _list(schema["oneOf"])) != 1:
            yield "oneOf"
        if "not" in schema and self._fits(value, schema["not"], at):
            yield "not"
        if "if" in schema:
            branch = "then" if self._fits(value, schema["if"], at) else "else"
            if not self._fits(value, schema.get(branch, True), at):
                yield branch

    def _items(self, value: list[object], schema: Schema, at: str) -> Iterator[str]:
        first = _list(schema.get("prefixItems", schema["items"] if isinstance(schema.get("items"), list) else []))
        rest = schema.get("additionalItems" if isinstance(schema.get("items"), list) else "items", True)
        for index, item in enumerate(value):
            yield from self.broken(item, first[index] if index < len(first) else rest, f"{at}[{index}]")
        if "contains" in schema:
            count = sum(self._fits(item, schema["contains"], at) for item in value)
            if not _number(schema.get("minContains"), 1) <= count <= _number(schema.get("maxContains"), len(value)):
                yield f"{at or 'the answer'}: contains"

    def _pattern(self, value: object, schema: Schema) -> Iterator[str]:
        if isinstance(value, str) and isinstance(pattern := schema.get("pattern"), str):
            is_there = search(pattern, value, self._patterns)
            if is_there is None:
                yield "pattern (not checked)"
            elif not is_there:
                yield "pattern"

    def _properties(self, value: dict[str, object], schema: Schema, at: str) -> Iterator[str]:
        for name, item in value.items():
            place = f"{at}.{name[:64]}" if at else name[:64]
            parts = self._parts(name, schema)
            for part in parts or [schema.get("additionalProperties", True)]:
                yield from self.broken(item, part, place)
            if "propertyNames" in schema and not self._fits(name, schema["propertyNames"], place):
                yield f"{place}: propertyNames"
        if "unevaluatedProperties" in schema:
            for name in value.keys() - self._evaluated(value, schema):
                yield from self.broken(value[name], schema["unevaluatedProperties"], f"{at}.{name[:64]}".lstrip("."))
        for name, part in _mapping(schema.get("dependentSchemas")).items():
            if name in value:
                yield from self.broken(value, part, at)

    def _parts(self, name: str, schema: Schema) -> list[object]:
        """The schemas that a property has by its name, or by a pattern."""
        named = _mapping(schema.get("properties"))
        return [*([named[name]] if name in named else []), *(
            part for pattern, part in _mapping(schema.get("patternProperties")).items()
            if search(pattern, name, self._patterns))]

    def _evaluated(self, value: dict[str, object], schema: object) -> set[str]:
        """The properties that a schema, or one that applies to the same value, says something about."""
        if not isinstance(schema, Mapping):
            return set()
        names = {name for name in value if "additionalProperties" in schema or self._parts(name, schema)}
        fitting = [part for word in ("anyOf", "oneOf") for part in _list(schema.get(word))
                   if self._fits(value, part, "")]
        if "if" in schema:
            fits = self._fits(value, schema["if"], "")
            fitting += [schema["if"], schema.get("then")] if fits else [schema.get("else")]
        for part in (*fitting, *_list(schema.get("allOf")), resolve(schema.get("$ref"), self._root)):
            names |= self._evaluated(value, part)
        return names


def _own(value: object, schema: Schema) -> Iterator[str]:
    """The keywords that the value itself breaks."""
    kinds = schema.get("type")
    if kinds is not None and not any(_is_type(value, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])):
        yield "type"
    if "enum" in schema and not any(_canonical(value) == _canonical(each) for each in _list(schema["enum"])):
        yield "enum"
    if "const" in schema and _canonical(value) != _canonical(schema["const"]):
        yield "const"
    match value:
        case bool() | None:
            return
        case int() | float():
            yield from _number_keywords(value, schema)
        case str():
            yield from _size("Length", len(value), schema)
        case list():
            yield from _size("Items", len(value), schema)
            if schema.get("uniqueItems") and len({*map(_canonical, value)}) < len(value):
                yield "uniqueItems"
        case dict():
            yield from _size("Properties", len(value), schema)
            yield from _names(value, schema)


def _size(word: str, size: int, schema: Schema) -> Iterator[str]:
    if size < _number(schema.get(f"min{word}"), 0):
        yield f"min{word}"
    if size > _number(schema.get(f"max{word}"), size):
        yield f"max{word}"


def _names(value: Mapping[str, object], schema: Schema) -> Iterator[str]:
    if any(name not in value for name in _list(schema.get("required"))):
        yield "required"
    for name, needed in _mapping(schema.get("dependentRequired")).items():
        if name in value and any(each not in value for each in _list(needed)):
            yield "dependentRequired"


def _number_keywords(value: float, schema: Schema) -> Iterator[str]:
    if value < _number(schema.get("minimum"), value):
        yield "minimum"
    if value > _number(schema.get("maximum"), value):
        yield "maximum"
    if value <= _number(schema.get("exclusiveMinimum"), -math.inf):
        yield "exclusiveMinimum"
    if value >= _number(schema.get("exclusiveMaximum"), math.inf):
        yield "exclusiveMaximum"
    step = _number(schema.get("multipleOf"), 0)
    if step > 0 and abs(value / step - round(value / step)) > 1e-9:
        yield "multipleOf"


def _is_type(value: object, kind: object) -> bool:
    match value:
        case None:
            return kind == "null"
        case bool():
            return kind == "boolean"
        case int():
            return kind in ("integer", "number")
        case float():
            return kind == "number" or kind == "integer" and value.is_integer()
        case str():
            return kind == "string"
        case list():
            return kind == "array"
    return kind == "object"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object, default: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default
