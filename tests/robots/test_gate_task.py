"""`brise act rows` and `brise act fly`: the simulated drone as a task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.data.prepare import DataOptions, prepare
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from brise.errors import EvidenceError
from brise.robots import baselines, gate_course, gate_task, missions
from brise.robots.baselines import RowsPolicy
from brise.robots.gate_course import SPACE
from brise.robots.gate_task import FlyOptions, RowsOptions
from brise.text.action_space import read_action_space, with_rarest_tokens
from brise.text.load import tokens_for
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import live


def test_rows_are_what_tune_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, model = tmp_path / "drone.jsonl", write_tiny(tmp_path / "tiny.gguf", "llama")
    assert main(["act", "rows", str(rows), "--episodes", "6", "--every", "4", "--states", "9"]) == 0
    assert "rows in" in capsys.readouterr().out
    space = read_action_space(tmp_path / "drone.toml")
    assert space == SPACE
    tokens = tokens_for(open_checkpoint(model))
    data = prepare([rows], tokens, DataOptions(actions=space, held_out_share=0.3, max_tokens=4096))
    actions = with_rarest_tokens(space, tokens.tokenizer)
    first = json.loads(rows.read_text().splitlines()[0])
    row = next(row for row in (*data.train, *data.held_out) if row.place.endswith(":1"))
    assert np.allclose(actions.decode(row.tokens[row.is_target].tolist()), first["actions"], atol=0.15)


def test_the_same_seed_writes_the_same_rows(tmp_path: Path) -> None:
    for name in ("one", "two"):
        main(["act", "rows", str(tmp_path / f"{name}.jsonl"), "--episodes", "2", "--states", "9"])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_the_expert_and_who_does_not_read_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    shares = []
    for who in ("--expert", "--without-words"):
        assert main(["act", "fly", who, "--episodes", "12", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert sum(report["endings"].values()) == report["episodes"] == 12
        shares.append(report["success"]["estimate"])
    assert shares[0] >= 0.9 and shares[1] <= 0.2


def test_a_served_policy_flies_and_is_relabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(write_tiny(tmp_path / "tiny.gguf", "llama"), threads=1)
    config = open_checkpoint(model.path).config
    settings = {**LINEAGE.settings, **with_rarest_tokens(SPACE, model.tokenizer).settings()}
    write_adapter(tmp_path / "drone", AdapterFile(random_low_ranks(config, 1), 3, 6.0),
                  replace(LINEAGE, settings=settings), config)
    rows = tmp_path / "round-2.jsonl"
    with live(model, engine_settings=EngineSettings(num_pages=256, max_adapters=1, max_rank=8)) as server:
        server.worker.add_adapter("drone", tmp_path / "drone", any_base=True)
        named = ["--server", server.url, "--model", "drone", "--episodes", "2"]
        assert main(["act", "fly", *named]) == 0
        assert main(["act", "rows", str(rows), *named, "--states", "0"]) == 0
        server.wait_idle()
    assert "2 missions (combination)" in capsys.readouterr().out and rows.stat().st_size > 0


def test_what_learns_from_rows_says_what_the_rows_say(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = tmp_path / "drone.jsonl"
    gate_task.write_rows(RowsOptions(rows, 4, 3, 200))
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    texts = [baselines.text_of(row["messages"]) for row in written]
    right = np.array([row["actions"][0] for row in written])
    assert np.array_equal(baselines.learned(RowsPolicy("nearest", rows))(texts), right)
    moves = baselines.learned(RowsPolicy("linear", rows))(texts)[:, gate_course.MOVES]
    assert np.mean(np.abs(moves - right[:, gate_course.MOVES]) <= 0.15 + 1e-9) > 0.9  # half a bin


@pytest.mark.parametrize("text", ["", "[]", '{"messages": []}', '{"messages": [], "actions": [[1, 2]]}', "no JSON"])
def test_a_file_without_rows_of_the_drone_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(EvidenceError, match=r"rows\.jsonl"):
        baselines.learned(RowsPolicy("nearest", tmp_path / "rows.jsonl"))


def test_a_function_flies_and_templates_are_counted() -> None:
    report = gate_task.fly(FlyOptions(lambda asked: np.tile(SPACE.brake, (len(asked), 1)), 5, "template"))
    assert report.success.estimate == 0 and sum(count for _, count in report.templates.values()) == 5
    assert set(report.templates) <= missions.HELD_OUT_TEMPLATES


@pytest.mark.parametrize(("words", "named"), [
    (["fly"], "--expert"), (["fly", "--expert", "--without-words"], "one of"), (["fly", "--server", "x"], "--model"),
    (["fly", "--expert", "--episodes", "10001"], "10000"), (["rows", "x", "--episodes", "10001"], "10000")])
def test_wrong_options_are_named(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["act", *words]) == 1
    assert named in capsys.readouterr().err
