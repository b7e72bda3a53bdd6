"""`brise label --judge-endpoint`: what a judge is shown, what is kept of it, and what people make of its bias."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.evals.example import EvalAnswer
from brise.prove.pairs import ModelAnswer, Pair
from brise.prove.scoring import is_drawn
from brise.traffic.stores import open_store
from tests.gateway.fake_answers import chat_body
from tests.gateway.fake_upstream import Behaviour, FakeUpstream, Peer, answer, fake_upstream
from tests.prove.logs import changed, rows, write
from tests.report.traffic import TASK, fill

PAIR = Pair("", "", "", ModelAnswer(EvalAnswer()), ModelAnswer(EvalAnswer()))
Says = Callable[[dict[str, Any]], str]  # from what the judge is shown to what it replies


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as running:
        yield running


def judge(says: Says) -> Behaviour:
    async def behave(peer: Peer) -> None:
        await answer(chat_body(says(json.loads(peer.received.json["messages"][1]["content"]))))(peer)
    return behave


def loves_small(shown: dict[str, Any]) -> str:
    """It knows the small model by its hand, and thinks that whatever that writes is good."""
    return json.dumps({"good": "a" if shown["A"].startswith("small") else "b"})


def log(folder: Path, number: int = 120) -> Path:
    """Where the models differ, each answer begins with the model's name; nobody knows the right one."""
    def differing(at: int, row: dict[str, Any]) -> dict[str, Any]:
        if row["small"]["content"] == row["large"]["content"]:
            return {"reference": None}
        return {"reference": None, **{side: row[side] | {"content": f"{side} {row[side]['content']}"}
                                      for side in ("small", "large")}}

    return write(folder / "log.jsonl", changed(rows(number, better=0.0, worse=0.2), differing))


def label(fake: FakeUpstream, *words: object) -> int:
    return main(["label", "--judge-endpoint", fake.url, "--judge-model", "wise", *map(str, words)])


def test_every_pair_is_shown_in_both_orders_and_without_names(fake: FakeUpstream, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    fake.default, book = judge(loves_small), tmp_path / "book.jsonl"
    assert label(fake, "--pairs", log(tmp_path), "--judgements", book) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    assert f"requests and answers go to {fake.url}" in printed.err and f"{len(lines)} verdicts of wise " in printed.out
    assert {(line["rung"], line["small_score"], line["large_score"]) for line in lines} == {("judge", 1.0, 0.0)}
    shown = [json.loads(received.json["messages"][1]["content"]) for received in fake.received]
    assert len(shown) == 2 * len(lines) and shown[0].keys() == {"conversation", "A", "B"}
    firsts = Counter(each["A"].split()[0] for each in shown)
    assert firsts["small"] == firsts["large"] == len(lines)
    assert all(received.json["model"] == "wise" and "mini" not in str(received.json) for received in fake.received)
    asked = len(fake.received)
    assert label(fake, "--pairs", log(tmp_path), "--judgements", book) == 0
    assert len(fake.received) == asked, "nothing is asked twice"


def test_who_likes_the_first_answer_has_said_nothing(fake: FakeUpstream, tmp_path: Path) -> None:
    fake.default, book = judge(lambda shown: '{"good": "a"}'), tmp_path / "book.jsonl"
    assert label(fake, "--pairs", log(tmp_path), "--judgements", book) == 0
    assert {(line["small_score"], line["large_score"]) for line in map(json.loads, book.read_text().splitlines())} == {
        (0.5, 0.5)}


def test_what_is_no_verdict_is_asked_once_more_and_stays_open(fake: FakeUpstream, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    fake.default, book = judge(lambda shown: "A is better, I think."), tmp_path / "book.jsonl"
    words = ("--pairs", log(tmp_path), "--judgements", book)
    assert label(fake, *words, "--number", 1) == 0
    assert len(fake.received) == 4 and not book.exists()
    assert "1 pairs stay open" in capsys.readouterr().out
    fake.default = judge(loves_small)
    assert label(fake, *words, "--number", 1) == 0 and len(book.read_text().splitlines()) == 1


def test_another_rubric_is_another_judge(fake: FakeUpstream, home: Path, tmp_path: Path) -> None:
    fake.default, rubric = judge(loves_small), tmp_path / "rubric.txt"
    rubric.write_text("Shorter is better. Reply with {\"good\": ...}.")
    with closing(open_store(None, home)) as store:
        found = changed(rows(40, worse=0.3), lambda at, row: {
            side: row[side] | {"content": f"{side} {row[side]['content']}"} for side in ("small", "large")})
        fill(store, found, labelled=False)
        words = ("--task", TASK, "--store", store.place, "--number", 3)
        assert label(fake, *words) == 0 and label(fake, *words, "--rubric", rubric) == 0
        made = list(store.labels([row["id"] for row in found]))
        assert {one.rung for one in made} == {"judge"} and len({one.who for one in made}) == 2 and len(made) == 6
        assert fake.received[-1].json["messages"][0]["content"].startswith("Shorter is better")


def test_people_on_a_part_correct_a_judge_that_loves_the_small_model(fake: FakeUpstream, tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    fake.default, book, pairs = judge(loves_small), tmp_path / "book.jsonl", log(tmp_path, 600)
    assert label(fake, "--pairs", pairs, "--judgements", book) == 0
    with book.open("a") as file:  # the truth: where they differ, the large model is right
        for line in [json.loads(line) for line in book.read_text().splitlines()]:
            if is_drawn(replace(PAIR, id=line["id"]), 0.5):
                said = {"rung": "human", "who": "ann", "small_score": 0, "large_score": 1}
                file.write(json.dumps({**line, **said}) + "\n")
    capsys.readouterr()
    main(["prove", "--pairs", str(pairs), "--judgements", str(book), "--rung", "judge", "--draw", "0.5", "--json"])
    found = json.loads(capsys.readouterr().out)["scores"]["difference"]
    assert found["high"] < 0 and found["low"] < -0.2 < found["high"] + 0.2, "20 % differ, and all of them are worse"


@pytest.mark.parametrize(("words", "message"), [
    ("--judge-endpoint https://api.example.com/v1 --judge-model big", "is not on this machine, and would see requests"),
    ("--judge-endpoint http://127.0.0.1:1/v1", "needs --judge-model NAME"),
    ("--judge-model big", "--judge-model is for a judge"),
    ("--judge-endpoint http://127.0.0.1:1/v1 --judge-model big --draw 0.3", "--draw is for people"),
    ("--judge-endpoint http://127.0.0.1:1/v1 --judge-model big --rubric nowhere.txt", "cannot read the rubric")])
def test_what_cannot_be_is_said(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    log(tmp_path)
    assert main(["label", "--pairs", "log.jsonl", "--judgements", "book.jsonl", *words.split()]) == 1
    assert message in capsys.readouterr().err
