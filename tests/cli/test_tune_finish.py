"""`brise tune` that ends otherwise than planned: finished early, with fewer steps, or worse than it began."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import read_lineage
from brise.cli.main import main
from tests.cli.interrupted import interrupted

USUAL = ("--threads", "1", "--dtype", "float32", "--rank", "4", "--parity-rows", "2", "--eval-every", "2",
         "--save-every", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tickets.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"ticket {number}", "completion": "yes" if number % 2 else "no"})
                            + "\n" for number in range(30)))
    return path


def tune(data: Path, model: Path, out: Path, *options: str) -> int:
    return main(["tune", str(data), "--model", str(model), "--out", str(out), *USUAL, *options])


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def interrupted_once(data: Path, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of very many steps that got Ctrl-C."""
    out = tmp_path_factory.mktemp("interrupted") / "stopped run"
    words = ["tune", str(data), "--model", str(tiny_path), "--out", str(out), *USUAL, "--steps", "100000", "--json"]
    ended = interrupted([sys.executable, "-m", "brise", *words], dict(os.environ))
    assert ended.status == 130 and f"next: brise tune '{out}' --resume\n" in ended.said
    assert f"next: brise tune '{out}' --finish\n" in ended.said
    shutil.copytree(out, out.with_name("as it was"))
    return out


@pytest.fixture
def stopped(interrupted_once: Path) -> Path:
    """The same run in the same place, as it was left."""
    shutil.rmtree(interrupted_once)
    shutil.copytree(interrupted_once.with_name("as it was"), interrupted_once)
    return interrupted_once


@pytest.mark.parametrize("words", [("RUN", "--finish"), ("--finish", "RUN"), ("--finish", "--out", "RUN")])
def test_an_interrupted_run_gives_its_best_checkpoint_as_an_adapter(
        words: tuple[str, ...], stopped: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *(word.replace("RUN", str(stopped)) for word in words)]) == 0
    shown = capsys.readouterr().out
    assert "before all its steps, as asked" in shown and "parity: passed" in shown and "these weights are kept" in shown
    assert main(["chat", str(tiny_path), "hi", "--adapter", str(stopped / "adapter"), "--max-tokens", "2"]) == 0
    lineage = read_lineage(stopped / "adapter")
    assert lineage is not None and lineage.settings["steps"] == 100000 and lineage.metrics["steps"] < 100000


def test_a_finished_run_may_go_on_and_its_adapter_follows(stopped: Path, data: Path, tiny_path: Path) -> None:
    assert main(["tune", str(stopped), "--finish"]) == 0
    first = weights(stopped)
    assert main(["tune", str(stopped), "--finish"]) == 0 and weights(stopped) == first
    done = max(int(path.name[5:]) for path in stopped.glob("checkpoints/step-*"))
    assert main(["tune", str(stopped), "--resume", "--steps", str(done + 6)]) == 0
    lineage = read_lineage(stopped / "adapter")
    assert lineage is not None and lineage.metrics["steps"] == done + 6


def test_fewer_steps_are_those_of_the_run_that_was_begun(data: Path, tiny_path: Path, tmp_path: Path) -> None:
    whole, cut_off = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut_off):
        assert tune(data, tiny_path, out, "--steps", "6") == 0
    for path in cut_off.glob("checkpoints/step-*6"):
        shutil.rmtree(path)
    log = [json.loads(line)["loss"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert tune(data, tiny_path, cut_off, "--steps", "5", "--resume") == 0
    assert [json.loads(line)["loss"] for line in (cut_off / "log.jsonl").read_text().splitlines()] == log[:5]
    lineage = read_lineage(cut_off / "adapter")
    assert lineage is not None and lineage.metrics["steps"] == 5 and lineage.settings["steps"] == 6
    assert tune(data, tiny_path, cut_off, "--steps", "6", "--resume") == 0
    assert weights(cut_off) == weights(whole)


def test_as_many_steps_as_are_done_finish_at_once_and_fewer_are_refused(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tune(data, tiny_path, out, "--steps", "6") == 0
    for path in out.glob("checkpoints/step-*6"):
        shutil.rmtree(path)
    shutil.rmtree(out / "adapter")
    assert tune(data, tiny_path, out, "--steps", "3", "--resume") == 1
    assert "3 steps are asked for, and 4 are done: allowed is 4 to 6" in capsys.readouterr().err
    assert tune(data, tiny_path, out, "--steps", "4", "--resume", "--json") == 0
    names = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert "step" not in names and names[-1] == "done" and (out / "adapter").is_dir()
    assert tune(data, tiny_path, out, "--steps", "9", "--resume") == 1
    assert "steps was 6, is 9" in capsys.readouterr().err


def test_a_run_from_before_its_folder_kept_options_keeps_them_from_then_on(
        data: Path, tiny_path: Path, tmp_path: Path) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "2") == 0
    (tmp_path / "run" / "options.json").unlink()
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "2", "--resume") == 0
    assert main(["tune", str(tmp_path / "run"), "--resume"]) == 0


def test_a_run_by_epochs_may_end_by_steps(data: Path, tiny_path: Path, tmp_path: Path) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--epochs", "2", "--batch-size", "8") == 0
    for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(path)
    assert main(["tune", str(tmp_path / "run"), "--resume", "--steps", "7"]) == 0
    lineage = read_lineage(tmp_path / "run" / "adapter")
    assert lineage is not None and lineage.metrics["steps"] == 7


def test_what_cannot_be_finished_is_refused(data: Path, tiny_path: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--finish") == 1
    assert "there is no run in" in capsys.readouterr().err
    assert main(["tune", str(tmp_path), "--finish"]) == 1
    assert "give the whole command" in capsys.readouterr().err
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "2") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "2", "--finish") == 1
    assert "has no checkpoint yet, so there is nothing to finish" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(data)])
    assert ended.value.code == 2 and "required: --model" in capsys.readouterr().err


def test_a_run_that_only_made_the_model_worse_says_so_and_keeps_no_adapter(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    data.write_text("".join(json.dumps({"prompt": f"What is {number} plus {number}?", "completion": str(2 * number)})
                            + "\n" for number in range(40)))
    assert tune(data, tiny_path, out, "--batch-size", "32", "--steps", "6", "--lr", "10", "--clip", "1e9") == 1
    shown = capsys.readouterr()
    assert "no step made the model better: its held-out loss was" in shown.out and "no adapter is kept" in shown.out
    assert "step 0: held-out loss" in shown.err and "these weights are kept" not in shown.out
    assert not (out / "adapter").exists()
    assert main(["tune", str(out), "--finish", "--json"]) == 1
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["worse"] and done["adapter"] is None and done["before"]["loss"] < done["best"]["loss"]


def test_without_held_out_rows_nothing_is_compared(data: Path, tiny_path: Path, tmp_path: Path) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "2", "--lr", "10", "--clip", "1e9", "--held-out-share",
                "0", "--parity-rows", "0") == 0
    assert (tmp_path / "run" / "adapter").is_dir()
