"""The demo's story: a stage that fails is said, what stands on it is skipped, everything started is ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from brise.demo import proofs, stages, story
from brise.demo.size import Size
from brise.demo.stages import Demo, RemoteSmallModel, SkippedError
from brise.demo.story import STAGES, Ended, Stage
from brise.errors import EvidenceError

TINY = Size(train=5, calibrate=5, prove=5, first_step=2, half=2, whole=2, outage=2, after=1)


class Told:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, number: int, of: int, stage: Stage[Any]) -> None:
        self.lines.append(f"{number}/{of} {stage.name}")

    def end(self, ended: Ended) -> None:
        self.lines.append(f"{ended.name} {ended.ending}")

    def command(self, line: str) -> None:
        self.lines.append(f"$ {line}")

    def progress(self, done: float, total: float, note: str) -> None:
        assert done <= total, note

    def say(self, line: str) -> None:
        self.lines.append(line)

    def text(self, text: str) -> None:
        self.lines.append(text)


def told(tmp_path: Path, chosen: Sequence[Stage[Demo]]) -> tuple[list[Ended], Told]:
    screen = Told()
    return story.tell(tmp_path, tmp_path / "home", TINY, screen, chosen), screen


def test_a_stage_that_fails_is_named_and_the_next_ones_run(tmp_path: Path) -> None:
    def fails(demo: Demo) -> None:
        raise EvidenceError("too little traffic")

    def skips(demo: Demo) -> None:
        raise SkippedError("nothing to stand on")

    chosen = [Stage[Demo]("one", "", fails), Stage[Demo]("two", "", skips), Stage[Demo]("three", "", lambda _: None)]
    ended, screen = told(tmp_path, chosen)
    assert [(one.ending, one.why) for one in ended] == [
        ("failed", "too little traffic"), ("skipped", "nothing to stand on"), ("done", "")]
    assert screen.lines == ["1/3 one", "one failed", "2/3 two", "two skipped", "3/3 three", "three done"]


def test_without_a_student_what_needs_one_is_skipped(tmp_path: Path) -> None:
    needy = [Stage(each.name, "", each.run) for each in STAGES if each.name not in ("traffic", "tune", "report")]
    ended, _ = told(tmp_path, needy)
    assert {one.ending for one in ended} == {"skipped"}


def test_nothing_is_switched_against_the_verdict(tmp_path: Path) -> None:
    def verdict(demo: Demo) -> None:
        demo.verdict = "undecided"

    ended, screen = told(tmp_path, [Stage("prove", "", verdict), Stage("switch", "", proofs.switch)])
    assert ended[1].ending == "skipped" and "undecided" in ended[1].why
    assert not [line for line in screen.lines if line.startswith("$")]


def test_ctrl_c_ends_what_was_started(tmp_path: Path) -> None:
    found: list[Demo] = []

    def starts(demo: Demo) -> None:
        found.append(demo)
        demo.large.start()
        demo.stack.callback(demo.large.kill)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told(tmp_path, [Stage("traffic", "", starts)])
    assert found[0].large.process is None


def test_stretches_of_traffic_share_no_conversation(tmp_path: Path) -> None:
    found: list[Demo] = []
    told(tmp_path, [Stage("look", "", found.append)])
    demo = found[0]
    talks = [*demo.training, *demo.calibrating, *demo.proving, *demo.first, *demo.half, *demo.whole, *demo.outage,
             *demo.after]
    assert len({talk.id for talk in talks}) == len(talks) == 24
    assert not any(turn.is_held_out for talk in demo.training for turn in talk.turns)
    assert stages.iso(0.5) == "1970-01-01T00:00:00.500000+00:00"


def test_a_small_model_behind_a_server_is_served_as_it_is_and_nothing_is_tuned(tmp_path: Path) -> None:
    found: list[tuple[str, ...]] = []

    def look(demo: Demo) -> None:
        found.extend((demo.small_words, demo.file_words))

    chosen = [Stage("tune", "", stages.tune), Stage("look", "", look)]
    ended = story.tell(tmp_path, tmp_path / "home", TINY, Told(), chosen, RemoteSmallModel("http://h/v1#m", "KEY"))
    assert [(one.ending, one.why) for one in ended] == [
        ("skipped", "the small model is behind http://h/v1#m, as it is"), ("done", "")]
    assert found == [("--small", "in-car=http://h/v1#m", "--small-key-env", "KEY"), ()]
