"""JSON values compared."""

from __future__ import annotations

from collections import Counter

import pytest

from brise.evals import compare


@pytest.mark.parametrize("text", ["", "{", "hi", "{'a': 1}", '{"a": NaN}', "[Infinity]", "```json\n{}\n```",
                                  '{"a": 1} x', "[" * 100_000, "[" * 400 + "]" * 400, "9" * 5000,
                                  '{"a": 1, "a": 2}', '"\\ud800"'])
def test_what_is_no_json_is_invalid(text: str) -> None:
    assert compare.parse(text) is compare.INVALID


def test_null_is_json() -> None:
    assert compare.parse(" null\n") is None


@pytest.mark.parametrize(("one", "other"), [
    ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'), ("1", "1.0"),
    ('"a  b "', '"a b"'), ('{"a": ["x\\ny"]}', '{"a": ["x y"]}')])
def test_equal_values_have_one_text(one: str, other: str) -> None:
    assert compare.canonical(compare.parse(one)) == compare.canonical(compare.parse(other))


@pytest.mark.parametrize(("one", "other"), [
    ("1", "true"), ("0", "false"), ("1", '"1"'), ("[1, 2]", "[2, 1]"), ('"A"', '"a"'), ("null", "{}"),
    ('{"a ": 1}', '{"a": 1}'), ("1.5", "1")])
def test_different_values_differ(one: str, other: str) -> None:
    assert compare.canonical(compare.parse(one)) != compare.canonical(compare.parse(other))


def test_leaves_are_paths_with_values() -> None:
    found = compare.leaves({"a": {"b": 1}, "c": ["x", "x", {"d": None}], "e": [], "f": {}})
    assert found == Counter({("a.b", "1"): 1, ("c[]", '"x"'): 2, ("c[].d", "null"): 1, ("e", "[]"): 1, ("f", "{}"): 1})


@pytest.mark.parametrize("value", [[], {}])
def test_an_empty_value_has_no_leaves(value: object) -> None:
    assert not compare.leaves(value)


def test_names_with_dots_are_no_paths() -> None:
    assert compare.leaves({"a.b": 1}) != compare.leaves({"a": {"b": 1}})
    assert compare.leaves({"a[]": 1}) != compare.leaves({"a": [1]})


def test_matches_count_repeats() -> None:
    wanted, given = Counter({("a", "1"): 2, ("b", "1"): 1}), Counter({("a", "1"): 3, ("c", "1"): 1})
    assert compare.matches(wanted, given) == (2, 2, 1)
