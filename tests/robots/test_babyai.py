"""The ground robot in BabyAI's levels: what it sees is what the data set's rows say, and who ends its missions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.data.prepare import DataOptions, prepare
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from brise.errors import EvidenceError
from brise.robots import babyai, babyai_task
from brise.robots.acting_server import Messages, ServerAddress
from brise.robots.babyai import ACTIONS, SPACE, MissionWalk, described, labelled
from brise.robots.babyai_task import WalkOptions, walk
from brise.robots.pilot import PolicyAnswer
from brise.text.action_space import ActionSpace, read_action_space, with_rarest_tokens
from brise.text.load import tokens_for
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import live

# Of the data set babyai_steps, which another program made with MiniGrid: what is seen at the start, and then.
ROWS = (
    ("BabyAI-GoToLocal-v0", "go to a purple ball. Last: none. Sees: wall here 1 right; purple box 1 ahead 1 left; red "
     "key here 2 left; blue key 1 ahead 2 left; red ball 1 ahead 3 left; purple ball 3 ahead 2 left; wall 5 ahead.",
     "forward"),
    ("BabyAI-PickupLoc-v0", "pick up the grey box behind you. Last: none. Sees: wall 1 ahead; wall here 3 left.",
     "right"),
    ("BabyAI-GoToObjMaze-v0", "go to the green ball. Last: none. Sees: wall here 3 left; blue door closed 6 ahead.",
     "right"),
    ("BabyAI-GoToObjMaze-v0", "go to the green ball. Last: right. Sees: blue door closed here 2 left; wall 4 ahead; "
     "blue door closed 4 ahead 3 right.", "left"),
)
NAMES = SimpleNamespace(IDX_TO_OBJECT=dict(enumerate(["unseen", "empty", "wall", "floor", "door", "key", "ball"])),
                        IDX_TO_COLOR=dict(enumerate(["red", "green", "blue"])))


@pytest.mark.parametrize(("level", "text", "action"), ROWS)
def test_what_it_reads_and_what_the_bot_does_are_those_of_the_data_set(level: str, text: str, action: str) -> None:
    pytest.importorskip("minigrid")
    robot, seen = MissionWalk(level, 202), {}
    while not robot.is_over:
        right = robot.expert()
        assert right is not None
        seen[robot.view_text()] = ACTIONS[right]
        robot.step(right)
    assert robot.is_done and seen[f"Mission: {text}"] == action


def test_a_view_is_told_nearest_first_with_walls_only_along_its_axes() -> None:
    view = np.ones((5, 5, 3), np.uint8)  # empty; the robot is in the middle of the last row
    view[:, :, 1:] = 0
    view[:, 0, 0] = 2  # a wall across, four cells ahead
    view[2, 1] = (4, 2, 1)  # a closed blue door before it
    view[4, 4] = (2, 0, 0)  # walls at the right, the nearer one counts
    view[3, 4] = (2, 0, 0)
    view[0, 4] = (4, 1, 0)  # an open green door
    view[2, 4] = (6, 0, 0)  # the ball that it carries
    assert described(view, NAMES) == ("red ball here; wall here 1 right; green door here 2 left; blue door closed 3 "
                                      "ahead; wall 4 ahead")


def test_the_bot_ends_every_mission_in_fewer_steps_than_a_level_allows(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("minigrid")
    assert main(["act", "walk", "--expert", "--episodes", "6", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["success"]["estimate"] == 1.0 and set(report["levels"]) == set(babyai.LEVELS)
    assert report["num_rows"] == 0 and 1 <= report["mean_steps"] < 64


def test_one_action_for_ever_ends_few_missions() -> None:
    pytest.importorskip("minigrid")
    report = walk(WalkOptions(lambda alive: [ACTIONS.index("forward")] * len(alive), 30, max_steps=40))
    assert report.success.estimate < 0.4


def test_rows_are_what_tune_reads_and_no_test_has_their_missions(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                                ) -> None:
    pytest.importorskip("minigrid")
    rows, again = tmp_path / "babyai.jsonl", tmp_path / "again.jsonl"
    for path in (rows, again):
        assert main(["act", "walk", "--expert", "--episodes", "6", "--rows", str(path), "--every", "2"]) == 0
    written = rows.read_text()
    assert again.read_text() == written and "rows in" in capsys.readouterr().out
    assert read_action_space(tmp_path / "babyai.toml") == SPACE
    tokens = tokens_for(open_checkpoint(write_tiny(tmp_path / "tiny.gguf", "llama")))
    data = prepare([rows], tokens, DataOptions(actions=SPACE, held_out_share=0.3, max_tokens=4096))
    assert len(data.train) + len(data.held_out) == len(written.splitlines())
    trained = {json.loads(line)["conversation"] for line in written.splitlines()}
    assert not trained & {f"{each.level}-{each.seed}" for each in babyai.walks(11_000, 6)}


def test_rows_of_the_data_set_are_walked_again_and_labelled(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(
        {"messages": [{"role": "user", "content": f"Mission: {text}"}, {"role": "assistant", "content": action}],
         "meta": {"env": level, "seed": 202}}) + "\n" for level, text, action in ROWS))
    words = [[value.words[int(number)] for value, number in zip(SPACE.values, row["actions"][0], strict=True)]
             for row in labelled(path)]
    assert words == [["purple", "ball", "front", "left", "forward"], ["new", "place", "behind", "middle", "right"],
                     ["new", "place", "behind", "middle", "right"], ["new", "place", "front", "middle", "left"]]
    path.write_text(path.read_text().replace("purple ball.", "purple key."))
    with pytest.raises(EvidenceError, match="steps.jsonl:1"):
        list(labelled(path))


def test_the_text_of_the_data_set_can_be_asked_for_instead_of_the_map() -> None:
    pytest.importorskip("minigrid")
    asked: list[str] = []

    def forward(alive: Sequence[MissionWalk]) -> list[int]:
        asked.extend(str(each.messages()[1]["content"]) for each in alive)
        return [ACTIONS.index("forward")] * len(alive)

    for has_map in (True, False):
        walk(WalkOptions(forward, 3, max_steps=2, has_map=has_map))
    assert ["Sees:" in text for text in asked] == [False] * 6 + [True] * 6


def test_a_served_policy_walks_and_is_relabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("minigrid")
    model = load(write_tiny(tmp_path / "tiny.gguf", "llama"), threads=1)
    config = open_checkpoint(model.path).config
    settings = {**LINEAGE.settings, **with_rarest_tokens(SPACE, model.tokenizer).settings()}
    write_adapter(tmp_path / "babyai", AdapterFile(random_low_ranks(config, 1), 3, 6.0),
                  replace(LINEAGE, settings=settings), config)
    with live(model, engine_settings=EngineSettings(num_pages=256, max_adapters=1, max_rank=8)) as server:
        server.worker.add_adapter("babyai", tmp_path / "babyai", any_base=True)
        named = ["act", "walk", "--server", server.url, "--model", "babyai", "--episodes", "3", "--max-steps", "8"]
        printed = []
        for path in (tmp_path / "round-2.jsonl", tmp_path / "again.jsonl"):
            assert main([*named, "--json", "--rows", str(path), "--every", "1"]) == 0
            printed.append((capsys.readouterr().out, path.read_text()))
        server.wait_idle()
    assert printed[0] == printed[1] and len(printed[0][1].splitlines()) >= 20


def test_no_text_is_asked_twice_where_the_answer_would_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minigrid")
    asked: list[str] = []

    class Forward:
        def __init__(self, address: ServerAddress, temperature: float, seed: int) -> None:
            pass

        def space(self) -> ActionSpace:
            return SPACE

        def decide(self, observation: Messages, deadline_s: float) -> PolicyAnswer:
            asked.append(str(observation[-1]["content"]))
            return PolicyAnswer(np.array([[0.0, 0, 0, 0, ACTIONS.index("forward")]]), False)

        def close(self) -> None:
            pass

    monkeypatch.setattr(babyai_task, "ActingServer", Forward)
    address, reports, counts = ServerAddress("http://none", "babyai"), [], []
    for temperature in (1.0, 0.0):
        asked.clear()
        reports.append(walk(WalkOptions(address, 6, temperature=temperature, max_steps=20)))
        counts.append((len(asked), len(set(asked))))
    assert reports[0] == reports[1] and counts[0][0] > counts[0][1] == counts[1][1] == counts[1][0]


@pytest.mark.parametrize(("words", "named"), [
    ([], "--expert"), (["--server", "x"], "--model"), (["--expert", "--episodes", "10001"], "10000")])
def test_wrong_options_of_a_walk_are_named(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["act", "walk", *words]) == 1
    assert named in capsys.readouterr().err
