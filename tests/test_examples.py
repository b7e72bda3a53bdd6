"""Every program in examples/ runs as it stands, on a tiny random model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.checkpoint.make_gguf import write_tiny

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for the descriptions of tools, in tokens of a byte."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama",
                      extra_metadata={"llama.context_length": 2048})


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of its own, and a folder to write into."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def run(name: str, *words: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that the program prints."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_chat(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("chat.py", tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert "tokens of prompt" in lines[-1]


def test_stream(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("stream.py", tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert lines[-1].endswith(" tokens)")


def test_tools(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("tools.py", tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert lines[0].startswith("wind({'place': ") and " = " in lines[0]


def test_schema(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("schema.py", tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert len(lines) == 2 and all("urgent" in line for line in lines)


def test_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("batch.py", tiny, 201, monkeypatch=monkeypatch, capsys=capsys)
    assert lines[-1].startswith("201 prompts, 0 failed, ") and len([line for line in lines if ": '" in line]) <= 3


def test_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = write_tiny(tmp_path / "embedder.gguf", "llama", extra_metadata={"llama.pooling_type": 1})
    lines = run("embed.py", embedder, monkeypatch=monkeypatch, capsys=capsys)
    cosines = [float(line.split()[0]) for line in lines]
    assert len(cosines) == 3 and cosines == sorted(cosines, reverse=True)


def test_gateway(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("gateway.py", tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert [line.split(": ")[0] for line in lines if line.startswith(("hosted: ", "degraded: "))] == [
        "hosted", "degraded"]


def test_export(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("export.py", tiny, monkeypatch=monkeypatch, capsys=capsys)
    assert len(lines) == 3 and Path("exported/model-hf/config.json").is_file()
    assert Path("exported/model-q8_0.gguf").stat().st_size < Path("exported/model-f16.gguf").stat().st_size


def test_prove(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("prove.py", monkeypatch=monkeypatch, capsys=capsys)
    assert lines[0].startswith("600 pairs, ") and "verdict at a margin of 5%: promote" in lines[-1]


@pytest.mark.slow
def test_tune_and_serve(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    lines = run("tune_and_serve.py", tiny, 2, monkeypatch=monkeypatch, capsys=capsys)
    assert [line.partition(":")[0] for line in lines if ": " in line][:3] == [
        "trained", "without the adapter", "with the adapter"]
    assert any(line.startswith("served: ") for line in lines)


def test_every_example_is_tested() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests
