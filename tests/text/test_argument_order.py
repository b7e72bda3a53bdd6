"""Arguments come in the order of the schema: nothing is lost, and what cannot be ordered stays as it is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.text.argument_order import ArgumentOrder, with_ordered_arguments

PLACE = {"type": "object", "properties": {"city": {}, "zip": {}}}
SCHEMA = {"type": "object", "$defs": {"place": PLACE}, "properties": {
    "who": {"type": "string"}, "from": PLACE, "stops": {"type": "array", "items": {"$ref": "#/$defs/place"}},
    "to": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]}}}


def names(value: Any) -> list[str]:
    return list(value)


def test_names_come_as_in_the_schema_in_every_object() -> None:
    value = {"x": {"b": 1, "a": 2}, "to": {"zip": 1, "city": 2}, "stops": [{"zip": 3, "city": 4}, 5],
             "from": {"more": 0, "zip": 6, "city": 7}, "who": "anna"}
    ordered: Any = ArgumentOrder(SCHEMA).of(value)  # type: ignore[arg-type]
    assert ordered == value
    assert names(ordered) == ["who", "from", "stops", "to", "x"]
    assert names(ordered["from"]) == ["city", "zip", "more"]
    assert [names(ordered["to"]), names(ordered["stops"][0])] == [["city", "zip"]] * 2
    assert names(ordered["x"]) == ["b", "a"], "nothing is known of it"


@pytest.mark.parametrize(("text", "expected"), [
    ('{"who": "a",  "from": {}}', '{"who": "a",  "from": {}}'),
    ('{"from": {}, "who": "é"}', '{"who": "é", "from": {}}'),
    ("no JSON", "no JSON"), ("[1]", "[1]"), ('{"from": 1, "who": 2, "who": 3}', '{"from": 1, "who": 2, "who": 3}'),
    ('{"from": NaN, "who": 2}', '{"from": NaN, "who": 2}'), ('{"from": 1e999, "who": 2}', '{"from": 1e999, "who": 2}'),
    ("[" * 100_000, "[" * 100_000), ('{"from": "\ud800", "who": 1}', '{"from": "\ud800", "who": 1}')])
def test_text_stays_where_nothing_moves_or_nothing_may(text: str, expected: str) -> None:
    assert ArgumentOrder(SCHEMA).of_text(text) == expected


@pytest.mark.parametrize("schema", [None, True, [], {"properties": 3}, {"$ref": 3}, {"$ref": "#/$defs/none"},
                                    {"$ref": "https://x/y"}, {"anyOf": 3}, {"properties": {"who": {"$ref": "#"}}}])
def test_any_schema_is_taken(schema: object) -> None:
    value = {"b": 1, "who": {"a": [1]}}
    assert ArgumentOrder(schema).of(value) == value  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(["who", "from", "stops", "to", "x", "y"]), st.integers()))
def test_nothing_is_lost(value: dict[str, int]) -> None:
    ordered = ArgumentOrder(SCHEMA).of(value)  # type: ignore[arg-type]
    assert ordered == value
    assert names(ordered) == sorted(value, key=lambda name: [*SCHEMA["properties"], "x", "y"].index(name)) or (  # type: ignore[misc]
        "x" in value and "y" in value)


def test_calls_of_assistants_are_ordered() -> None:
    tool = {"type": "function", "function": {"name": "go", "parameters": SCHEMA}}
    arguments = {"to": None, "who": "a"}

    def calls(given: object, name: str = "go") -> dict[str, object]:
        return {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": name, "arguments": given}}]}

    question = {"role": "user", "content": "go"}
    as_object, as_text, other, same = with_ordered_arguments(
        [calls(arguments), calls(json.dumps(arguments)), calls(arguments, "stay"), question], [tool])
    assert names(as_object["tool_calls"][0]["function"]["arguments"]) == ["who", "to"]  # type: ignore[index]
    assert as_text == calls('{"who": "a", "to": null}')
    assert names(other["tool_calls"][0]["function"]["arguments"]) == ["to", "who"]  # type: ignore[index]
    assert same is question


def test_time_is_in_proportion_to_the_arguments() -> None:
    properties = {f"p{number}": {} for number in range(20_000)}
    schema = {"properties": {"list": {"items": {"anyOf": [{"properties": properties}] * 1000}}}}
    value = {"list": [{"p9": 1, "p8": 2}] * 20_000}
    start = time.process_time()
    ordered: Any = ArgumentOrder(schema).of(value)  # type: ignore[arg-type]
    assert names(ordered["list"][-1]) == ["p8", "p9"]
    assert time.process_time() - start < 5, "20,000 names for each of 20,000 objects would be minutes"
