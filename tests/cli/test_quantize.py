"""`brise quantize` and `brise export` from end to end on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from tests.checkpoint.test_write_hf import write_source

TEXT = "the user is in the other land, and the user is here. " * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def reported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_report_has_size_and_quality(tiny_path: Path, tmp_path: Path, text: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(tiny_path), str(out), "--to", "Q8_0", "--calibration", str(text), "--evaluate",
                 str(text), "--evaluation-tokens", "600", "--json"]) == 0
    report = reported(capsys)
    assert report["bytes"] == out.stat().st_size and 8.5 <= report["bits_per_weight"] < 9
    assert report["tensors"]["Q8_0"] == 15 and report["importance"]["source"] == "text.txt"
    quality = report["quality"]
    assert 0 < quality["kl_mean"] < 0.05 and quality["top1_agreement"] > 0.8
    assert quality["tokens_used"] < quality["tokens_in_text"]


def test_the_table_says_the_same(tiny_path: Path, tmp_path: Path, text: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(tiny_path), str(tmp_path / "out.gguf"), "--evaluate", str(text)]) == 0
    out, err = capsys.readouterr()
    for word in ("bits a weight", "perplexity", "KL, mean", "KL, maximum", "same best token", "Q5_0"):
        assert word in out
    assert "comparing on" in err


def test_a_saved_importance_gives_the_same_file(tiny_path: Path, tmp_path: Path, text: Path) -> None:
    first, second, saved = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "i.gguf"
    words = ["quantize", str(tiny_path), str(first), "--to", "Q4_0"]
    assert main([*words, "--calibration", str(text), "--save-importance", str(saved)]) == 0
    assert main(["quantize", str(tiny_path), str(second), "--to", "Q4_0", "--calibration", str(saved)]) == 0
    with open_gguf(first) as one, open_gguf(second) as other:
        assert all((one.array(name) == other.array(name)).all() for name in one.tensors)


def test_conversations_calibrate_too(tiny_path: Path, tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the answer"}]},
             {"text": TEXT}, {"prompt": "in ", "completion": "the end"}]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert main(["quantize", str(tiny_path), str(tmp_path / "out.gguf"), "--calibration", str(path)]) == 0


@pytest.mark.parametrize(("words", "message"), [
    (["--calibration", "absent.txt"], "cannot read"), (["--save-importance", "i.gguf"], "needs --calibration"),
    (["--memory", "1MB"], "--memory allows 1.0 MB"),
    (["--memory", "1MB", "--evaluate", "text.txt"], "running the model needs"),
    (["--evaluate", "bad.jsonl"], "line 1 has neither text")])
def test_what_is_wrong_is_said_and_nothing_stays(tiny_path: Path, tmp_path: Path, words: list[str], message: str,
                                                 capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"other": 1}')
    Path("text.txt").write_text(TEXT)
    assert main(["quantize", str(tiny_path), "out.gguf", *words]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out.gguf").exists()


def test_quantised_sources_are_refused_unless_asked(tiny_path: Path, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    middle, out = str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")
    assert main(["quantize", str(tiny_path), middle, "--to", "Q8_0"]) == 0
    assert main(["quantize", middle, out, "--to", "Q4_0"]) == 1
    assert "quantised already" in capsys.readouterr().err
    assert main(["quantize", middle, out, "--to", "Q4_0", "--requantize"]) == 0


def test_a_model_with_a_vision_tower_gets_its_mmproj_file(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "vision")
    assert main(["quantize", str(source), str(tmp_path / "out.gguf"), "--to", "Q8_0"]) == 0
    assert (tmp_path / "mmproj-out.gguf").is_file()
    assert open_checkpoint(tmp_path / "out.gguf").vision is not None


def test_export_to_a_folder_and_back(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.gguf"
    assert main(["export", str(tiny_path), str(folder), "--json"]) == 0
    assert reported(capsys)["dtype"] == "F32"
    assert main(["export", str(folder), str(back), "--format", "gguf"]) == 0
    with open_gguf(tiny_path) as before, open_gguf(back) as after:
        assert before.tensors.keys() == after.tensors.keys()
        assert all((before.array(name) == after.array(name)).all() for name in before.tensors)


def test_export_refuses_what_is_there(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_path), str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["export", str(tiny_path), str(tmp_path / "out"), "--format", "gguf"]) == 1
    assert "must end in .gguf" in capsys.readouterr().err
