"""Rows in the forms of other tools: read where they leave nothing open, named where not."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from brise.data.example import TrainingExample
from brise.data.parse_row import RowRules, parse_row
from brise.data.render import UNLEARNED
from brise.errors import RequestError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}


def example(row: object) -> TrainingExample:
    return parse_row(row, "a:1", Path(), RowRules())  # type: ignore[arg-type]


def turns(row: object) -> list[tuple[object, ...]]:
    return [(message["role"], message["content"], *([0] if UNLEARNED in message else []))
            for message in example(row).messages]


@pytest.mark.parametrize(("row", "expected"), [
    ({"conversations": [HUMAN, GPT]}, [("user", "hi"), ("assistant", "ho")]),
    ({"id": "x_0", "conversations": [{"from": "system", "value": "be"}, {"from": "user", "value": "hi"},
                                     {"from": "assistant", "value": "ho"}]},
     [("system", "be"), ("user", "hi"), ("assistant", "ho")]),
    ({"conversations": [HUMAN, {**GPT, "weight": 0}, HUMAN, GPT], "system": "be", "tools": ""},
     [("system", "be"), ("user", "hi"), ("assistant", "ho", 0), ("user", "hi"), ("assistant", "ho")]),
    ({"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
     [("user", "hi"), ("assistant", "ho")]),
    ({"instruction": "Say hi", "input": "", "output": "hi"}, [("user", "Say hi"), ("assistant", "hi")]),
    ({"instruction": "Translate", "input": "vent", "output": "wind", "system": "", "text": "### Translate vent: wind"},
     [("user", "Translate\nvent"), ("assistant", "wind")]),
    ({"instruction": "and?", "output": "no", "system": "be", "history": [["hi", "ho"]]},
     [("system", "be"), ("user", "hi"), ("assistant", "ho"), ("user", "and?"), ("assistant", "no")]),
    ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
     [("user", "a"), ("assistant", "b")]),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                 {"role": "user", "content": "c"}],
      "completion": [{"role": "assistant", "content": "d"}]},
     [("user", "a"), ("assistant", "b", 0), ("user", "c"), ("assistant", "d")])])
def test_rows_of_sharegpt_alpaca_and_trl_are_read(row: object, expected: list[tuple[object, ...]]) -> None:
    assert turns(row) == expected


def test_tools_as_a_text_are_read() -> None:
    assert example({"conversations": [HUMAN, GPT], "tools": json.dumps([TOOL])}).tools == (TOOL,)


ANSWER = [{"role": "assistant", "content": "b"}]
NAMED = [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference", {"prompt": "a", "completion": "b"}),
    ({"chosen": [{"role": "user", "content": "a"}, *ANSWER], "rejected": []}, "a preference",
     {"messages": [{"role": "user", "content": "a"}, *ANSWER]}),
    ({"prompt": "a", "completion": "b", "label": True}, "good or bad", {"prompt": "a", "completion": "b"}),
    ({"instruction": "a", "context": "", "response": "b", "category": "x"}, "Dolly",
     {"prompt": "a", "completion": "b"}),
    ({"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": ANSWER,
      "non_preferred_output": ANSWER}, "OpenAI", {"messages": [{"role": "user", "content": "a"}, *ANSWER]})]


@pytest.mark.parametrize(("row", "what", "converted"), NAMED)
def test_other_forms_are_named_with_the_line_that_converts_them(row: object, what: str, converted: object) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        example(row)
    hint = caught.value.hint or ""
    line = shlex.split(hint[hint.index("jq "):].removesuffix(" FILE"))
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    done = subprocess.run(line, input=json.dumps(row), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == converted
    example(converted)


@pytest.mark.parametrize(("row", "message"), [
    ({"text": "once upon a time"}, "it is a text without a question"), ({"conversations": [HUMAN, {"from": "bing"}]},
                                                                      "from' is 'bing'; read are 'human'"),
    ({"conversations": [HUMAN, {"from": "gpt"}]}, "value' is missing"), ({"conversations": [1]}, "must be an object"),
    ({"conversations": [HUMAN, {**GPT, "loss": 1}]}, "unknown field 'messages[1].loss'"),
    ({"instruction": 5, "output": "x"}, "'instruction' must be a text"),
    ({"instruction": "a", "output": "b", "other": 1}, "unknown field 'other'"),
    ({"instruction": "a", "output": "b", "text": "something else"}, "unknown field 'text'"),
    ({"instruction": "a", "output": "b", "history": [["q"]]}, "'history[0]' must be a question and its answer"),
    ({"instruction": "a", "output": "b", "history": "q"}, "'history' must be an array"),
    ({"conversations": [HUMAN, GPT], "tools": "{"}, "tools"), ({"conversations": []}, "messages"),
    ({"prompt": [], "completion": []}, "messages")])
def test_what_is_left_open_is_refused_by_name(row: object, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        example(row)
    assert message in str(caught.value)
