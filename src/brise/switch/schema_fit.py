"""Checks a JSON value against a schema by its usual keywords; rare keywords are not checked.

So it finds answers that cannot be right. It never shows that an answer is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brise.evals import compare

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int, float),
    "boolean": (bool,), "null": (type(None),)}
# Limits on checks, and on checks within each other: schemas come from clients, and may refer to themselves. (For the
# same reason `pattern` is not checked: some patterns keep Python's `re` busy for ever.)
MAX_CHECKS, MAX_DEPTH = 10_000, 100


def misfit(value: object, schema: object) -> str | None:
    """Where the value breaks the schema, and how; None if it breaks no keyword that is checked."""
    return next(_Check(schema).misfits(value, schema, "", 0), None)


class _Check:
    """The check of one value against one schema, whose parts may refer to each other."""

    def __init__(self, root: object) -> None:
        self._root, self._left = root, MAX_CHECKS

    def misfits(self, value: object, schema: object, path: str, depth: int) -> Iterator[str]:
        self._left -= 1
        if schema is False:
            yield f"{path or 'the value'} is not allowed"
        if not isinstance(schema, dict) or self._left < 0 or depth > MAX_DEPTH:
            return
        yield from (f"{path or 'the value'} {problem}" for problem in _own(value, schema))
        for part in (_resolved(schema.get("$ref"), self._root), *_schemas(schema.get("allOf"))):
            yield from self.misfits(value, part, path, depth + 1)
        for name in ("anyOf", "oneOf"):
            options = _schemas(schema.get(name))
            if options and all(next(self.misfits(value, option, path, depth + 1), None) for option in options):
                yield f"{path or 'the value'} fits none of {name}"
        if isinstance(value, dict):
            yield from self._of_object(value, schema, path, depth)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.misfits(item, schema.get("items"), f"{path}[{index}]", depth + 1)

    def _of_object(self, value: Mapping[str, object], schema: Mapping[str, Any], path: str,
                   depth: int) -> Iterator[str]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        for name in _schemas(schema.get("required")):
            if name not in value:
                yield f"{_at(path, name)} is missing"
        others = True if "patternProperties" in schema else schema.get("additionalProperties")
        for name, item in value.items():
            yield from self.misfits(item, known.get(name, others), _at(path, name), depth + 1)


def _own(value: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """The keywords that concern this value only."""
    wanted = schema.get("type")
    types = wanted if isinstance(wanted, list) else [wanted] if isinstance(wanted, str) else []
    if types and not any(_is(value, name) for name in types):
        yield f"is no {' or '.join(map(str, types))}"
    if isinstance(schema.get("enum"), list) and not any(_equal(value, item) for item in schema["enum"]):
        yield "is not in the enum"
    if "const" in schema and not _equal(value, schema["const"]):
        yield "is not the constant"
    match value:
        case bool():
            return
        case int() | float():
            yield from _outside(value, schema, "minimum", "maximum", "the number")
            low, high = _number(schema.get("exclusiveMinimum")), _number(schema.get("exclusiveMaximum"))
            if (low is not None and value <= low) or (high is not None and value >= high):
                yield "is out of range"
        case str():
            yield from _outside(len(value), schema, "minLength", "maxLength", "the length")
        case list():
            yield from _outside(len(value), schema, "minItems", "maxItems", "the length")


def _outside(size: float, schema: Mapping[str, Any], least: str, most: str, what: str) -> Iterator[str]:
    low, high = _number(schema.get(least)), _number(schema.get(most))
    if low is not None and size < low:
        yield f"has {what} under {low:g}"
    if high is not None and size > high:
        yield f"has {what} over {high:g}"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is(value: object, type_: object) -> bool:
    wanted = _TYPES.get(type_) if isinstance(type_, str) else None
    if wanted is None:
        return True
    if isinstance(value, bool):
        return type_ == "boolean"
    if type_ == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, wanted)


def _equal(value: object, other: object) -> bool:
    return compare.canonical(value) == compare.canonical(other)


def _schemas(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _resolved(reference: object, root: object) -> object:
    """The part of the schema that a local reference names, or None."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    part: object = root
    for name in reference.removeprefix("#").split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(part, dict) or name not in part:
            return None
        part = part[name]
    return part


def _at(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
