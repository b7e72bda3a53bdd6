"""Files of the Berkeley function-calling leaderboard: reading, and the rules by which calls are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.errors import EvidenceError
from brise.evals import bfcl
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample

AREA = {"name": "geometry.area", "description": "The area of a triangle.", "parameters": {
    "type": "dict", "required": ["base", "height"], "properties": {
        "base": {"type": "integer"}, "height": {"type": "float"}, "unit": {"type": "string"},
        "points": {"type": "tuple", "items": {"type": "integer"}}, "style": {"type": "dict", "properties": {}}}}}
TRUTH = [{"geometry.area": {"base": [10], "height": [5.0], "unit": ["square cm", "cm^2", ""], "points": [[1, 2], ""],
                            "style": [{"color": ["red", "Red"], "width": [2, ""]}, ""]}}]


def written(tmp_path: Path, truth: object = TRUTH, *, name: str = "simple", question: object = None,
            functions: object = None) -> Path:
    path = tmp_path / f"BFCL_v4_{name}.json"
    row = {"id": f"{name}_0", "question": question or [[{"role": "user", "content": "What is the area?"}]],
           "function": functions or [AREA]}
    path.write_text(json.dumps(row) + "\n")
    if truth is not None:
        (tmp_path / "possible_answer").mkdir(exist_ok=True)
        beside = tmp_path / "possible_answer" / path.name
        beside.write_text(json.dumps({"id": f"{name}_0", "ground_truth": truth}) + "\n")
    return path


def example(tmp_path: Path, truth: object = TRUTH, **more: Any) -> EvalExample:
    (read,) = bfcl.read([written(tmp_path, truth, **more)])
    return read


def answer(*calls: tuple[str, object]) -> EvalAnswer:
    return EvalAnswer(calls=tuple(AnsweredCall(name, json.dumps(arguments)) for name, arguments in calls))


def right(read: EvalExample, *calls: tuple[str, object]) -> bool:
    return bfcl.score(read, answer(*calls))["right"] == (1.0, 1.0)


def test_a_file_becomes_questions_with_tools_of_json_schema(tmp_path: Path) -> None:
    read = example(tmp_path)
    (tool,) = read.tools
    function: Any = tool["function"]
    assert function["name"] == "geometry_area" and function["parameters"]["type"] == "object"
    assert function["parameters"]["properties"]["height"] == {"type": "number"}
    assert function["parameters"]["properties"]["points"]["type"] == "array"
    assert [message["content"] for message in read.prompt] == ["What is the area?"]
    assert bfcl.score(read, read.reference)["right"] == (1.0, 1.0)


@pytest.mark.parametrize(("arguments", "is_right"), [
    ({"base": 10, "height": 5}, True), ({"base": 10, "height": 5.0, "unit": "Square-CM"}, True),
    ({"base": 10, "height": 5, "unit": "m"}, False), ({"base": 10.0, "height": 5}, False), ({"base": 10}, False),
    ({"base": "10", "height": 5}, False), ({"base": True, "height": 5}, False),
    ({"base": 10, "height": 5, "angle": 3}, False), ({"base": 10, "height": 5, "points": [1, 2]}, True),
    ({"base": 10, "height": 5, "points": [2, 1]}, False), ({"base": 10, "height": 5, "style": {"color": "RED"}}, True),
    ({"base": 10, "height": 5, "style": {"color": "red", "width": 3}}, False),
    ({"base": 10, "height": 5, "style": {"width": 2}}, False), ([10, 5], False), ("no JSON", False)])
def test_arguments_are_right_by_the_leaderboards_rules(tmp_path: Path, arguments: object, is_right: bool) -> None:
    assert right(example(tmp_path), ("geometry_area", arguments)) is is_right


def test_the_right_call_is_one_call_of_the_right_function(tmp_path: Path) -> None:
    read, good = example(tmp_path), {"base": 10, "height": 5}
    assert not right(read) and not right(read, ("area", good))
    assert not right(read, ("geometry_area", good), ("geometry_area", good))
    assert bfcl.score(read, EvalAnswer(error="timeout"))["right"] == (0.0, 1.0)


def test_several_calls_come_in_any_order(tmp_path: Path) -> None:
    truth = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}, {"g": {"x": [3]}}]
    parameters = {"type": "dict", "properties": {"x": {"type": "integer"}}}
    functions = [{"name": name, "parameters": parameters} for name in "fg"]
    read = example(tmp_path, truth, name="parallel", functions=functions)
    assert right(read, ("g", {"x": 3}), ("f", {"x": 1}), ("f", {"x": 2}))
    assert right(read, ("f", {"x": 1}), ("f", {"x": 1}), ("g", {"x": 3}))
    assert not right(read, ("f", {"x": 2}), ("f", {"x": 2}), ("g", {"x": 3}))


def test_without_a_truth_no_call_or_any_call_is_right(tmp_path: Path) -> None:
    none = example(tmp_path, None, name="live_irrelevance")
    assert right(none) and not right(none, ("geometry_area", {}))
    some = example(tmp_path, None, name="live_relevance")
    assert right(some, ("geometry_area", {})) and not right(some)


@pytest.mark.parametrize(("changes", "named"), [
    ({"question": [[{"role": "user", "content": "a"}]] * 2}, "2 turns"), ({"truth": "no"}, "ground_truth"),
    ({"truth": [{"f": [1]}]}, "possible_answer"), ({"question": "what?"}, "'question'"),
    ({"functions": [{"parameters": {}}]}, "'name'")])
def test_what_cannot_be_used_is_named_by_line(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(EvidenceError, match=named) as caught:
        bfcl.read([written(tmp_path, **changes)])
    assert ".json:1" in str(caught.value)


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="missing"):
        bfcl.read([tmp_path / "missing.json"])
    (tmp_path / "text.json").write_text("what?\n")
    with pytest.raises(EvidenceError, match="no JSON lines"):
        bfcl.read([tmp_path / "text.json"])
