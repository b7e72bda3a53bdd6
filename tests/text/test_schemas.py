"""Schemas are enforced as far as a grammar can, and what it cannot is checked in the answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from llguidance import LLMatcher
from openai.lib._parsing._completions import type_to_response_format_param

from brise.engine.grammar import Grammars
from brise.errors import RequestError
from brise.text.inputs import Grammar
from brise.text.schema_check import violations
from brise.text.schema_references import check_levels
from brise.text.schemas import enforceable
from tests.engine.stub import VOCAB_SIZE, byte_tokenizer
from tests.text import pydantic_types
from tests.text.trie import trie
from tests.text.vocabulary import tokenizer

TINY, BYTES = tokenizer(), byte_tokenizer()
TRIE, GRAMMARS = trie(TINY), Grammars(BYTES)
TASTE = np.ones(VOCAB_SIZE)  # for ends rather than for half characters
TASTE[list(b'"}]')], TASTE[list(b'\\\n, ')], TASTE[128:256], TASTE[256:] = 40, 0.2, 0.02, 200


def of(part: dict[str, object]) -> dict[str, object]:
    return {"type": "object", "properties": {"a": part}}


@pytest.mark.parametrize("part", [
    {"type": "array", "uniqueItems": False}, {"type": "string", "format": "path"},
    {"type": "string", "format": "int64"},
    {"type": "string", "format": "google-duration", "maxLength": 12},
    {"type": "object", "propertyNames": {"type": "string"}},
    {"type": "string", "not": {"not": {}}}, {"type": "object", "unevaluatedProperties": True}, {"$comment": "x"},
    {"type": "array", "minContains": 0}, {"$schema": "https://example.com/meta", "type": "string"}])
def test_what_forbids_nothing_is_no_matter_also_if_strict(part: dict[str, object]) -> None:
    assert enforceable(of(part), "p", strict=True).left_out == ()


@pytest.mark.parametrize(("part", "keywords", "bad", "good"), [
    ({"type": "array", "uniqueItems": True}, ["uniqueItems"], [1, 1], [1, 2]),
    ({"type": "string", "not": {"const": "x"}}, ["not"], "x", "y"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["oneOf"], 1, 1.5),
    ({"type": "string", "pattern": "^(?!foo)[a-z]{2,4}$"}, ["pattern"], "food", "fod"),
    ({"type": "string", "pattern": r"^(a|b)\1$"}, ["pattern"], "ab", "bb"),
    ({"type": "object", "patternProperties": {"^a": {"minimum": 1}, "b$": {"maximum": 3}}}, ["patternProperties"],
     {"ab": 5}, {"ab": 2, "c": 9}),
    ({"type": "array", "contains": {"const": 1}}, ["contains"], [2], [2, 1]),
    ({"type": "object", "propertyNames": {"not": {"const": "x"}}}, ["propertyNames"], {"x": 1}, {"ab": 1}),
    ({"type": "object", "dependentRequired": {"x": ["y"]}}, ["dependentRequired"], {"x": 1}, {"x": 1, "y": 2}),
    ({"allOf": [{"properties": {"x": {}}}, {"required": ["x"]}], "properties": {"y": {}}, "type": "object",
      "unevaluatedProperties": False}, ["unevaluatedProperties"], {"x": 1, "z": 1}, {"x": 1, "y": 2}),
    ({"if": {"type": "string"}, "then": {"minLength": 3}}, ["if", "then"], "ab", "abc")])
def test_what_cannot_be_enforced_is_left_out_named_and_checked(
        part: dict[str, object], keywords: list[str], bad: object, good: object) -> None:
    cut = enforceable(of(part), "p")
    assert [str(each) for each in cut.left_out] == [f"properties.a.{keyword}" for keyword in keywords]
    assert [place.partition(":")[0] for place in violations({"a": bad}, of(part), cut.left_out)] != []
    assert violations({"a": good}, of(part), cut.left_out) == []
    with pytest.raises(RequestError, match=f"{keywords[0]!r} at 'properties.a'.*'strict' is true"):
        enforceable(of(part), "p", strict=True)


def test_only_the_place_itself_loses_its_keyword() -> None:
    look_ahead = {"type": "string", "pattern": "^(?!foo)[a-z]{2,4}$"}
    schema = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {
        "kids": {"type": "array", "items": {"$ref": "#/$defs/A"}, "maxItems": 3}, "x": look_ahead}, "required": ["x"]}}}
    cut = enforceable(schema, "p")
    assert [str(each) for each in cut.left_out] == ["$defs.A.properties.x.pattern"]
    look_ahead.pop("pattern")
    schema["$defs"]["A"]["additionalProperties"] = False  # type: ignore[index]
    assert cut.schema == schema


@pytest.mark.parametrize(("part", "place"), [
    ({"type": "nope"}, "properties.a.type"), ({"$ref": "http://x.y/z"}, r"properties.a.\$ref"),
    ({"$ref": "#/$defs/none"}, r"properties.a.\$ref"), ({"type": "string", "pattern": "("}, "properties.a.pattern"),
    ({"type": "object", "properties": 5}, "properties.a.properties"),
    ({"enum": "abc"}, "properties.a.enum"), ({"type": "integer", "minimum": "3"}, "properties.a.minimum"),
    ({"type": "object", "required": "x"}, "properties.a.required"), ({"$ref": "#here"}, r"properties.a.\$ref")])
def test_a_schema_that_is_none_is_refused_with_the_place(part: dict[str, object], place: str) -> None:
    with pytest.raises(RequestError, match=f"p is no JSON schema: '{place}'"):
        enforceable(of(part), "p")


REWRITTEN = [  # a schema, and texts that its grammar allows and refuses
    (of({"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1}), ['{"a":-5}', '{"a":9223372036854775807}'],
     ['{"a":9223372036854775808}', '{"a":-9223372036854775809}']),
    (of({"type": "number", "minimum": 0, "maximum": 1e308}), ['{"a":1.5}'], ['{"a":-1}']),
    (of({"type": "integer", "minimum": 0, "exclusiveMinimum": True}), ['{"a":1}'], ['{"a":0}']),
    ({"type": "object", "properties": {"a": {"type": "integer", "required": True}}}, ['{"a":1}'], ["{}"]),
    ({"type": "object", "propertyNames": {"$ref": "#/$defs/E"}, "additionalProperties": {"type": "integer"},
      "$defs": {"E": {"enum": ["x", "y"]}}}, ['{"x":1,"y":2}', "{}"], ['{"z":1}', '{"x":""}']),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]$"}, "additionalProperties": {"type": "integer"}},
     ['{"x":1}'], ['{"xx":1}', '{"1":1}']),
    ({"type": "object", "propertyNames": {"minLength": 1, "maxLength": 2}}, ['{"ab":[]}'], ['{"":1}', '{"abc":1}']),
    ({"type": "object", "propertyNames": {"format": "date"}}, ['{"2020-02-28":1}'], ['{"2020-13-01":1}']),
    ({"type": "object", "properties": {"x": {}}, "unevaluatedProperties": False}, ['{"x":1}'], ['{"z":1}']),
    (of({"type": "string", "pattern": r"^(?=.*\d)[a-z0-9]{2,4}$"}), ['{"a":"b2"}'], ['{"a":"bb"}', '{"a":"2"}']),
    (of({"type": "string", "pattern": r"\A\d{2}\Z"}), ['{"a":"12"}'], ['{"a":"123"}']),
    (of({"type": "string", "format": "uuid4"}), ['{"a":"00000000-0000-4000-8000-000000000000"}'],
     ['{"a":"00000000-0000-1000-8000-000000000000"}']),
    (of({"type": "string", "format": "ipvanyaddress"}), ['{"a":"1.2.3.4"}', '{"a":"::1"}'], ['{"a":"1.2"}']),
    (of({"type": "string", "format": "base64"}), ['{"a":"YQ=="}', '{"a":""}'], ['{"a":"Y"}']),
    (of({"type": "string", "format": "date-time"}), ['{"a":"2020-01-01T00:00:59Z"}'], ['{"a":"2020-01-01T00:00:60Z"}']),
    ({**of({"$ref": "#/$defs/Box[int]"}), "$defs": {"Box[int]": {"type": "integer"}}}, ['{"a":1}'], ['{"a":""}']),
    (of({"type": "integer"}), ['{"a":1}', "{}"], ['{"b":1}']),  # others were not spoken of
    ({**of({"type": "integer"}), "additionalProperties": True}, ['{"a":1,"b":2}'], []),
    ({**of({"type": "integer"}), "required": ["b"]}, ['{"a":1,"b":2}'], ['{"a":1}']),
    ({"allOf": [of({"type": "integer"}), {"properties": {"b": {}}, "required": ["b"]}]}, ['{"a":1,"b":2}'], ["{}"])]


@pytest.mark.parametrize(("schema", "allowed", "refused"), REWRITTEN)
def test_other_forms_of_a_schema_are_enforced_whole(schema: dict[str, object], allowed: list[str],
                                                    refused: list[str]) -> None:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(enforceable(schema, "p", strict=True).schema))
    accepted = []
    for text in (*allowed, *refused):
        matcher = LLMatcher(TRIE, grammar, log_level=0)
        accepted += [text] if matcher.consume_tokens(TINY.encode(text)) and matcher.is_accepting() else []
    assert accepted == allowed


@pytest.mark.parametrize("name", pydantic_types.TYPES)
def test_an_answer_is_what_a_class_reads_or_it_is_said(name: str) -> None:
    """The answers are random, within the grammar."""
    model = pydantic_types.model_of(name)
    schema = model.model_json_schema()
    left_out = enforceable(schema, "p").left_out
    for seed in range(3):
        text = random_answer(json.dumps(schema), seed)
        if text is None or name in pydantic_types.SAY_LESS:  # too long, or the schema says less than the class
            continue
        try:
            model.model_validate_json(text)
        except ValueError:
            assert violations(json.loads(text), schema, left_out), text


@pytest.mark.parametrize("name", pydantic_types.TYPES)
def test_a_client_that_wants_all_enforced_gets_it_but_for_sets(name: str) -> None:
    format_ = type_to_response_format_param(pydantic_types.model_of(name))
    schema = format_["json_schema"]["schema"]  # type: ignore[index]
    if name in ("set", "frozenset", "set of enum", "negative look-ahead"):
        with pytest.raises(RequestError, match="(uniqueItems|pattern)' at 'properties.value'.*'strict' is true"):
            enforceable(schema, "p", strict=True)
    else:
        assert enforceable(schema, "p", strict=True).left_out == ()


def random_answer(schema: str, seed: int) -> str | None:
    """A text that the grammar allows, with a taste for ends; None if it gets too long."""
    state, dice = GRAMMARS.constraint(Grammar("json_schema", schema)), np.random.default_rng(seed)
    out: list[int] = []
    while not state.is_complete and len(out) < 600:
        weights = TASTE * np.isfinite(state.apply(np.zeros(len(TASTE), np.float32)))
        token = int(dice.choice(len(TASTE), p=weights / weights.sum()))
        if token in BYTES.end_ids:
            break
        state.advance(token)
        out.append(token)
    return BYTES.decode(out) if len(out) < 600 else None


def test_references_in_a_circle_end() -> None:
    circle = {"type": "object", "propertyNames": {"$ref": "#/$defs/A"}, "$defs": {
        "A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}
    assert [str(each) for each in enforceable(circle, "p").left_out] == ["propertyNames"]


@pytest.mark.parametrize(("pattern", "text"), [("^(a+)+$", "a" * 60 + "!"), ("(.*)*x", "a" * 1000), ("(a?){50}a{50}$",
                                                                                                 "a" * 50)])
def test_a_pattern_that_takes_too_long_is_said(pattern: str, text: str) -> None:
    schema = of({"type": "string", "pattern": f"(?!b){pattern}"})
    assert violations({"a": text}, schema, enforceable(schema, "p").left_out) == ["a: pattern (not checked)"]


def test_the_check_of_an_answer_ends() -> None:
    endless = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "uniqueItems": True}
    cut = enforceable(of({"uniqueItems": True}), "p").left_out
    assert violations([1], endless, cut) == ["the answer was too long to check"]


@pytest.mark.parametrize("part", [
    {"properties": {f"p{i}": {} for i in range(1500)}}, {"required": [f"p{i}" for i in range(1500)]},
    {"patternProperties": {f"^p{i}$": {} for i in range(500)}}])
def test_very_many_names_are_left_out_because_the_engine_takes_too_long(part: dict[str, object]) -> None:
    cut = enforceable(of({"type": "object", **part}), "p")
    assert [str(each) for each in cut.left_out] == [f"properties.a.{next(iter(part))}"]


def chain(length: int, *, ends: bool = True) -> dict[str, object]:
    """Definitions of which each refers to the next one, and the last to nothing or to the first."""
    links = {f"d{i}": of({"$ref": f"#/$defs/d{(i + 1) % length}"}) for i in range(length)}
    return {**of({"$ref": "#/$defs/d0"}), "$defs": {**links, **({f"d{length - 1}": of({})} if ends else {})}}


@pytest.mark.parametrize("ends", [True, False])
def test_references_that_would_overflow_the_stack_of_the_engine_are_refused(ends: bool) -> None:
    assert enforceable(chain(100, ends=ends), "p").left_out == ()
    with pytest.raises(RequestError, match="p is too deep: its references lead over 1000 levels down"):
        enforceable(chain(2000, ends=ends), "p")


def test_many_definitions_beside_one_another_are_not_deep() -> None:
    flat = {f"d{i}": of({"$ref": "#/$defs/last"}) for i in range(900)}
    schema = {"type": "object", "$defs": {**flat, "last": {"type": "string"}},
              "properties": {f"p{i}": {"$ref": f"#/$defs/d{i}"} for i in range(900)}}
    check_levels(schema, "p")


def test_names_whose_references_go_in_a_circle_end() -> None:
    circle = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    enforceable({"type": "object", "propertyNames": {"$ref": "#/$defs/a"}, "$defs": circle}, "p")


def test_a_reference_by_name_is_followed() -> None:
    schema = {**of({"$ref": "#x"}), "$defs": {"a/b": {"$anchor": "x", "type": "integer"}}}
    cut = enforceable(schema, "p")
    assert cut.left_out == ()
    assert "#/$defs/a~1b" in json.dumps(cut.schema)


@pytest.mark.parametrize("required", [[[]], [{}], [None, 1]])
def test_names_that_are_none_are_no_defect(required: list[object]) -> None:
    cut = enforceable({"type": "object", "properties": {"a": {}}, "required": required}, "p")
    assert "required" in [str(each) for each in cut.left_out]


@pytest.mark.parametrize("format", [[], {}, 1])
def test_a_format_that_is_none_is_a_note(format: object) -> None:
    assert enforceable(of({"type": "string", "format": format}), "p").left_out == ()


@pytest.mark.parametrize("part", [{"const": {"a": [-2**63]}}, {"enum": ["x", 512 - 2**63, True]}])
def test_the_lowest_numbers_do_not_end_the_process(part: dict[str, object]) -> None:
    """llguidance 1.9.1 overflows its stack on them."""
    found = enforceable({"type": "object", "properties": {"n": part}}, "x")
    assert not found.left_out and str(-2**63) not in json.dumps(found.schema)
