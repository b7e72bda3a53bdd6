"""JSON schemas that a grammar enforces as far as it can, and a check of the rest after the answer is there.

What forbids nothing (`uniqueItems: false`, a `format` that is an annotation) is taken out. What the grammar engine
cannot enforce is left out (the schema allows more) and named by the path of its place. A schema that is none or
that no value fits is refused with that path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from brise.errors import RequestError

Schema = Mapping[str, object]

# Keywords whose values are schemas: one, a list, or one for each name.
_ONE = ("items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else",
        "unevaluatedProperties", "unevaluatedItems")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# The engine has no way to follow them.
UNENFORCED = ("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
              "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems",
              "$dynamicRef", "$recursiveRef")
# What it may follow or not, depending on the values; tried one after the other.
_DOUBTFUL = ("oneOf", "format", "pattern", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
             "patternProperties", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
             "allOf", "anyOf", "additionalProperties", "prefixItems", "items", "properties",
             "required", "enum", "const")
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
_ANNOTATIONS = frozenset({
    "$dynamicAnchor", "$recursiveAnchor", "$comment", "$vocabulary", "examples", "contentSchema"})
_NEUTRAL: Mapping[str, tuple[object, ...]] = {  # values with which a keyword forbids nothing
    "uniqueItems": (False,), "propertyNames": (True, {}, {"type": "string"}), "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}), "not": (False, {"not": {}}), "minContains": (0,), "dependentRequired": ({},),
    "dependentSchemas": ({},), "dependencies": ({},), "then": (True, {}), "else": (True, {})}
_MAX_TRIALS = 200  # compilations of parts, about 0.2 ms each
_MAX_STEPS = 2_000  # of the check of one answer, about a microsecond each


@dataclass(frozen=True)
class SchemaKeyword:
    """A keyword that the grammar does not enforce, and the place in the schema: "properties.n", "" at the top."""

    path: str
    keyword: str

    def __str__(self) -> str:
        return f"{self.path}.{self.keyword}" if self.path else self.keyword


@dataclass(frozen=True)
class Enforceable:
    """A schema that the engine takes, and what it leaves out of the client's."""

    schema: Schema
    left_out: tuple[SchemaKeyword, ...]
    original: Schema = field(default_factory=dict)


def enforceable(schema: Schema, param: str, *, strict: bool = False) -> Enforceable:
    """The schema without what cannot be enforced; RequestError for one that is none, or `strict` and cut.

    `param` is the request's name for the schema.
    """
    from llguidance import LLMatcher  # noqa: PLC0415 - it takes 50 ms, and few requests need it

    def failure(each: object) -> str | None:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(each))
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
        return str(messages[0]) if failed else None

    cutter = _Cutter(schema, param, failure)
    cut = cutter.without_notes(schema)
    if failure(cut) is not None:
        cut = cutter.widened(cut, "")
        if cutter.left_out and not strict and (reason := failure(cut)) is not None:
            raise RequestError(f"{param} cannot be enforced, not even in part: {reason.partition('. Enable')[0][:200]}",
                               param=param, code="invalid_grammar")
    assert isinstance(cut, Mapping)
    if strict and cutter.left_out:
        first = cutter.left_out[0]
        raise RequestError(f"{param} has {first.keyword!r} at {first.path or 'its top'!r}, which cannot be enforced, "
                           "and 'strict' is true", param=param, code="invalid_grammar",
                           hint=f"without 'strict' the answer may break {str(first)!r}")
    return Enforceable(cut, tuple(cutter.left_out), schema)


@dataclass
class _Cutter:
    """One schema that is cut."""

    root: Schema
    param: str
    failure: Callable[[object], str | None]
    left_out: list[SchemaKeyword] = field(default_factory=list)
    num_trials: int = 0

    def without_notes(self, schema: object) -> object:
        """The schema without what forbids nothing."""
        if not isinstance(schema, Mapping):
            return schema
        kept = {name: value for name, value in schema.items() if not _is_note(name, value)}
        return with_parts(kept, lambda part, _: self.without_notes(part))

    def widened(self, schema: object, path: str) -> object:
        """The schema that the engine takes; parts first, so that each place loses only what is its own."""
        if not isinstance(schema, Mapping):
            return schema
        _check_form(schema, path, self.root, self.param)
        kept = {name: value for name, value in schema.items() if name not in UNENFORCED}
        self.left_out += [SchemaKeyword(path, name) for name in schema if name in UNENFORCED]
        kept = with_parts(kept, lambda part, place: self.widened(part, f"{path}.{place}" if path else place))
        reason = self._reason(kept)
        return kept if reason is None else self._without_doubtful(kept, path, reason)

    def _without_doubtful(self, schema: dict[str, object], path: str, reason: str) -> object:
        if "nsatisfiable" in reason:
            raise RequestError(f"no value fits {self.param} at {path or 'its top'!r}: {reason[:200]}", param=self.param,
                               code="invalid_grammar")
        doubtful = [name for name in _DOUBTFUL if name in schema]
        for names in (*combinations(doubtful, 1), *combinations(doubtful[:8], 2)):
            cut = _without(schema, names)
            if self._reason(cut) is None:
                self.left_out += [SchemaKeyword(path, name) for name in names]
                return cut
        self.left_out += [SchemaKeyword(path, name) for name in doubtful or ["$ref"]]
        return {name: value for name, value in schema.items() if name in ("type", "description", "$defs", "definitions")
                } if path or schema.get("type") == "object" else {"type": "object"}

    def _reason(self, schema: Mapping[str, object]) -> str | None:
        """Why the engine refuses this part, with the definitions that it may refer to."""
        self.num_trials += 1
        if self.num_trials > _MAX_TRIALS:
            raise RequestError(f"{self.param} has too many parts that cannot be enforced", param=self.param,
                               code="invalid_grammar")
        shared = {name: self.root[name] for name in ("$defs", "definitions") if name in self.root}
        plain = {name: _definitions(value) for name, value in shared.items()}
        return self.failure({**plain, **schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})


def _definitions(value: object) -> object:
    """Definitions as any value: whether they can be enforced is asked at their own place."""
    return dict.fromkeys(value, True) if isinstance(value, Mapping) else value


def _is_note(name: str, value: object) -> bool:
    """Whether the keyword forbids nothing with this value."""
    if name == "format":
        return value not in _FORMATS
    if name == "$schema":
        return not (isinstance(value, str) and "json-schema.org" in value)
    return name in _ANNOTATIONS or any(value == each and isinstance(value, bool) is isinstance(each, bool)
                                       for each in _NEUTRAL.get(name, ()))


def _without(schema: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """Without keywords; `oneOf` becomes the wider `anyOf`."""
    cut = {name: value for name, value in schema.items() if name not in names}
    if "oneOf" in names and "anyOf" not in cut:
        cut["anyOf"] = schema["oneOf"]
    return cut


def with_parts(schema: Mapping[str, object], change: Callable[[object, str], object]) -> dict[str, object]:
    """The schema with each part changed; `change` is given the part and its place."""
    out = dict(schema)
    for name, value in schema.items():
        if name in _NAMED and isinstance(value, Mapping):
            out[name] = {key: change(part, f"{name}.{key}") for key, part in value.items()}
        elif (name in _LISTS or name == "items") and isinstance(value, list):
            out[name] = [change(part, f"{name}[{index}]") for index, part in enumerate(value)]
        elif name in _ONE:
            out[name] = change(value, name)
    return out


def _check_form(schema: Schema, path: str, root: Schema, param: str) -> None:
    """RequestError for a part that is no schema."""
    for keyword, problem in _problems(schema, root):
        place = f"{path}.{keyword}" if path else keyword
        raise RequestError(f"{param} is no JSON schema: {place!r} {problem}", param=param, code="invalid_grammar")


def _problems(schema: Schema, root: Schema) -> Iterator[tuple[str, str]]:
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            yield "type", f"is {str(kind)[:40]!r}; allowed are {', '.join(sorted(_TYPES))}"
    for name in (*_NAMED, *_LISTS):
        if not isinstance(schema.get(name, {} if name in _NAMED else []), Mapping if name in _NAMED else list):
            yield name, "is no object" if name in _NAMED else "is no array"
    patterns = [("pattern", schema["pattern"])] if "pattern" in schema else []
    named = [("patternProperties", each) for each in _mapping(schema.get("patternProperties"))]
    for keyword, pattern in (*patterns, *named):
        try:
            re.compile(str(pattern)[:10_000])
        except (re.error, RecursionError, OverflowError) as error:
            yield keyword, f"has {str(pattern)[:40]!r}, which is no regular expression: {error}"
    if (ref := schema.get("$ref")) is not None and resolve(ref, root) is None:
        yield "$ref", f"is {str(ref)[:80]!r}, which is not in the schema"


def resolve(ref: object, root: Schema) -> object:
    """The part of the schema that a local reference names; None if there is none."""
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    place: object = root
    for step in ref.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, Mapping) and key in place:
            place = place[key]
        else:
            return None
    return place


def violations(value: object, schema: object, left_out: Sequence[SchemaKeyword]) -> list[str]:
    """The places in an answer that break what was left out: "n: uniqueItems". Patterns are not tried: they may hang."""
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
        self._root, self._num_steps = root, 0

    def broken(self, value: object, schema: object, at: str) -> Iterator[str]:
        self._num_steps += 1
        if self._num_steps > _MAX_STEPS:
            raise _TooLongError
        if schema is False:
            yield f"{at or 'the answer'}: not allowed"
        if not isinstance(schema, Mapping):
            return
        for keyword in (*_own(value, schema), *self._combined(value, schema, at)):
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

    def _properties(self, value: dict[str, object], schema: Schema, at: str) -> Iterator[str]:
        known = schema.get("properties")
        known = known if isinstance(known, Mapping) else {}
        has_patterns = bool(schema.get("patternProperties"))
        closed = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        is_joined = any(name in schema for name in ("allOf", "anyOf", "oneOf", "$ref", "if"))
        for name, item in value.items():
            place = f"{at}.{name[:64]}" if at else name[:64]
            if name in known:
                yield from self.broken(item, known[name], place)
            elif not has_patterns and not (is_joined and "additionalProperties" not in schema):
                yield from self.broken(item, closed, place)
            if "propertyNames" in schema and not self._fits(name, schema["propertyNames"], place):
                yield f"{place}: propertyNames"
        for name, part in _mapping(schema.get("dependentSchemas")).items():
            if name in value:
                yield from self.broken(value, part, at)


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
    if value <= _number(schema.get("exclusiveMinimum"), value - 1):
        yield "exclusiveMinimum"
    if value >= _number(schema.get("exclusiveMaximum"), value + 1):
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
