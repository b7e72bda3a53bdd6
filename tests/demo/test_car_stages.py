"""`brise demo --car` with a tiny model: stages end, and rules hold back what a model writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brise.api.answers import ToolCall
from brise.cli.main import main
from brise.demo import car_stages, story
from brise.demo.car_stages import CAR_STAGES, HELD_OUT, SEEN, CarDemo, CarSize
from brise.demo.car_talk import CarTalk
from brise.demo.child import Brise
from tests.demo.test_story import Told

SMALL = CarSize(rows=20, asked=6)


@pytest.fixture
def demo(tmp_path: Path) -> CarDemo:
    return CarDemo(tmp_path, Brise(tmp_path / "home", tmp_path), SMALL, Told())


def test_rows_are_written_as_tune_and_eval_read_them(demo: CarDemo) -> None:
    car_stages.rows(demo)
    lines = (demo.folder / HELD_OUT).read_text().splitlines()
    assert len(lines) == SMALL.asked
    row = json.loads(lines[0])
    assert row["messages"][1]["content"].startswith("speed ") and json.loads(row["messages"][2]["content"])
    assert row["meta"]["state"]["speed_kmh"] >= 0


def test_the_rules_judge_what_a_model_said_and_confirmations_are_for_once(demo: CarDemo) -> None:
    utterance = next(each for each in CarTalk(1).utterances(50, is_held_out=False) if each.state.speed_kmh)
    calls = [ToolCall("", "door", '{"door":"all","action":"open"}'), ToolCall("", "message", "{}"),
             ToolCall("", "play", '{"what":"jazz"}'), ToolCall("", "self_destruct", "{}")]
    demo.answers[SEEN] = [(utterance, calls)]
    car_stages.rules(demo)
    car_stages.confirm(demo)
    lines = demo.show.lines  # type: ignore[attr-defined]
    assert lines[0] == "4 calls of the model: 1 run at once, 1 wait for a person, 2 are refused"
    assert "calls that were meant" in lines[1]
    assert "refused" in lines[-1] and "moves" in lines[-1]


def test_rules_that_let_a_dangerous_call_run_end_the_story(demo: CarDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    found = car_stages.car_rules()
    monkeypatch.setattr(car_stages, "car_rules", lambda: replace(found, rules=()))
    utterance = next(each for each in CarTalk(1).utterances(50, is_held_out=False) if each.state.speed_kmh)
    demo.answers[SEEN] = [(utterance, [ToolCall("", "door", '{"door":"all","action":"open"}')])]
    ended = story.run_stages(demo, CAR_STAGES[3:], demo.show, ends_at_failure=True)  # type: ignore[arg-type]
    assert [one.ending for one in ended] == ["failed"] and "door would run" in ended[0].why


@pytest.mark.parametrize("words", [("--car", "--fleet"), ("--car", "--quick"), ("--adapter", "x")])
def test_stories_are_not_mixed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *words]) == 1
    assert "is a story of its own" in (said := capsys.readouterr().err) or "is for --car" in said
