"""`brise prove`: the claim is about answers, or about conversations, and every output says which."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.cli.main import main
from brise.traffic.records import Exchange, RecordedAnswer
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.prove.logs import changed, rows, write
from tests.report.traffic import TASK, body

Row = dict[str, Any]


def conversations(sizes: list[int], gap: float, seed: int = 5) -> list[Row]:
    """Right in 93 % of answers; the small model `gap` less often in the longest conversations."""
    rng, found = np.random.default_rng(seed), list[Row]()
    for unit, size in enumerate(sizes):
        for _ in range(size):
            luck, large = rng.random(), rng.random() < 0.93
            small = luck < 0.93 - (gap if size == max(sizes) else 0.0)
            found.append({"prompt": f"{unit}", "conversation": unit, "small_score": float(small),
                          "large_score": float(large)})
    return found


def mixed(number: int = 1500, seed: int = 5) -> list[int]:
    return [int(size) for size in np.random.default_rng(seed).choice([1, 2, 3, 8], number, p=[0.5, 0.25, 0.15, 0.1])]


def reported(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    status = main(["prove", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


def test_a_model_that_fails_in_long_conversations_is_not_promoted(tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", conversations(mixed(), 0.16))
    status, found = reported(capsys, "--pairs", log, "--margin", 5)
    assert status != 0 and found["scores"]["difference"]["estimate"] < -0.05 and found["gate"]["most_rows"] == 8
    assert found["scores"]["weighed"] == "answer" and found["gate"]["cut"] == 0
    assert all(one["mean"] == pytest.approx(found["scores"]["difference"]["estimate"]) for one in found["slices"])
    status, alike = reported(capsys, "--pairs", log, "--margin", 5, "--per", "conversation")
    assert status == 0 and alike["scores"]["difference"]["estimate"] == pytest.approx(found["scores"]["other"])
    assert alike["scores"]["other"] == pytest.approx(found["scores"]["difference"]["estimate"])
    assert "which is on the other side of the margin" in alike["doubts"][0]
    assert all(one["mean"] == pytest.approx(alike["scores"]["difference"]["estimate"]) for one in alike["slices"])


def test_every_output_is_worded_after_the_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, page = write(tmp_path / "log.jsonl", conversations(mixed(200), 0.0)), tmp_path / "p.html"
    for words, text in (((), "of a conversation the first 8 count"), (("--per", "conversation"),
                                                                        "each conversation weighs alike"),
                        (("--rows-per-conversation", "3"), "the first 3 count (stated, ")):
        page.unlink(missing_ok=True)
        assert main(["prove", "--pairs", str(log), "--html", str(page), *words]) in (0, 4)
        shown = " ".join(capsys.readouterr().out.replace("│", "").split())
        assert text in shown and text in page.read_text()
    assert "That is for a claim about answers; one about conversations" in shown
    assert main(["prove", "--pairs", str(log), "--per", "conversation", "--rows-per-conversation", "3"]) == 1
    assert "--per conversation and --rows-per-conversation are both given" in capsys.readouterr().err


def test_one_long_conversation_of_wrong_answers_forbids_a_promotion(tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    told = [{"conversation": f"c{at}", "prompt": f"q{at}", "small_score": 1, "large_score": 1} for at in range(400)]
    told += [{"conversation": "long", "prompt": f"l{at}", "small_score": 0, "large_score": 1} for at in range(1000)]
    log = write(tmp_path / "log.jsonl", told)
    status, found = reported(capsys, "--pairs", log)
    assert status == 4 and found["gate"]["verdict"] == "promote" and found["gate"]["cut"] == 999
    assert "999 of 1,400 answers are cut" in found["reason"] and "-71.4 points" in found["reason"]
    assert not any(one["is_proven"] for one in found["slices"])
    assert reported(capsys, "--pairs", log, "--rows-per-conversation", 1000)[0] == 4
    status, alike = reported(capsys, "--pairs", log, "--per", "conversation")
    assert status == 0 and "each answer weighs alike is -71.4 points" in alike["doubts"][0]


def test_cut_answers_that_change_nothing_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", conversations([1] * 1400 + [3] * 10, -0.01))
    status, found = reported(capsys, "--pairs", log, "--margin", 5)
    assert status == 0 and found["gate"]["cut"] == 20 and "20 of 1,430 answers are cut" in found["doubts"][0]


def test_rows_without_a_conversation_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = rows(60)
    log = write(tmp_path / "log.jsonl", changed(told, lambda at, row: {"conversation": None}))
    notes = reported(capsys, "--pairs", log)[1]["notes"]
    assert any("no row names its conversation" in note and "taken as independent" in note for note in notes)
    write(log, changed(told, lambda at, row: {"conversation": None if at % 3 == 0 else f"c{at}"}))
    assert any("20 of 60 rows do not name" in note for note in reported(capsys, "--pairs", log)[1]["notes"])
    for words in (("--cluster", "route", "--plan-only"), ()):
        write(log, told if not words else changed(told, lambda at, row: {"conversation": None}))
        assert not any("independent" in note for note in reported(capsys, "--pairs", log, *words)[1]["notes"])


def test_a_certificate_binds_the_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, path = write(tmp_path / "log.jsonl", conversations(mixed(), 0.0)), tmp_path / "c.json"
    assert reported(capsys, "--pairs", log, "--margin", 5, "--certificate", path)[0] == 0
    signed = json.loads(path.read_text())
    answers = signed["certificate"]["answers"]
    assert answers["most_rows"] == 8 and not answers["is_stated"] and answers["cut"] == 0
    assert answers["rows"] == mixed() and sum(answers["rows"]) == signed["certificate"]["window"]["rows"]
    assert main(["prove", "--verify", str(path), "--pairs", str(log)]) == 0
    shown = capsys.readouterr().out
    assert "data: ok: the same 1,500 units give the same differences" in shown
    assert "claim: each answer weighs alike; of a conversation the first 8 count" in shown
    for change in ({"most_rows": 16}, {"most_rows": 4}, {"is_stated": True}, {"rows": [1] * 1500}):
        other = tmp_path / "other.json"
        other.write_text(json.dumps(signed | {"certificate": signed["certificate"] | {"answers": answers | change}}))
        assert main(["prove", "--verify", str(other), "--pairs", str(log)]) != 0
        assert "WRONG" in capsys.readouterr().out


def test_a_certificate_about_conversations_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, path = write(tmp_path / "log.jsonl", conversations(mixed(), 0.0)), tmp_path / "c.json"
    assert reported(capsys, "--pairs", log, "--margin", 5, "--per", "conversation", "--certificate", path)[0] == 0
    assert "answers" not in json.loads(path.read_text())["certificate"], "as brise 0.1 wrote it"
    assert main(["prove", "--verify", str(path), "--pairs", str(log)]) == 0
    assert "claim: each conversation weighs alike" in capsys.readouterr().out


def without_content(store: SqlStore, told: list[Row], taken: range) -> None:
    """Puts these rows into the store; of those in `taken` the content was not kept."""
    exchanges, answers = [], []
    for at, row in enumerate(told):
        is_kept = at not in taken
        exchanges.append(Exchange(
            row["id"], row["at"], TASK, "chat", "/v1/chat/completions", "big", "hosted", 200, row["conversation"],
            served_by="big", request={"messages": [{"role": "user", "content": row["prompt"]}]} if is_kept else None,
            response=body(row["large"]["content"], "big") if is_kept else None))
        answers.append(RecordedAnswer(f"s-{row['id']}", row["id"], row["at"], "shadow", "mini",
                                      response=body(row["small"]["content"], "mini") if is_kept else None))
    store.add(exchanges, answers)


@pytest.mark.parametrize(("number", "verdict"), [(3, "promote"), (100, "undecided")])
def test_answers_that_are_missing_count_with_the_worst_scores(number: int, verdict: str, home: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_store(None, home)) as store:
        without_content(store, rows(1500, better=0.0, worse=0.005), range(500, 500 + number))
    status, found = reported(capsys, "--task", TASK, "--without", "latency")
    assert found["verdict"] == verdict and status == (0 if verdict == "promote" else 4)
    assert found["gate"]["verdict"] == "promote" and found["gate"]["rows"] == 1500 - number
    assert any(f"{number} answers are missing" in words for words in found["doubts"])
    assert (found["certificate"] is None) == (verdict == "undecided")
    if verdict == "undecided":
        assert found["reason"].startswith("100 answers are missing") and "would be another one" in found["reason"]
        assert main(["prove", "--task", TASK, "--without", "latency"]) == 4
        assert "100 answers are missing" in " ".join(capsys.readouterr().out.split())


def test_a_small_model_that_failed_was_wrong_and_is_not_missing(home: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    told = rows(400, better=0.0, worse=0.0)
    with closing(open_store(None, home)) as store:
        without_content(store, told, range(0))
        store.add(answers=[RecordedAnswer(f"a-{row['id']}", row["id"], row["at"] - 1, "shadow", "mini", status=500,
                                          error="out of memory") for row in told[::4]])
    _, found = reported(capsys, "--task", TASK)
    assert found["scores"]["difference"]["estimate"] == pytest.approx(-0.25) and not found["doubts"]
    assert found["verdict"] == "not good enough"
