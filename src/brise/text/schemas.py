"""JSON schemas that a grammar enforces as far as it can, and a check of the rest after the answer is there.

What forbids nothing (`uniqueItems: false`, a `format` that is an annotation) is taken out. What the grammar engine
cannot enforce is left out (the schema allows more) and named by the path of its place. A schema that is none or
that no value fits is refused with that path.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from threading import Lock

from brise.errors import RequestError
from brise.text.schema_forms import LISTS, NAMED, Schema, modern, resolve, with_parts
from brise.text.schema_references import check_levels

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
# The engine's time grows with the square of an object's properties and the cube of its patterns: 0.1 s for so many.
_MAX_NAMES: Mapping[str, int] = {"properties": 1000, "required": 1000, "patternProperties": 64}
_OF_PROPERTIES = (*_MAX_NAMES, "additionalProperties")
_NUM_KEPT, _KEPT_LETTERS = 256, 16_384  # of remembered schemas: some 10 MB at most
_MAX_TRIALS = 200  # compilations of parts, about 0.2 ms each


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

    given = modern(schema)
    check_levels(given, param)
    cutter = _Cutter(given, param, failure)
    cut = cutter.bounded(cutter.without_notes(given), "")
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


class SchemaCache:
    """Remembers what was made of the last schemas, because a workflow sends the same few. Safe to use from several
    threads. Schemas of over `_KEPT_LETTERS` are not kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bool], Enforceable] = OrderedDict()
        self._lock = Lock()

    def enforceable(self, schema: Schema, param: str, *, strict: bool = False) -> Enforceable:
        """As the function."""
        key = json.dumps(schema), strict
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = enforceable(schema, param, strict=strict)
        if len(key[0]) <= _KEPT_LETTERS:
            with self._lock:
                self._kept[key] = made
                if len(self._kept) > _NUM_KEPT:
                    self._kept.popitem(last=False)
        return made


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

    def bounded(self, schema: object, path: str) -> object:
        """The schema without the properties of objects that have very many."""
        if not isinstance(schema, Mapping):
            return schema
        if any(isinstance(each := schema.get(name), Mapping | list) and len(each) > most
               for name, most in _MAX_NAMES.items()):
            self.left_out += [SchemaKeyword(path, name) for name in _MAX_NAMES if name in schema]
            schema = {name: value for name, value in schema.items() if name not in _OF_PROPERTIES}
        return with_parts(schema, lambda part, place: self.bounded(part, f"{path}.{place}" if path else place))

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
        return not isinstance(value, str) or value not in _FORMATS
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
    for name in (*NAMED, *LISTS):
        if not isinstance(schema.get(name, {} if name in NAMED else []), Mapping if name in NAMED else list):
            yield name, "is no object" if name in NAMED else "is no array"
    patterns = [("pattern", schema["pattern"])] if "pattern" in schema else []
    named = [("patternProperties", each) for each in _mapping(schema.get("patternProperties"))]
    for keyword, pattern in (*patterns, *named):
        if (why := _not_a_pattern(str(pattern)[:10_000])) is not None:
            yield keyword, f"has {str(pattern)[:40]!r}, which is no regular expression: {why}"
    yield from _wrong_values(schema)
    if (ref := schema.get("$ref")) is not None and resolve(ref, root) is None:
        yield "$ref", f"is {str(ref)[:80]!r}, which is not in the schema"


def _not_a_pattern(pattern: str) -> str | None:
    """Why it is no regular expression, neither of JavaScript nor of Python."""
    try:
        re.compile(_JAVASCRIPT.sub(lambda match: _PYTHON.get(match[0][:3], "x"), pattern))
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


# What JavaScript writes otherwise than Python: \\p{L}, \\u{1F600}, \\cA, \\k<name>, (?<name>...), [^].
_JAVASCRIPT = re.compile(r"\\[pPu]\{[^{}]*\}|\\c[A-Za-z]|\\k<\w+>|\(\?<(?![=!])\w+>|\[\^\]")
_PYTHON: Mapping[str, str] = {"(?<": "(", "[^]": "."}


def _wrong_values(schema: Schema) -> Iterator[tuple[str, str]]:
    """Keywords whose values are of another type."""
    for names, kind, what in _VALUES:
        for name in names:
            if name in schema and (not isinstance(schema[name], kind) or isinstance(schema[name], bool)):
                yield name, f"is {str(schema[name])[:40]!r}, which is no {what}"


_VALUES: Sequence[tuple[Sequence[str], type | tuple[type, ...], str]] = (
    (("required", "enum"), list, "array"), (("pattern", "format", "$ref"), str, "string"),
    (("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float), "number"),
    (("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), (int, float), "number"))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
