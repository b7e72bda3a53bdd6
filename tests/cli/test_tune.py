"""`brise tune` on a tiny model, from its options to an adapter."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import read_lineage
from brise.checkpoint.adapters.peft import read_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.data.ngrams import FILE, read_table
from brise.quant.rows import float_rows
from brise.tune import run_folder
from tests.checkpoint.make_gguf import write_tiny
from tests.cli.interrupted import interrupted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"ticket {number} {'abc' * (number % 5)}",
                                        "completion": "yes" if number % 2 else "no"}) + "\n" for number in range(30)))
    return path


def tune(data: Path, model: Path, out: Path, *options: str) -> int:
    return main(["tune", str(data), "--model", str(model), "--out", str(out), "--threads", "1", "--dtype", "float32",
                 "--batch-size", "8", "--rank", "4", *options])


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_ends_in_an_adapter_and_says_how_to_serve_it(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tune(data, tiny_path, out, "--epochs", "2") == 0
    shown = capsys.readouterr()
    assert f"serve:   brise serve {tiny_path} --adapter run={out}/adapter" in shown.out
    assert "held-out loss" in shown.out and "weights" in shown.err and "tokens/s" in shown.err
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    adapter = read_adapter(out / "adapter", open_checkpoint(tiny_path).config)
    lineage = read_lineage(out / "adapter")
    assert adapter.rank == 4 and lineage is not None and lineage.settings["dtype"] == "float32"
    assert lineage.metrics["steps"] == 8 and lineage.data_digest == run_folder.read_identity(out).data
    table = read_table(out / "adapter" / FILE)
    assert 1 < table.facts.answers <= 30 and table.facts.source == "rows" and len(table) > 3
    assert lineage.settings[FILE] == hashlib.sha256((out / "adapter" / FILE).read_bytes()).hexdigest()


def test_machines_get_a_json_line_for_everything(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "3", "--json", "--save-every", "2") == 0
    found = events(capsys.readouterr().out)
    names = [event["event"] for event in found]
    assert names[:3] == ["data", "plan", "start"] and names[-1] == "done"
    assert names.count("step") == 3 and "eval" in names and "checkpoint" in names
    step = next(event for event in found if event["event"] == "step")
    assert {"step", "steps", "loss", "tokens_per_s", "memory", "left_s"} <= step.keys()
    assert found[-1]["adapter"] == str(tmp_path / "run" / "adapter")


def test_a_run_cut_off_goes_on_to_the_same_adapter(data: Path, tiny_path: Path, tmp_path: Path) -> None:
    assert tune(data, tiny_path, tmp_path / "whole", "--steps", "6", "--save-every", "2") == 0
    assert tune(data, tiny_path, tmp_path / "cut", "--steps", "6", "--save-every", "2") == 0
    # As SIGKILL after the checkpoint of step 4 would leave it.
    for path in sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[1:]:
        path.rename(path.with_name(".step-x.removed"))
    (tmp_path / "cut" / "adapter").rename(tmp_path / "gone")
    assert tune(data, tiny_path, tmp_path / "cut", "--steps", "6", "--save-every", "2", "--resume") == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_resuming_another_run_is_refused_by_what_differs(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tune(data, tiny_path, out, "--steps", "2") == 0
    assert tune(data, tiny_path, out, "--steps", "2") == 1
    assert "--resume" in capsys.readouterr().err
    assert tune(data, tiny_path, out, "--steps", "2", "--resume", "--lr", "0.5") == 1
    assert "learning_rate was 0.001, is 0.5" in capsys.readouterr().err
    data.write_text(data.read_text() + json.dumps({"prompt": "more", "completion": "no"}) + "\n")
    assert tune(data, tiny_path, out, "--steps", "2", "--resume") == 1
    assert "the data were" in capsys.readouterr().err


def test_a_run_goes_on_from_an_adapter(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, start = tmp_path / "first", ("--start", str(tmp_path / "first" / "adapter"))
    losses = []
    for out, options in ((first, ()), (tmp_path / "next", (*start, "--alpha", "4"))):
        assert tune(data, tiny_path, out, "--steps", "4", "--lr", "0.01", "--json", *options) == 0
        losses.append([event for event in events(capsys.readouterr().out) if event["event"] == "eval"])
    best = min(float(str(event["loss"])) for event in losses[0])
    assert losses[1][0]["step"] == 0 and losses[1][0]["loss"] == pytest.approx(best, rel=1e-4)
    settings = run_folder.read_identity(tmp_path / "next").settings
    assert settings["start"] == hashlib.sha256(weights(first)).hexdigest()
    for options, named in ((("--rank", "8"), "--rank"), (("--targets", "q_proj"), "--targets"),
                           (("--method", "full"), "--start")):
        assert tune(data, tiny_path, tmp_path / named, "--steps", "1", *options, *start) == 1
        assert named in capsys.readouterr().err


@pytest.mark.parametrize("method", ["qlora", "dora"])
def test_other_adapters_are_trained_and_proved(method: str, data: Path, tiny_path: Path, tmp_path: Path) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--steps", "2", "--method", method, "--optimizer", "adamw8") == 0
    adapter = read_adapter(tmp_path / "run" / "adapter", open_checkpoint(tiny_path).config)
    assert adapter.use_dora == (method == "dora")


def test_a_model_trained_whole_is_a_model_file(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tune(data, tiny_path, out, "--steps", "2", "--method", "full", "--lr", "0.01") == 0
    assert len(read_table(out / FILE)) > 3, "beside the model"
    said = capsys.readouterr().out
    assert f"serve:   brise serve {out}/model.gguf --ngrams {out}/{FILE}" in said and "parity: passed" in said
    before, after = open_checkpoint(tiny_path).weights(), open_checkpoint(out / "model.gguf").weights()
    for old, new in ((before.norm, after.norm), (before.layers[1].attention_norm, after.layers[1].attention_norm)):
        moved = abs(float_rows(new, 0, 1) - float_rows(old, 0, 1))
        assert 0 < moved.max() < 0.05
    assert main(["chat", str(out / "model.gguf"), "hi", "--max-tokens", "2"]) == 0


def test_another_file_than_what_was_trained_whole_fails_parity(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (data, tiny_path, tmp_path / "run", "--steps", "2", "--method", "full", "--lr", "0.05")
    assert tune(*words, "--parity-rows", "0") == 0
    assert "parity" not in capsys.readouterr().out
    shutil.copyfile(tiny_path, tmp_path / "run" / "model.gguf")
    assert tune(*words, "--resume") == 1
    said = capsys.readouterr().out
    assert "parity: FAILED" in said and "mean KL is" in said and "without the adapter" not in said


def test_a_dry_run_tells_of_data_and_memory_and_writes_nothing(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--dry-run", "--parity-rows", "0") == 0
    shown = capsys.readouterr().out
    assert "train: " in shown and "activations" in shown and not (tmp_path / "run").exists()


def test_a_number_of_examples_is_held_out_and_a_column_tells_conversations_apart(
        tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text("prompt,completion,case\n" + "".join(
        f"ticket {number},{'yes' if number % 2 else 'no'},{number // 3}\n" for number in range(30)))
    assert tune(path, tiny_path, tmp_path / "run", "--dry-run", "--held-out-count", "6", "--conversation-column",
                "case", "--json") == 0
    data = events(capsys.readouterr().out)[0]
    assert data["held_out"]["examples"] == 6 and data["conversations"] == 10  # type: ignore[index]


def test_what_a_teacher_takes_is_in_the_plan(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_tiny(tmp_path / "teacher.gguf", "llama", vocab=60_000)
    totals = []
    for options in ((), ("--teacher", str(teacher))):
        assert tune(data, tiny_path, tmp_path / "run", "--dry-run", "--json", "--parity-rows", "0", "--batch-tokens",
                    "64", *options) == 0
        totals.append(events(capsys.readouterr().out)[1])
    names = [part["name"] for part in totals[1]["parts"]]  # type: ignore[attr-defined]
    assert "teaching" in names and totals[1]["total"] > totals[0]["total"]  # type: ignore[operator]


def test_what_does_not_fit_is_refused_before_anything_is_written(
        data: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data, tiny_path, tmp_path / "run", "--memory", "50MB") == 1
    assert re.search(r"takes \d+\.\d MB, \d+\.\d MB more than the limit of 50\.0 MB: weights", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(data: Path, tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["tune", str(data), "--model", str(tiny_path), "--out", str(out), "--threads", "1", "--steps", "100000",
             "--json", "--dtype", "float32"]
    ended = interrupted([sys.executable, "-m", "brise", *words])
    assert ended.status == 130 and ended.last["event"] == "interrupted" and "--resume" in ended.said
    assert (out / "checkpoints" / f"step-{ended.last['step']:08}").is_dir()


@pytest.mark.parametrize(("options", "named"), [
    (("--targets", "router"), "router"), (("--device", "tpu"), "tpu"), (("--batch-tokens", "2"), "longest row"),
    (("--rank", "5000"), "5000")])
def test_options_that_cannot_be_are_refused_by_name(
        options: tuple[str, ...], named: str, data: Path, tiny_path: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data, tiny_path, tmp_path / "run", *options) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_torch_the_error_has_the_pip_line(
        data: Path, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "brise.tune.training_run", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert tune(data, tiny_path, tmp_path / "run") == 1
    assert "pip install 'brise[tune]'" in capsys.readouterr().err
