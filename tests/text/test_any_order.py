"""Objects whose properties come in any order: everything that the schema allows, once, and nothing else."""

from __future__ import annotations

import json
import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from brise.text.any_order import AnyOrder
from brise.text.tool_grammar import SPACING

BYTES = LLTokenizer("byte")
TEXT = {"type": "string"}


def matcher(schema: dict[str, Any]) -> LLMatcher:
    value, rules = AnyOrder(schema, SPACING).rules("object")
    made = LLMatcher(BYTES, LLMatcher.grammar_from_lark("\n".join([f"start: {value}", *rules]) + "\n"), log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def accepts(made: LLMatcher, text: str) -> bool:
    data, state = list(text.encode()), made.deep_copy()
    return state.try_consume_tokens(data) == len(data) and state.is_accepting()


def object_of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {}), **more}


def test_every_order_is_accepted_and_no_name_twice() -> None:
    made = matcher(object_of({"a": TEXT, "b": {"type": "integer"}, "c": {"enum": ["x"]}}, "b"))
    values = {"a": '"hi"', "b": "3", "c": '"x"'}
    for names in permutations(values):
        assert accepts(made, "{" + ", ".join(f'"{name}": {values[name]}' for name in names) + "}")
    assert accepts(made, '{"b": 3}') and accepts(made, '{"c": "x", "b": 3}')
    assert not accepts(made, '{"a": "hi"}'), "b is required"
    assert not accepts(made, '{"b": 3, "b": 4}') and not accepts(made, '{"b": 3, "a": "x", "a": "y"}')
    assert not accepts(made, '{"b": 3,"a": "x"}') and not accepts(made, '{"b":3}'), "the spacing is fixed"


@pytest.mark.parametrize(("more", "text", "allowed"), [
    ({}, '{"a": "x", "other": [1, {"b": null}]}', True), ({}, '{"other": 1, "a": "x"}', False),
    ({"additionalProperties": False}, '{"a": "x", "other": 1}', False),
    ({"additionalProperties": {"type": "integer"}}, '{"a": "x", "o": 1, "p": 2}', True),
    ({"additionalProperties": {"type": "integer"}}, '{"a": "x", "o": "1"}', False),
    ({}, '{"a": "x", "o": 1, "b": "y"}', True), ({}, '{"a": "x", "\\u0061": "y"}', False)])
def test_other_names_come_after_the_required_ones(more: dict[str, Any], text: str, allowed: bool) -> None:
    assert accepts(matcher(object_of({"a": TEXT, "b": TEXT}, "a", **more)), text) is allowed


def test_objects_in_objects_and_definitions() -> None:
    place = object_of({"city": TEXT, "zip": TEXT}, "city", additionalProperties=False)
    made = matcher(object_of({"from": place, "to": {"$ref": "#/$defs/place"}}, "from", **{"$defs": {"place": place}}))
    assert accepts(made, '{"to": {"city": "x", "zip": "y"}, "from": {"zip": "1", "city": "z"}}')
    assert not accepts(made, '{"from": {"zip": "1"}}')


@pytest.mark.parametrize("schema", [
    object_of({"a": TEXT, "b": TEXT}, "a", "b", minProperties=1),
    object_of({"a": TEXT, "b": TEXT}, patternProperties={"x": TEXT}),
    object_of({"a": TEXT, "b": {"$ref": "#/properties/a"}}), object_of({}), {"type": "object"},
    object_of({f"n{number}": TEXT for number in range(65)})])
def test_what_rules_cannot_say_keeps_its_schema(schema: dict[str, Any]) -> None:
    value, rules = AnyOrder(schema, SPACING).rules("object")
    assert value.startswith("%json ") and not rules
    matcher(schema)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1,
                max_size=6)
PARTS = st.sampled_from([(TEXT, "words"), ({"type": "integer"}, 12), ({"type": ["string", "null"]}, None),
                         (object_of({"x": TEXT, "y": TEXT}), {"y": "1", "x": "2"}),
                         ({"type": "array", "items": TEXT}, ["a", "b"])])


@settings(max_examples=60, deadline=None)
@given(parts=st.dictionaries(NAMES, PARTS, min_size=1, max_size=8), shuffle=st.randoms(), kept=st.integers(0, 8))
def test_any_object_in_any_order(parts: dict[str, tuple[Any, Any]], shuffle: random.Random, kept: int) -> None:
    names = list(parts)
    required = names[:kept]
    made = matcher(object_of({name: part[0] for name, part in parts.items()}, *required))
    shuffle.shuffle(names)
    shown = [name for name in names if name in required or shuffle.random() < 0.5]
    pairs = [f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(parts[name][1])}" for name in shown]
    assert accepts(made, "{" + ", ".join(pairs) + "}")
    for pair in pairs:
        assert not accepts(made, "{" + ", ".join([*pairs, pair]) + "}"), "twice"
    if required:
        without = [pair for pair, name in zip(pairs, shown, strict=True) if name != required[0]]
        assert not accepts(made, "{" + ", ".join(without) + "}")
