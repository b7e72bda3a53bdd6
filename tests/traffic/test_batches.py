"""Batches whose ids repeat are joined file by file, or refused by name; they never get each other's answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brise.traffic.imports.read import ImportedRows, read


def requests(folder: Path, batch: int, ids: Sequence[str]) -> Path:
    return written(folder / f"asked{batch}.jsonl", [
        {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": {
            "model": "m", "messages": [{"role": "user", "content": f"batch {batch} question {id}"}]}} for id in ids])


def responses(folder: Path, batch: int, ids: Sequence[str], part: str = "") -> Path:
    return written(folder / f"answered{batch}{part}.jsonl", [
        {"id": f"r{batch}{id}", "custom_id": id, "error": None, "response": {"status_code": 200, "body": {
            "created": 1750000000, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {
                "role": "assistant", "content": f"batch {batch} answer {id}"}}]}}} for id in ids])


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(found: ImportedRows) -> list[tuple[str, str]]:
    out = []
    for each in found.exchanges:
        assert each.request is not None and each.response is not None
        out.append((each.request["messages"][0]["content"], each.response["choices"][0]["message"]["content"]))
    return sorted(out)


def right(*batches: tuple[int, Sequence[str]]) -> list[tuple[str, str]]:
    return sorted((f"batch {batch} question {id}", f"batch {batch} answer {id}") for batch, ids in batches
                  for id in ids)


def test_batches_with_the_same_ids_are_refused_by_name_in_any_order(tmp_path: Path) -> None:
    files = [make(tmp_path, batch, "ab") for batch in (1, 2) for make in (requests, responses)]
    for order in itertools.permutations(files):
        found = read(order)
        assert not found.exchanges and len(found.bad) == 8
        assert all("import one batch at a time" in why and "asked1.jsonl" in why for _, why in found.bad)


@pytest.mark.parametrize(("first", "second"), [("ab", "bc"), ("abc", "ab"), ("ab", "cd"), ("a", "abcdef")])
def test_batches_are_joined_where_their_ids_tell_them_apart(tmp_path: Path, first: str, second: str) -> None:
    files = [make(tmp_path, batch, ids) for batch, ids in ((1, first), (2, second)) for make in (requests, responses)]
    found = read(files)
    assert not found.bad and pairs(found) == right((1, first), (2, second))


def test_answers_and_errors_of_a_batch_may_be_in_two_files(tmp_path: Path) -> None:
    files = [requests(tmp_path, 1, "abcd"), responses(tmp_path, 1, "abc"), responses(tmp_path, 1, "d", "errors"),
             requests(tmp_path, 2, "dx"), responses(tmp_path, 2, "dx")]
    assert pairs(read(files)) == right((1, "abcd"), (2, "dx"))


def test_requests_of_one_answer_file_may_be_in_two_files(tmp_path: Path) -> None:
    asked = requests(tmp_path, 1, "abcd")
    lines = asked.read_text().splitlines(keepends=True)
    (tmp_path / "x.jsonl").write_text("".join(lines[:2]))
    asked.write_text("".join(lines[2:]))
    assert pairs(read([asked, tmp_path / "x.jsonl", responses(tmp_path, 1, "abcd")])) == right((1, "abcd"))


def test_what_answers_a_request_that_is_not_there_is_of_another_batch(tmp_path: Path) -> None:
    found = read([requests(tmp_path, 1, "ab"), responses(tmp_path, 2, "abc")])
    assert not found.exchanges and "in none of the files" in dict(found.bad)[f"{tmp_path / 'answered2.jsonl'}:1"]


def test_two_answers_to_one_request_are_refused(tmp_path: Path) -> None:
    found = read([requests(tmp_path, 1, "a"), responses(tmp_path, 1, "a"), responses(tmp_path, 2, "a")])
    assert not found.exchanges and all("answered twice" in why for _, why in found.bad)


def test_two_batches_in_one_file_are_refused(tmp_path: Path) -> None:
    for name in ("asked", "answered"):
        make = requests if name == "asked" else responses
        (tmp_path / f"{name}.jsonl").write_text("".join(make(tmp_path, batch, "ab").read_text() for batch in (1, 2)))
    found = read([tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"])
    assert not found.exchanges and "each batch needs a file of its own" in found.bad[0][1]


def test_a_file_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    asked, answered = requests(tmp_path, 1, "ab"), responses(tmp_path, 1, "ab")
    (tmp_path / "copy.jsonl").write_text(asked.read_text())
    (tmp_path / "copy of answers.jsonl").write_text(answered.read_text())
    found = read([asked, answered, asked, answered, tmp_path / "copy.jsonl", tmp_path / "copy of answers.jsonl"])
    assert not found.bad and pairs(found) == right((1, "ab"))


def test_the_same_question_in_two_batches_has_both_answers(tmp_path: Path) -> None:
    asked = requests(tmp_path, 1, "a")
    (tmp_path / "again.jsonl").write_text(asked.read_text())
    found = read([asked, tmp_path / "again.jsonl", responses(tmp_path, 1, "a"), responses(tmp_path, 2, "a")])
    assert not found.bad and [answer for _, answer in pairs(found)] == ["batch 1 answer a", "batch 2 answer a"]
    assert len({each.id for each in found.exchanges}) == 2


def test_batches_of_anthropic(tmp_path: Path) -> None:
    asked = written(tmp_path / "in.jsonl", [{"custom_id": id, "params": {
        "model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}} for id in "ab"])
    answered = written(tmp_path / "out.jsonl", [
        {"custom_id": "a", "result": {"type": "succeeded", "message": {
            "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "max_tokens",
            "content": [{"type": "text", "text": "hel"}]}}},
        {"custom_id": "b", "result": {"type": "errored", "error": {"type": "error", "error": {"message": "no"}}}}])
    found = {each.status: each for each in read([asked, answered]).exchanges}
    assert (found[200].kind, found[200].path, found[502].error) == ("messages", "/v1/messages", "no")


BATCHES = st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BATCHES, st.data())
def test_no_question_ever_gets_the_answer_of_another_batch(tmp_path: Path, batches: list[set[str]],
                                                           data: st.DataObject) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    files = []
    for number, ids in enumerate(batches):
        files += [requests(tmp_path, number, sorted(ids))]
        cut = data.draw(st.integers(0, len(ids)))
        for part, some in (("x", sorted(ids)[:cut]), ("y", sorted(ids)[cut:])):
            if some:
                files.append(responses(tmp_path, number, some, part))
    found = read(data.draw(st.permutations(files)))
    assert set(pairs(found)) <= set(right(*((number, sorted(ids)) for number, ids in enumerate(batches))))
