"""Schemas are enforced as far as a grammar can, and what it cannot is checked in the answer."""

from __future__ import annotations

import pytest

from brise.errors import RequestError
from brise.text.schemas import enforceable, violations


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
    ({"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1}, ["minimum"], -2**64, 1),
    ({"type": "array", "contains": {"const": 1}}, ["contains"], [2], [2, 1]),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, ["propertyNames"], {"abc": 1}, {"ab": 1}),
    ({"type": "object", "dependentRequired": {"x": ["y"]}}, ["dependentRequired"], {"x": 1}, {"x": 1, "y": 2}),
    ({"type": "object", "properties": {"x": {}}, "unevaluatedProperties": False}, ["unevaluatedProperties"], {"z": 1},
     {"x": 1}),
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
    assert cut.schema == schema


@pytest.mark.parametrize(("part", "place"), [
    ({"type": "nope"}, "properties.a.type"), ({"$ref": "http://x.y/z"}, r"properties.a.\$ref"),
    ({"$ref": "#/$defs/none"}, r"properties.a.\$ref"), ({"type": "string", "pattern": "("}, "properties.a.pattern"),
    ({"type": "object", "properties": 5}, "properties.a.properties")])
def test_a_schema_that_is_none_is_refused_with_the_place(part: dict[str, object], place: str) -> None:
    with pytest.raises(RequestError, match=f"p is no JSON schema: '{place}'"):
        enforceable(of(part), "p")


def test_the_check_of_an_answer_ends() -> None:
    endless = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "uniqueItems": True}
    cut = enforceable(of({"uniqueItems": True}), "p").left_out
    assert violations([1], endless, cut) == ["the answer was too long to check"]
