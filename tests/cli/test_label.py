"""`brise label` through a pipe: what is asked, what is kept, and what a proof makes of it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.traffic.stores import open_store
from tests.prove.logs import changed, rows, write
from tests.report.traffic import TASK, fill

Ask = Callable[..., str]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs `brise label` with these lines on stdin, and gives what it wrote to stdout."""

    def run(*words: object, lines: Sequence[str]) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["label", *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """200 pairs of which some 40 differ; the small model's answer says so."""
    found = changed(rows(200, better=0.1, worse=0.1), lambda at, row: {"reference": None})
    return write(tmp_path / "log.jsonl", found)


def test_only_pairs_that_differ_are_asked_and_the_next_call_goes_on(log: Path, tmp_path: Path, ask: Ask) -> None:
    book = tmp_path / "book.jsonl"
    words = ("--pairs", log, "--judgements", book)
    differing = sum(row["small"]["content"] != row["large"]["content"] for row in lines_of(log))
    shown = ask(*words, lines=["a", "what", "B", "both", "skip", "neither", "quit"])
    assert "4 verdicts given" in shown and f"4 of {differing} pairs that differ are judged" in shown
    oldest = [row["id"] for row in lines_of(log) if row["small"]["content"] != row["large"]["content"]]
    assert [verdict["id"] for verdict in lines_of(book)] == [*oldest[:3], oldest[4]], "the fourth was skipped"
    again = ask(*words, lines=["a"])
    assert "1 verdicts given" in again and f"5 of {differing} pairs" in again


def test_a_and_b_are_drawn_and_the_verdict_finds_its_model(log: Path, tmp_path: Path, ask: Ask) -> None:
    marked = changed(lines_of(log),
                     lambda at, row: {"small": {"content": f"SMALL {at}"}, "large": {"content": f"LARGE {at}"}})
    write(log, marked)
    book = tmp_path / "book.jsonl"
    shown = ask("--pairs", log, "--judgements", book, "--number", 60, lines=["a"] * 60)
    small_first = re.findall(r"(SMALL|LARGE) \d+ .*(?:SMALL|LARGE) \d+", shown)
    verdicts = lines_of(book)
    assert [verdict["small_score"] == 1 for verdict in verdicts] == [name == "SMALL" for name in small_first]
    assert 15 < small_first.count("SMALL") < 45 and "mini" not in shown and "big" not in shown


def test_some_come_twice_for_kappa_and_count_once(log: Path, tmp_path: Path, ask: Ask) -> None:
    book = tmp_path / "book.jsonl"
    shown = ask("--pairs", log, "--judgements", book, lines=["both"] * 200)
    verdicts = lines_of(book)
    second = [verdict for verdict in verdicts if verdict["second_look"]]
    assert second and f"{len(second)} were judged twice: the same verdict in 100 %, kappa 1.00" in shown
    assert len({verdict["id"] for verdict in verdicts}) == len(verdicts) - len(second)
    assert "0 questions are left" in shown


def test_a_proof_goes_as_far_as_the_verdicts(log: Path, tmp_path: Path, ask: Ask,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.jsonl"
    ask("--pairs", log, "--judgements", book, "--number", 20, lines=["both"] * 20)
    assert main(["prove", "--pairs", str(log), "--judgements", str(book), "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["labels"]["rung"] == "human" and 0 < found["gate"]["waiting"] < 200
    assert found["gate"]["units"] + found["gate"]["waiting"] == 200 and "wait for judgements" in found["reason"]
    ask("--pairs", log, "--judgements", book, lines=["both"] * 200)
    main(["prove", "--pairs", str(log), "--judgements", str(book), "--json"])
    done = json.loads(capsys.readouterr().out)
    assert done["gate"]["waiting"] == 0 and done["scores"]["difference"]["estimate"] == 0


def test_verdicts_on_captured_traffic_are_labels(home: Path, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_store(None, home)) as store:
        fill(store, rows(100, better=0.1, worse=0.1), labelled=False)
        ask("--task", TASK, "--who", "ann", lines=["neither"] * 100)
        labels = list(store.labels([f"r{at}" for at in range(100)]))
        assert labels and {(label.rung, label.who, label.score, label.answer_score) for label in labels} == {
            ("human", "ann", 0.0, 0.0)}
        main(["prove", "--task", TASK, "--json"])
        found = json.loads(capsys.readouterr().out)
    assert found["labels"]["rung"] == "human" and found["gate"]["waiting"] == 0


def test_an_answer_cannot_command_the_terminal(tmp_path: Path, ask: Ask) -> None:
    bad = changed(rows(40), lambda at, row: {"reference": None, "small": {"content": "\x1b]0;title\x07 hm"}})
    shown = ask("--pairs", write(tmp_path / "log.jsonl", bad), "--judgements", tmp_path / "b", "--number", 1,
                lines=["a"])
    assert "\x1b" not in shown and "␛]0;title" in shown


@pytest.mark.parametrize(("words", "message"), [
    ("", "nothing says where the answers are"), ("--pairs log.jsonl", "--pairs needs --judgements FILE"),
    ("--pairs log.jsonl --judgements other.jsonl", "a verdict on the pair 'r9999', which the log does not have"),
    ("--pairs log.jsonl --judgements bad.jsonl", "bad.jsonl:1: 'large_score' is missing")])
def test_what_cannot_be_is_said(words: str, message: str, log: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(log.parent)
    write(Path("other.jsonl"), [{"id": "r9999", "small_score": 1, "large_score": 0, "rung": "human"}])
    write(Path("bad.jsonl"), [{"id": "r1", "small_score": 1, "rung": "human"}])
    assert main(["label", *words.split()]) == 1
    assert message in capsys.readouterr().err
