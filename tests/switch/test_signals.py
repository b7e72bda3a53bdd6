"""Signals of confidence: what cannot be right is seen, and log-probabilities become numbers one can rank by."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from brise.engine.request import TokenLogprob
from brise.switch import novelty, schema_fit, signals

WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"], "additionalProperties": False}}}


def fields(text: str = "weather in Ulm please", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def called(name: str, arguments: object) -> dict[str, Any]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    message = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": name, "arguments": written}}]}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}


def said(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def token(text: str, logprob: float, rival: float = -10.0) -> TokenLogprob:
    return TokenLogprob(1, text.encode(), logprob, ((1, text.encode(), logprob), (2, b"x", rival)))


@pytest.mark.parametrize(("answer", "asked", "is_vetoed"), [
    (called("weather", {"city": "Ulm"}), fields(tools=[WEATHER]), 0),
    (called("weather", {"city": "Ulm", "unit": "C"}), fields(tools=[WEATHER]), 0),
    (called("weather", {"city": "Ulm", "unit": "K"}), fields(tools=[WEATHER]), 1),
    (called("weather", {}), fields(tools=[WEATHER]), 1),
    (called("weather", {"city": 3}), fields(tools=[WEATHER]), 1),
    (called("weather", {"city": "Ulm", "day": 1}), fields(tools=[WEATHER]), 1),
    (called("weather", '{"city": '), fields(tools=[WEATHER]), 1),
    (called("stocks", {"city": "Ulm"}), fields(tools=[WEATHER]), 1),
    (said("no idea"), fields(tools=[WEATHER]), 0),
    (said("no idea"), fields(tools=[WEATHER], tool_choice="required"), 1),
    (said("cut", finish="length"), fields(), 1),
    (said("  "), fields(), 1),
    (said("not JSON"), fields(response_format={"type": "json_object"}), 1),
    (said('{"a": 1}'), fields(response_format={"type": "json_object"}), 0),
    (said('{"a": 1}'), fields(response_format={"type": "json_schema", "json_schema": {
        "name": "s", "schema": {"properties": {"a": {"type": "string"}}}}}), 1),
    ({"error": {}}, fields(), 1)])
def test_answers_that_cannot_be_right_are_vetoed(answer: dict[str, Any], asked: dict[str, Any],
                                                 is_vetoed: int) -> None:
    assert signals.measure(asked, answer)["veto"] == is_vetoed


def test_values_of_a_call_are_looked_for_in_the_conversation() -> None:
    def absent(arguments: dict[str, Any]) -> float | None:
        return signals.measure(fields(tools=[WEATHER]), called("weather", arguments)).get("absent")
    assert absent({"city": "ulm"}) == 0 and absent({"city": "Bonn"}) == 1
    assert absent({"city": "Ulm", "day": "Sunday"}) == 0.5
    assert absent({"now": True}) is None, "yes and no are not said in so many words"
    written = said('{"name": "weather", "arguments": {"city": "Bonn"}}')
    assert signals.measure(fields(), written)["absent"] == 1, "a call may be written as text"


def test_numbers_of_the_tokens() -> None:
    found = signals.measure(fields(), said("a b"), [token("a", -0.1), token(" b", -0.5, rival=-1.0)])
    assert found["logprob"] == pytest.approx(-0.6) and found["mean"] == pytest.approx(-0.3)
    assert found["least"] == -0.5 and found["margin"] == 0.5 and found["length"] == math.log(2)
    assert found["mean_margin"] == pytest.approx((9.9 + 0.5) / 2) and found["least_field"] == pytest.approx(-0.6)
    assert "logprob" not in signals.measure(fields(), said("a b"))
    unbounded = signals.measure(fields(), said("a"), [TokenLogprob(1, b"a", -math.inf)])
    assert all(math.isfinite(value) for value in unbounded.values())


def test_the_least_sure_field_of_a_json_answer() -> None:
    spelled = [("{", -1.0), ('"city"', -2.0), (": ", -3.0), ('"U', -0.2), ('lm"', -0.3), (', "n": ', -4.0),
               ("12", -0.1), ("}", -5.0)]
    found = signals.measure(fields(), said('{"city": "Ulm", "n": 12}'), [token(*piece) for piece in spelled])
    assert found["least_field"] == pytest.approx(-0.5), "names of fields and brackets are no values"
    call = [("weather", -0.9), ("{", -0.1), ('"city": ', 0.0), ('"Ulm"', -0.2), ("}", 0.0)]
    found = signals.measure(fields(tools=[WEATHER]), called("weather", {"city": "Ulm"}), [token(*p) for p in call])
    assert found["least_field"] == pytest.approx(-1.0), "the name of the function is a choice, too"


def test_values_are_found_in_any_text() -> None:
    text = b'say [{"a": "x\\"y", "b": [1, true, null], "c": {"d": -2.5e3}}] "out" and {"e": "cut'
    assert [text[start:end] for start, end in signals.spans(text)] == [
        b'"x\\"y"', b"1", b"true", b"null", b"-2.5e3"]
    assert signals.spans(b"") == signals.spans(b"}}]]") == []


def test_schemas() -> None:
    schema = {"$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "type": "object",
              "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                             "c": {"type": "array", "items": {"type": "string", "minLength": 2}, "maxItems": 2}}}
    for good in ({"a": 3}, {"b": None}, {"b": "s"}, {"c": ["xa", "xb"]}, {"a": 2.0}):
        assert schema_fit.misfit(good, schema) is None
    for bad in ({"a": 10}, {"a": True}, {"b": 1}, {"c": ["a"]}, {"c": ["xx"] * 3}, [], None):
        assert schema_fit.misfit(bad, schema) is not None
    assert schema_fit.misfit({"a": 0}, schema) == "a has the number under 1"
    assert schema_fit.misfit(1, {"$ref": "#"}) is None, "a schema that refers to itself ends"
    assert schema_fit.misfit(1, {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}]}) is None


def test_distance_to_what_is_known() -> None:
    known = [f"play song number {number} on the radio" for number in range(200)]
    centres = novelty.unpack(novelty.cover(known))
    near = novelty.novelty("play song number 77 on the radio", centres)
    far = novelty.novelty("reset my password", centres)
    assert near < 0.25 < 0.7 < far
    assert len(centres) <= novelty.MAX_CENTRES and novelty.novelty("", centres) == 1
