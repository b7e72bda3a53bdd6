"""Schemas in older and other forms, as the grammar engine reads them.

What is rewritten means the same, or allows less where no answer that people expect is lost: an object that names its
properties and does not say whether there may be others has no others, and bounds are no wider than the engine counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote, unquote

Schema = Mapping[str, object]

# Keywords whose values are schemas: one, a list, or one for each name.
ONE = ("items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else",
       "unevaluatedProperties", "unevaluatedItems")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# What applies to the same value as the schema itself.
_JOINED = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "$recursiveRef", "if", "dependentSchemas", "not")
_ASKED = ("not", "if", "contains")  # of a value, which need not fit: a narrower part there would allow more
_OPEN = ("additionalProperties", "unevaluatedProperties", "propertyNames", "dependentRequired",
         "dependencies")
_HEX, _BYTE = "[0-9a-f]", r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_BASE64 = r"^(?:[{0}]{{4}})*(?:[{0}]{{2}}(?:==)|[{0}]{{3}}=)?$"
_FORMATS: Mapping[str, str] = {  # the patterns of formats that the engine does not know
    **{f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
       for version in range(1, 9)},
    "base64": _BASE64.format("A-Za-z0-9+/"), "byte": _BASE64.format("A-Za-z0-9+/"),
    "base64url": _BASE64.format("A-Za-z0-9_-"), **dict.fromkeys(
        ("ipv4network", "ipv4interface"), rf"^(?:{_BYTE}\.){{3}}{_BYTE}(?:/(?:[0-9]|[12][0-9]|3[0-2]))?$")}
# The engine's own formats have leap seconds and a year 0, which no library reads.
_YEAR = r"(?:[1-9]\d{3}|\d[1-9]\d{2}|\d{2}[1-9]\d|\d{3}[1-9])"
_NARROWER: Mapping[str, str] = {"date": f"^{_YEAR}", "date-time": f"^{_YEAR}.{{13}}[0-5]", "time": "^.{6}[0-5]"}
_DATE, _TIME = r"[12]\d{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])", r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d"
_NAME_FORMATS: Mapping[str, str] = {  # patterns of names, which can have no format
    **_FORMATS, "uuid": f"^{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$", "date": f"^{_DATE}$", "time": f"^{_TIME}Z$",
    "date-time": f"^{_DATE}T{_TIME}Z$", "ipv4": rf"^(?:{_BYTE}\.){{3}}{_BYTE}$"}
_MAX_NAMES, _MAX_REFERENCES = 64, 4
_LEAST, _MOST_FLOAT = 1024 - 2**63, 1e18  # beyond them the engine makes no expression for a range
_LOOK_AHEADS = re.compile(r"\^(?:\(\?=([^()]*)\))+")


def modern(schema: Schema) -> Schema:
    """The schema in the form that the engine reads best."""
    anchors = _anchors(schema)
    rewritten = _rewritten(_by_pointer(schema, anchors) if anchors else schema, schema)
    assert isinstance(rewritten, Mapping)
    return _closed(rewritten) if all(map(_may_be_closed, _parts(rewritten))) else rewritten


def with_parts(schema: Schema, change: Callable[[object, str], object]) -> dict[str, object]:
    """The schema with each part changed; `change` is given the part and its place."""
    out = dict(schema)
    for name, value in schema.items():
        if name in NAMED and isinstance(value, Mapping):
            out[name] = {key: change(part, f"{name}.{key}") for key, part in value.items()}
        elif (name in LISTS or name == "items") and isinstance(value, list):
            out[name] = [change(part, f"{name}[{index}]") for index, part in enumerate(value)]
        elif name in ONE:
            out[name] = change(value, name)
    return out


def resolve(ref: object, root: Schema) -> object:
    """The part of the schema that a local reference names; None if there is none."""
    own = root.get("$id")
    if isinstance(ref, str) and isinstance(own, str) and own:
        ref = ref.removeprefix(own)
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    if ref[1:] and not ref.startswith("#/"):
        return next((part for part in _parts(root) if part.get("$anchor") == ref[1:]), None)
    place: object = root
    for step in ref.removeprefix("#").split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, Mapping) and key in place:
            place = place[key]
        else:
            return None
    return place


def _anchors(root: Schema) -> dict[str, str]:
    """The pointers to the parts that have a name of their own."""
    found, waiting = dict[str, str](), [(root, "#")]
    while waiting:
        part, at = waiting.pop()
        if isinstance(anchor := part.get("$anchor"), str):
            found.setdefault(anchor, at)
        for name, value in part.items():
            if (name in LISTS or name == "items") and isinstance(value, list):
                waiting += [(each, f"{at}/{name}/{index}") for index, each in enumerate(value)
                            if isinstance(each, Mapping)]
            elif name in NAMED and isinstance(value, Mapping):
                waiting += [(each, f"{at}/{name}/{_step(key)}") for key, each in value.items()
                            if isinstance(each, Mapping)]
            elif name in ONE and isinstance(value, Mapping):
                waiting.append((value, f"{at}/{name}"))
    return found


def _step(name: str) -> str:
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~$!&'()*+,;=:@?")


def _by_pointer(schema: object, anchors: Mapping[str, str]) -> object:
    """The schema with pointers in place of references by name: to look for a name takes as long as the schema is."""
    if not isinstance(schema, Mapping):
        return schema
    out = with_parts(schema, lambda part, _: _by_pointer(part, anchors))
    ref = out.get("$ref")
    if isinstance(ref, str) and ref[:1] == "#" and ref[1:] in anchors:
        out["$ref"] = anchors[ref[1:]]
    return out


def _parts(schema: object) -> Iterator[Schema]:
    """The schema and all parts of it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            with_parts(part, lambda inner, _: waiting.append(inner))


def _rewritten(schema: object, root: Schema) -> object:
    if not isinstance(schema, Mapping):
        return schema
    out = with_parts(schema, lambda part, _: _rewritten(part, root))
    for change in (_required, _bounds, _values, _reference, _pattern, _format, _unevaluated):
        change(out)
    _names(out, root)
    return out


def _required(out: dict[str, object]) -> None:
    """`required: true` in a property is an old form, and a common mistake."""
    properties = out.get("properties")
    if not isinstance(properties, dict):
        return
    names = [name for name, part in properties.items() if isinstance(part, dict) and isinstance(
        part.get("required"), bool) and part.pop("required")]
    if names and isinstance(out.get("required", []), list):
        own = out.get("required")
        out["required"] = list(dict.fromkeys([*(own if isinstance(own, list) else []), *names]))


def _bounds(out: dict[str, object]) -> None:
    """Draft 4 has flags beside the bounds; bounds of 64 bits are no wider than the engine counts."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(out.get(exclusive), bool):
            is_exclusive = out.pop(exclusive)
            if is_exclusive and bound in out:
                out[exclusive] = out.pop(bound)
    is_integer = out.get("type") == "integer"
    least, most = (_LEAST, math.inf) if is_integer else (-_MOST_FLOAT, _MOST_FLOAT)
    for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        value = out.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= most:
            out[name] = least if value < 0 else most


def _values(out: dict[str, object]) -> None:
    """On the lowest whole numbers of 64 bits in `const` and `enum` the engine overflows its stack: floats are safe."""
    for name in ("const", "enum"):
        if name in out:
            out[name] = _as_float(out[name])


def _as_float(value: object) -> object:
    """The value with these numbers as floats."""
    match value:
        case dict():
            return {name: _as_float(item) for name, item in value.items()}
        case list():
            return [_as_float(item) for item in value]
        case int() if not isinstance(value, bool) and -2**63 <= value < _LEAST:
            return float(value)
        case _:
            return value


def _reference(out: dict[str, object]) -> None:
    """A name such as Box[int] is written in a reference as URIs have it."""
    ref = out.get("$ref")
    if isinstance(ref, str) and ref.startswith("#/"):
        out["$ref"] = quote(ref, safe="#/%~$!&'()*+,;=:@?")


def _pattern(out: dict[str, object]) -> None:
    r"""Python's \A and \Z are ^ and $; what a pattern looks ahead for at its start is a pattern of its own."""
    pattern = out.get("pattern")
    if not isinstance(pattern, str):
        return
    pattern = re.sub(r"\\(\\|[AZ])", lambda match: {"A": "^", "Z": "$"}.get(match[1], match[0]), pattern)
    out["pattern"] = pattern
    ahead = _LOOK_AHEADS.match(pattern)
    if ahead is None or "|" in pattern or "allOf" in out:
        return
    wanted = [f"^{each}" for each in re.findall(r"\(\?=([^()]*)\)", ahead[0])]
    out["pattern"] = f"^{pattern[ahead.end():]}"
    out["allOf"] = [{"type": "string", "pattern": each} for each in wanted]


def _format(out: dict[str, object]) -> None:
    match out.get("format"):
        case "ipvanyaddress" if "anyOf" not in out:
            del out["format"]
            out["anyOf"] = [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]
        case str(name) if out.get("type") == "string" and "pattern" not in out:
            if name in _FORMATS:
                del out["format"]
                out["pattern"] = _FORMATS[name]
            elif name in _NARROWER:
                out["pattern"] = _NARROWER[name]


def _unevaluated(out: dict[str, object]) -> None:
    """Alone it says what additionalProperties does."""
    if "unevaluatedProperties" in out and not any(name in out for name in _JOINED):
        value = out.pop("unevaluatedProperties")
        out.setdefault("additionalProperties", value)


def _names(out: dict[str, object], root: Schema) -> None:
    """The names that a mapping may have become its properties, or the pattern of them."""
    names = out.get("propertyNames")
    for _ in range(_MAX_REFERENCES):
        if isinstance(names, Mapping) and set(names) <= {"$ref", "title", "description"} and "$ref" in names:
            names = resolve(names["$ref"], root)
    if not isinstance(names, Mapping) or any(word in out for word in ("properties", "patternProperties", *_JOINED)):
        return
    value = out.get("additionalProperties", True)
    match {key: each for key, each in names.items() if key not in ("type", "title", "description", "examples")}:
        case {"enum": list(known), **others} if not others and len(known) <= _MAX_NAMES:
            out["properties"] = {name: value for name in known if isinstance(name, str)}
        case {"const": str(name), **others} if not others:
            out["properties"] = {name: value}
        case {"pattern": str(pattern), **others} if not others:
            out["patternProperties"] = {pattern: value}
        case {"format": str(format), **others} if not others and format in _NAME_FORMATS:
            out["patternProperties"] = {_NAME_FORMATS[format]: value}
        case {**limits} if limits and limits.keys() <= {"minLength", "maxLength"}:
            out["patternProperties"] = {
                rf"^[\s\S]{{{limits.get('minLength', 0)},{limits.get('maxLength', '')}}}$": value}
        case _:
            return
    del out["propertyNames"]
    out["additionalProperties"] = False


def _may_be_closed(schema: Schema) -> bool:
    """Whether no part of the schema speaks of properties together with another one."""
    joins = [name for name in _JOINED if name in schema]
    several = schema.get("allOf")
    return not (isinstance(several, list) and len(several) > 1 or joins and "properties" in schema)


def _closed(schema: object) -> Schema:
    """The schema without other properties than those that are named."""
    assert isinstance(schema, Mapping)
    out = with_parts(schema, lambda part, place: _closed(part) if isinstance(part, Mapping) and not place.startswith(
        _ASKED) else part)
    properties, required, least = out.get("properties", {}), out.get("required", []), out.get("minProperties", 0)
    has_patterns = bool(out.get("patternProperties"))
    if (isinstance(properties, Mapping) and (properties or has_patterns) and not any(name in out for name in _OPEN)
            and isinstance(required, list) and all(isinstance(name, str) and name in properties for name in required)
            and isinstance(least, int | float) and (least <= len(properties) or has_patterns)):
        out["additionalProperties"] = False
    return out
