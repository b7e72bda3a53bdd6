"""Outages with status 200 are no evidence: whatever their share, a proof reads what it would have read without them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.prove import calibration_rows, pairs_store
from brise.traffic.records import Exchange, Label, RecordedAnswer
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.prove.logs import changed, rows, write
from tests.report.traffic import TASK, body, fill

# Bodies that servers send with status 200 in place of an answer, as older versions wrote them down: without an error.
FAILED: tuple[Mapping[str, Any], ...] = (
    {"error": {"message": "Provider returned error 1", "code": 502}}, {"error": {"message": "error 2", "code": 429}},
    {"choices": None}, {"choices": []}, {"detail": "Internal Server Error"},
    {"choices": [{"index": 0, "message": {"content": "half an"}, "finish_reason": "error"}]},
    {"choices": [{"index": 0, "message": {"content": "half an"}, "finish_reason": None}]})


@pytest.fixture
def store(home: Path) -> Iterator[SqlStore]:
    with closing(open_store(None, home)) as found:
        yield found


def outages(store: SqlStore, number: int, of: int) -> None:
    """Between the other rows: people say that the small model was right where the large one failed."""
    base = rows(of)
    for at in range(number):
        row, id = base[at * of // number], f"o{at}"
        store.add([Exchange(id, row["at"] + 30, TASK, "chat", "/v1/chat/completions", "big", "hosted", 200, id,
                            served_by="big", fingerprint="fp1", total_s=0.1, labels=row["labels"],
                            request={"model": "big", "messages": [{"role": "user", "content": row["prompt"]}]},
                            response=FAILED[at % len(FAILED)])],
                  [RecordedAnswer(f"s-{id}", id, row["at"] + 30, "shadow", "mini", response=body("yes", "mini"),
                                  total_s=0.1)],
                  [Label(f"l-{id}", id, row["at"] + 31, "outcome", "tests", 0.0, f"s-{id}", 1.0)])


def proved(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    main(["prove", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("share", "without"), [(0.05, ()), (0.25, ("--without", "length"))])
@pytest.mark.parametrize(("worse", "verdict"), [(0.03, "promote"), (0.12, "not good enough")])
def test_outages_leave_the_verdict_as_it_is(store: SqlStore, capsys: pytest.CaptureFixture[str], share: float,
                                            worse: float, verdict: str, without: tuple[str, ...]) -> None:
    number, words = 1200, ("--task", TASK, "--without", "latency", *without)
    fill(store, rows(number, worse=worse))
    alone = proved(capsys, *words)
    outages(store, round(number * share / (1 - share)), number)
    among = proved(capsys, *words)
    assert alone["verdict"] == among["verdict"] == verdict
    for part in ("gate", "guards", "scores"):
        assert among[part] == alone[part]
    assert sum(item["pairs"] for item in among["left_out"]) == round(number * share / (1 - share))


def test_what_was_left_out_is_counted_by_reason(store: SqlStore) -> None:
    fill(store, rows(10))
    outages(store, 14, 10)
    counts = {reason: number for number, reason in pairs_store.read(store, TASK).left_out}
    assert counts == {"the large model gave no answer: " + why: number for why, number in (
        ("it reports an error", 8), ("the body has no choices", 4), ("it ended without a finish reason", 2))}
    assert dict((reason, number) for number, reason in calibration_rows.read(
        store, TASK, None).left_out if "no answer" in reason) == counts


def test_an_outage_of_the_second_answer_is_no_disagreement(store: SqlStore) -> None:
    fill(store, rows(3))
    store.add(answers=[RecordedAnswer(f"again-{id}", id, 1.0, "reask", "big", response=said) for id, said in (
        ("r0", body("yes", "big")), ("r1", FAILED[0]), ("r2", FAILED[-1]))])
    assert [pair.again is not None for pair in pairs_store.read(store, TASK).pairs] == [True, False, False]


def test_a_failed_answer_in_a_log_is_no_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = rows(300)
    failed = changed(base[:60], lambda at, row: {
        "id": f"f{at}", "conversation": f"f{at}", "at": row["at"] + 30, "large": (
            {"content": "", "error": "status 502"} if at % 2 else {"content": "half", "finish_reason": "error"})})
    log = write(tmp_path / "log.jsonl", base + failed)
    found = proved(capsys, "--pairs", log, "--without", "latency")
    assert found["gate"]["rows"] == 300
    assert found["left_out"] == [{"pairs": 60, "why": "the large model gave no answer"}]


def test_a_log_of_nothing_but_outages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", changed(rows(3), lambda at, row: {"large": {"error": "status 502"}}))
    assert main(["prove", "--pairs", str(log)]) == 1
    assert "in none of 3 pairs did the large model answer" in capsys.readouterr().err
