"""`brise demo`: what it refuses, and that a stage that fails is its exit status. The whole of it: bench/demo.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from brise.cli import demo
from brise.cli.main import main
from brise.demo import story
from brise.demo.size import Size
from brise.demo.stages import Demo
from brise.demo.story import STAGES, Ended, Stage, Teller
from brise.errors import EvidenceError
from brise.hub.store import ModelStore
from tests.checkpoint.make_gguf import write_tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    write_tiny(tmp_path / "small.gguf", "llama")
    assert main(["pull", str(tmp_path / "small.gguf"), "--name", "smollm2"]) == 0
    return tmp_path / "home"


def test_a_folder_that_holds_something_is_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--keep", str(home)]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_without_torch_it_names_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "torch" else importlib.util.find_spec(name))
    assert main(["demo"]) == 1
    assert "pip install 'brise[tune]'" in capsys.readouterr().err


@pytest.mark.parametrize(("fails", "status"), [(True, 1), (False, 0)])
def test_pages_stay_and_a_failure_is_the_exit_status(home: Path, monkeypatch: pytest.MonkeyPatch, fails: bool,
                                                     status: int, capsys: pytest.CaptureFixture[str]) -> None:
    real = story.tell

    def stage(running: Demo) -> None:
        assert ModelStore(running.brise.home).names() == ["smollm2"] and running.brise.home != home
        (running.folder / "report.html").write_text("a page")
        if fails:
            raise EvidenceError("too little traffic")

    def tell(folder: Path, own: Path, size: Size, teller: Teller, stages: Sequence[Stage[Demo]] = STAGES,
             **more: object) -> list[Ended]:
        return real(folder, own, size, teller, [Stage("only", "a stage", stage)])

    monkeypatch.setattr(story, "tell", tell)
    assert main(["demo", "--quick"]) == status
    out = capsys.readouterr().out
    assert (home / "demo" / "report.html").read_text() == "a page"
    assert f"report: {home / 'demo' / 'report.html'}" in out and ("too little traffic" in out) == fails
