"""Data files to examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.data.parse_row import RowRules
from brise.data.read_rows import read_rows
from brise.data.split import split
from brise.errors import EvidenceError
from brise.evals import data
from brise.evals.data import Reading
from brise.evals.example import AnsweredCall
from tests.evals.rows import write

TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]


ALL = Reading(turns="all")


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_last_answer_or_every_answer(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": TALK, "meta": {"task": "code"}})
    last, = data.read([path])
    assert last.reference.text == "2" and len(last.prompt) == 4 and last.meta == {"task": "code"}
    first, second = data.read([path], ALL)
    assert (first.reference.text, len(first.prompt)) == ("1", 2)
    assert second == last and first.conversation == last.conversation and first.digest != last.digest
    assert last.place == f"{path}:1"


def test_an_answer_of_weight_zero_is_context_only(tmp_path: Path) -> None:
    talk = [{**message, "weight": 0} if message["content"] == "1" else message for message in TALK]
    found, = data.read([jsonl(tmp_path / "a.jsonl", {"messages": talk})], ALL)
    assert found.reference.text == "2" and "weight" not in found.prompt[2]


def test_tool_calls_are_references(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "ü"}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    found, = data.read([jsonl(tmp_path / "a.jsonl", {"tools": [tool], "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]})])
    assert found.reference.calls == (AnsweredCall("f", '{"x": "ü"}'),) and len(found.tools) == 1


def test_prompt_and_completion_and_tables(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c"})
    table = tmp_path / "a.csv"
    table.write_text("prompt,completion\np,c\n")
    first, second = data.read([rows, table])
    assert first.prompt == second.prompt and first.reference == second.reference and first.digest == second.digest


def test_rows_with_one_question_are_one_conversation_unless_they_say_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ("one", "1"), ("one", "2"), ("two", "1"))
    assert len({row.conversation for row in data.read([path])}) == 2
    named = jsonl(tmp_path / "b.jsonl", *({"messages": TALK, "meta": {"seed": seed}} for seed in (1, 2, 2)))
    assert len({row.conversation for row in data.read([named], Reading(rules=RowRules(("meta.seed",))))}) == 2


def test_only_what_tuning_holds_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *((f"question {number}", "a") for number in range(200)))
    rows = read_rows([path], RowRules()).examples
    held_out = {rows[at].place for at in split(rows, 3, 0.2).held_out}
    assert {row.place for row in data.read([path], Reading(held_out_share=0.2, split_seed=3))} == held_out
    assert 20 < len(held_out) < 60
    with pytest.raises(EvidenceError, match="none is held out"):
        data.read([path], Reading(held_out_share=1e-9))


@pytest.mark.parametrize(("absorb", "first"), [
    (True, {"role": "user", "content": "one"}), ("short", {"role": "system", "content": "short"})])
def test_absorbed_system_prompts_leave_the_digest(tmp_path: Path, absorb: bool | str, first: object) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": TALK})
    plain, = data.read([path])
    student, = data.read([path], Reading(absorb_system=absorb))
    assert student.digest == plain.digest and student.prompt[0] == first and plain.prompt[0]["content"] == "s"
    assert student.prompt[-1] == plain.prompt[-1]


def test_bad_rows_are_all_listed_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ("one", "1"))
    with path.open("a") as file:
        file.write('{"messages": []}\n{"broken\n')
    with pytest.raises(EvidenceError, match=r"2 of 3 rows cannot be evaluated") as caught:
        data.read([path])
    assert f"{path}:2" in str(caught.value) and f"{path}:3" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="cannot read"):
        data.read([tmp_path / "no.jsonl"])
