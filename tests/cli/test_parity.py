"""`brise parity`, and `brise tune` with a teacher and with parity at its end, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.cli.main import main
from tests.backends.vulkan.driver import require_driver
from tests.tune.parity_models import TOPICS, Tiny, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("parity"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": [
        {"role": "system", "content": "Be brief, and be kind to whoever asks."},
        {"role": "user", "content": f"Say a word on {topic}."},
        {"role": "assistant", "content": f"There is {topic} in the air."}]}) + "\n" for topic in TOPICS))
    return path


def adapter_in(folder: Path, model: Tiny, seed: int = 0) -> str:
    write_adapter(folder, AdapterFile(model.adapter(seed), 4, 8.0), None, model.config)
    return str(folder)


def test_an_adapter_passes(model: Tiny, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_in(tmp_path / "adapter", model)
    words = ["parity", str(model.path), "--adapter", adapter, "--data", str(data), "--held-out-share", "0.5"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["num_templates"] == report["num_rows"] > 1
    assert report["adapted"]["kl_mean"] < 1e-3 and report["base"]["num_tokens"] == report["adapted"]["num_tokens"]
    assert main([*words, "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "parity: passed" in shown and "1 of 1" in shown


def test_a_gpu_predicts_what_was_trained(model: Tiny, data: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    require_driver()
    adapter = adapter_in(tmp_path / "adapter", model)
    assert main(["parity", str(model.path), "--adapter", adapter, "--data", str(data), "--held-out-share", "0.5",
                 "--device", "vulkan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapted"]["kl_mean"] < 1e-3


def test_a_merged_model_passes_and_another_one_does_not(model: Tiny, data: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = adapter_in(tmp_path / "right", model), adapter_in(tmp_path / "wrong", model, seed=1)
    merged = tmp_path / "merged.gguf"
    assert main(["export", str(model.path), str(merged), "--format", "gguf", "--dtype", "f32", "--adapter", right,
                 "--merge"]) == 0
    words = ["parity", str(model.path), "--data", str(data), "--served", str(merged), "--adapter"]
    assert main([*words, right]) == 0
    capsys.readouterr()
    assert main([*words, wrong]) == 1
    shown = capsys.readouterr().out
    assert "parity: FAILED" in shown and "they part in layers.0.attention.out" in shown


def test_a_served_model_of_other_sizes_is_refused(model: Tiny, data: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny(tmp_path, "qwen3").path
    assert main(["parity", str(model.path), "--adapter", adapter_in(tmp_path / "adapter", model), "--data", str(data),
                 "--served", str(other)]) == 1
    assert "has a width of 64, the base one of 128" in capsys.readouterr().err


def test_tune_learns_from_a_teacher_and_ends_with_parity(model: Tiny, data: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["tune", str(data), "--model", str(model.path), "--out", str(run), "--steps", "2", "--batch-size", "4",
                 "--held-out-share", "0.3", "--dtype", "float32", "--teacher", str(model.path), "--teacher-adapter",
                 adapter_in(tmp_path / "adapter", model), "--teacher-top", "8", "--absorb-system", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "done" and events[-1]["parity"]["passed"]
    assert len(list((run / "teacher").iterdir())) == 1
    start = next(event for event in events if event["event"] == "start")
    assert start["settings"]["teacher_top"] == 8 and len(start["settings"]["teacher_adapter"]) == 64


def test_a_teacher_s_adapter_needs_a_teacher(model: Tiny, data: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(data), "--model", str(model.path), "--out", str(tmp_path / "run"), "--steps", "1",
                 "--dtype", "float32", "--teacher-adapter", "nowhere"]) == 1
    assert "--teacher-adapter needs --teacher MODEL" in capsys.readouterr().err
