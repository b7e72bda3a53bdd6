"""Logs with both answers: every field is read, and what is wrong is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.data.left_out import LeftOut
from brise.errors import EvidenceError
from brise.evals.example import AnsweredCall, EvalAnswer
from brise.prove import baselines, pairs_log, scoring
from brise.prove.pairs import NO_CONTEXT
from brise.prove.scoring import complete
from tests.prove.logs import write

TOOL = {"type": "function", "function": {"name": "play", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "play", "arguments": '{"song": "x"}'}}


def test_a_row_that_cannot_be_read_costs_itself_where_that_is_asked_for(tmp_path: Path) -> None:
    path, row = tmp_path / "log.jsonl", {"prompt": "half \ud83d", "small": "a", "large": "b"}
    path.write_text(json.dumps(row) + '\n{broken\n{"small": NaN}\n' + json.dumps({**row, "id": "x"}) + "\n")
    left_out = LeftOut()
    assert [pair.id for pair in pairs_log.read(path, left_out=left_out)] == ["1", "x"] and left_out.total() == 2
    with pytest.raises(EvidenceError, match="2 of 4 rows are no pairs"):
        pairs_log.read(path)


def test_all_fields_are_read(tmp_path: Path) -> None:
    [pair] = pairs_log.read(write(tmp_path / "log.jsonl", [{
        "id": "one", "conversation": "talk", "at": "2026-01-31T12:00:00", "labels": {"route": "a"},
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "play x"}],
        "tools": [TOOL],
        "small": {"role": "assistant", "content": None, "tool_calls": [CALL], "model": "mini", "seconds": 0.2},
        "large": {"content": "no", "finish_reason": "length", "fingerprint": "fp"}, "again": "yes",
        "reference": {"content": "", "tool_calls": [CALL]}, "meta": {"task": "function_call"}}]))
    assert (pair.id, pair.cluster, pair.at_s, pair.labels) == ("one", "talk", 1769860800.0, {"route": "a"})
    assert pair.small.answer == EvalAnswer(calls=(AnsweredCall("play", '{"song": "x"}'),)) == pair.reference
    assert pair.small.model == "mini" and pair.small.seconds == 0.2 and pair.large.fingerprint == "fp"
    assert pair.large.answer == EvalAnswer("no", finish="length") and pair.again and pair.again.answer.text == "yes"
    assert pair.context != NO_CONTEXT and [message["role"] for message in pair.prompt] == ["system", "user"]


def test_scores_stand_in_for_answers(tmp_path: Path) -> None:
    pairs = pairs_log.read(write(tmp_path / "log.jsonl", [
        {"small_score": at % 2, "large_score": 1, "again_score": 0.5, "rung": "human"} for at in range(40)]))
    scored = scoring.score(pairs, None, None)
    assert scored.label_source == "human" and scored.differences.tolist() == [-1, 0] * 20
    [again] = baselines.itself(pairs, complete(pairs, scored))
    assert again.what == "score" and again.estimate == 0.5


def test_rows_that_begin_alike_are_one_unit(tmp_path: Path) -> None:
    pairs = pairs_log.read(write(tmp_path / "log.jsonl", [
        {"prompt": text, "small": "a", "large": "a"} for text in ("x", "y", "x")]))
    assert pairs[0].cluster == pairs[2].cluster != pairs[1].cluster and [pair.id for pair in pairs] == ["1", "2", "3"]


@pytest.mark.parametrize(("row", "message"), [
    ({"small": "a"}, "1: 'large' is missing"), ({"small": "a", "large": "b", "x": 1}, "1: unknown field 'x'"),
    ({"small": {"text": "a"}, "large": "b"}, "unknown field 'small.text'"), ({"small_score": 1}, "'large_score' is"),
    ({"small_score": 2, "large_score": 1}, "'small_score' is 2, allowed is 0 to 1"),
    ({"small": "a", "large": "b", "at": "noon"}, "'at' is 'noon'"), ([], "the row is no object"),
    ({"small": "a", "large": "b", "prompt": "x", "messages": []}, "'messages' is not supported"),
    ({"small": "a", "large": "b", "small_score": 1, "large_score": 1, "rung": "guess"}, "'rung' is 'guess'")])
def test_what_is_wrong_is_named(row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(EvidenceError, match=message.replace("(", r"\(")):
        pairs_log.read(path)


def test_conversations_and_ids_may_be_numbers_and_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    told = [{"id": at, "conversation": at // 2, "prompt": "q", "small_score": 1, "large_score": 1} for at in range(4)]
    told.append({"id": "4", "conversation_id": "1", "prompt": "q", "small_score": 1, "large_score": 1})
    path = write(tmp_path / "log.jsonl", told)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    pairs = pairs_log.read(path)
    assert [(pair.id, pair.cluster) for pair in pairs] == [("0", "0"), ("1", "0"), ("2", "1"), ("3", "1"), ("4", "1")]
    with pytest.raises(EvidenceError, match="'conversation' .*must be a string"):
        pairs_log.read(write(tmp_path / "log.jsonl", [{**told[0], "conversation": True}]))
