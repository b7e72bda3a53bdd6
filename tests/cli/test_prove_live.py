"""`brise prove DATA`: two models answer now, over real sockets, and their answers are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from tests.engine.stub import stub_model
from tests.evals.rows import write
from tests.serve.live import live


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pairs = [(f"play song {number}", "play") for number in range(30)] + [
        (f"rain in town {number}", "rain") for number in range(10)]
    return write(tmp_path / "data.jsonl", *pairs, task="classification")


def reported(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    status = main(["prove", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


def test_two_endpoints_are_asked_and_their_answers_kept(rows: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "answers"
    with live(stub_model("rain")) as small, live(stub_model("play")) as large:
        words = (rows, "--endpoint", f"{small.url}/v1", "--name", "stub", "--teacher", f"{large.url}/v1",
                 "--teacher-name", "stub", "--reask", "--answers", folder)
        status, found = reported(capsys, *words)
    assert status in (3, 4) and found["task"] == "data" and found["teachers"] == ["stub"]
    assert found["scores"]["small"]["estimate"] == 0.25 and found["scores"]["large"]["estimate"] == 0.75
    assert found["baselines"][0]["name"] == "the large model, asked again" and found["baselines"][0]["estimate"] == 1
    assert {path.name for path in folder.iterdir()} == {"small.jsonl", "large.jsonl", "again.jsonl"}
    assert reported(capsys, *words)[1]["scores"] == found["scores"], "nobody is there any more, nobody is asked"


def test_a_model_of_this_machine_is_named_in_the_certificate(tiny_path: Path, rows: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    with live(stub_model("no")) as large:  # as wrong as the random model: equally good
        status, found = reported(
            capsys, rows, "--model", tiny_path, "--teacher", f"{large.url}/v1", "--teacher-name", "stub",
            "--max-tokens", 2, "--delta", 30, "--certificate", tmp_path / "c.json",
            *(word for name in ("length", "valid", "refusals") for word in ("--without", name)))
    assert status == 0 and found["scores"]["difference"]["estimate"] == 0
    student = json.loads((tmp_path / "c.json").read_text())["certificate"]["student"]
    assert student["name"] == "tiny" and len(student["digest"]) == 64 and len(student["template"]) == 64


def test_the_plan_asks_nobody(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (rows, "--endpoint", "http://127.0.0.1:1/v1", "--name", "s", "--teacher", "http://127.0.0.1:1/v1",
             "--teacher-name", "t", "--plan-only")
    status, found = reported(capsys, *words, "--psi", 0.1)
    assert status == 0 and found["plan"]["have_units"] == 40 and found["student"] == "s"
    assert main(["prove", *map(str, words)]) == 1 and "state --psi" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    ("data.jsonl", "the small model is either --model or --endpoint"),
    ("data.jsonl --model x", "the large model is needed: --large-endpoint URL"),
    ("data.jsonl --model x --large-endpoint http://127.0.0.1:1/v1", "--large-endpoint needs --large-name"),
    ("data.jsonl --pairs x", "--pairs and DATA are both given"), ("--task t --reask", "--reask goes with DATA"),
    ("--pairs x --teacher http://127.0.0.1:1/v1", "--large-endpoint goes with DATA")])
def test_what_cannot_be_is_said(words: str, message: str, rows: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(rows.parent)
    assert main(["prove", *words.split()]) == 1
    assert message in capsys.readouterr().err
