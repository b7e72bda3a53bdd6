"""Lark rules for JSON objects whose properties may come in any order, each at most once.

llguidance's JSON schemas demand the order of `properties`, and models that learned their calls elsewhere have another.
Its rules may have a parameter of 64 bits: here a bit for each property says that it was there. An object of the
properties a (required) and b becomes

    o: "{" o_first::0 "}"
    o_first::_ : o_0 o_more::set_bit(0) | o_1 o_more::set_bit(1)
    o_more::_ : "" %if is_ones([0:1]) | ", " o_0 o_more::set_bit(0) %if bit_clear(0) | ", " o_1 ... | ", " o_other ...
    o_0: "\\"a\\": " %json {...}

Names that the schema does not have follow when all required ones are there, where the schema allows them. An object
that uses more of JSON Schema than this keeps the order of its schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

_KEYWORDS = frozenset({
    "type", "properties", "required", "additionalProperties", "x-guidance", "$defs", "definitions", "title",
    "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment"})
_DEFINITIONS = ("$defs", "definitions")
_REFERENCE = re.compile(r"#/(?:\$defs|definitions)/[^/]+")
_MAX_PROPERTIES = 64  # bits of a parameter
_MAX_DEPTH = 4
_MAX_COPIED = 1 << 16  # characters: definitions are repeated for each property that refers to one
_OTHER_NAME = r'/"[^"\\\x00-\x1F]*"/'  # without escapes, which could spell a known name in another way


class AnyOrder:
    """The rules of one schema, which is that of an object. `spacing` is llguidance's `x-guidance` for every part."""

    def __init__(self, schema: Mapping[str, object], spacing: Mapping[str, object]) -> None:
        self._spacing = spacing
        self._separator, self._colon = str(spacing["item_separator"]), str(spacing["key_separator"])
        self._definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
        self._is_possible = self._refers_to_definitions(schema)
        self._schema = schema

    def rules(self, name: str) -> tuple[str, list[str]]:
        """What stands for the object in a rule, and the rules that it needs, whose names begin with `name`."""
        if not self._is_possible:
            return self._json(self._schema), []
        return self._value(self._schema, name, 1)

    def _value(self, schema: object, name: str, depth: int) -> tuple[str, list[str]]:
        if depth > _MAX_DEPTH or not isinstance(schema, Mapping) or not _is_plain(schema):
            return self._json(schema), []
        properties, listed = schema["properties"], schema.get("required") or ()
        assert isinstance(properties, Mapping) and isinstance(listed, Sequence)
        required = set(listed)
        names = sorted(properties, key=lambda each: each not in required)  # the required ones have the first bits
        return name, list(self._object(schema, name, names, len(required), depth))

    def _object(self, schema: Mapping[str, object], name: str, names: Sequence[str], num_required: int,
                depth: int) -> Iterator[str]:
        properties, others = schema["properties"], schema.get("additionalProperties", True)
        assert isinstance(properties, Mapping)
        enough = f" %if is_ones([0:{num_required}])" if num_required else ""
        bits = range(len(names))
        first = [f"{name}_{bit} {name}_more::set_bit({bit})" for bit in bits]
        more = [f'""{enough}', *(f"{json.dumps(self._separator)} {each} %if bit_clear({bit})"
                                 for bit, each in enumerate(first))]
        if others is not False:
            other = f"{name}_other {name}_more::_"
            first += [] if num_required else [other]
            more.append(f"{json.dumps(self._separator)} {other}{enough}")
            value, rules = self._value(others, f"{name}_others", depth + 1)
            known = " | ".join(json.dumps(_quoted(each)) for each in names)
            yield f"{name}_other: {name.upper()}_NAME {json.dumps(self._colon)} {value}"
            yield f"{name.upper()}_NAME: {_OTHER_NAME} & ~({known})"
            yield from rules
        empty = "" if num_required else '"{}" | '
        yield f'{name}: {empty}"{{" {name}_first::0 "}}"'
        yield f"{name}_first::_ : {' | '.join(first)}"
        yield f"{name}_more::_ : {' | '.join(more)}"
        for bit, each in enumerate(names):
            value, rules = self._value(properties[each], f"{name}_{bit}v", depth + 1)
            yield f"{name}_{bit}: {json.dumps(_quoted(each) + self._colon)} {value}"
            yield from rules

    def _json(self, schema: object) -> str:
        whole: dict[str, object] = dict(schema) if isinstance(schema, Mapping) else {}
        if self._definitions and _refers(whole):
            whole |= self._definitions
        return f"%json {json.dumps({**whole, 'x-guidance': dict(self._spacing)})}"

    def _refers_to_definitions(self, schema: Mapping[str, object]) -> bool:
        """Whether every reference is to a definition, and few enough are copied."""
        references = list(_references(schema))
        if not all(isinstance(each, str) and _REFERENCE.fullmatch(each) for each in references):
            return False
        return len(references) * len(json.dumps(self._definitions)) <= _MAX_COPIED


def _is_plain(schema: Mapping[str, object]) -> bool:
    """Whether rules can say all that this schema of an object says."""
    properties, required = schema.get("properties"), schema.get("required") or ()
    return (schema.get("type") == "object" and schema.keys() <= _KEYWORDS and isinstance(properties, Mapping)
            and 1 <= len(properties) <= _MAX_PROPERTIES and False not in properties.values()
            and isinstance(required, Sequence) and set(required) <= properties.keys()
            and isinstance(schema.get("additionalProperties", True), bool | Mapping))


def _refers(schema: object) -> bool:
    return next(_references(schema), None) is not None


def _references(value: object) -> Iterator[object]:
    """What any `$ref` in it says; also a property of that name, which is taken for one."""
    match value:
        case Mapping():
            for key, item in value.items():
                if key in ("$ref", "$dynamicRef", "$recursiveRef"):
                    yield item
                yield from _references(item)
        case list() | tuple():
            for item in value:
                yield from _references(item)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
