"""`brise tune --on-policy` on a tiny model: rounds, going on after a kill, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import read_lineage
from brise.cli.main import main
from tests.checkpoint.make_gguf import write_tiny

ROUNDS = ("--on-policy", "--rounds", "3", "--round-prompts", "6", "--round-steps", "2", "--round-tokens", "8",
          "--save-every", "1", "--json", "--parity-rows", "4")


@pytest.fixture
def words(tiny_path: Path, tmp_path: Path) -> list[str]:
    """A run but for its folder."""
    teacher = write_tiny(tmp_path / "teacher.gguf", "llama", seed=7)
    data = tmp_path / "tickets.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"ticket {number} {'abc' * (number % 5)}",
                                        "completion": "yes" if number % 2 else "no"}) + "\n" for number in range(30)))
    return ["tune", str(data), "--model", str(tiny_path), "--threads", "1", "--dtype", "float32", "--batch-size", "4",
            "--rank", "4", "--teacher", str(teacher), *ROUNDS]


def events(text: str, name: str) -> list[dict[str, object]]:
    return [event for event in map(json.loads, text.splitlines()) if event["event"] == name]


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_rounds_end_in_an_adapter_that_says_how_it_was_taught(
        words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert [event["answers"] for event in events(said, "round")] == [6, 6, 6] and len(events(said, "step")) == 6
    lineage = read_lineage(tmp_path / "run" / "adapter")
    assert lineage is not None and lineage.settings["on_policy"] and lineage.settings["round_prompts"] == 6
    assert lineage.settings["distill_direction"] == "reverse" and len(str(lineage.settings["teacher"])) == 64
    lines = (tmp_path / "run" / "answers" / "round-00000002.jsonl").read_text().splitlines()
    assert len(lines) == 6 and all(0 < len(json.loads(line)["tokens"]) <= 8 for line in lines)
    assert not (tmp_path / "run" / ".student").exists()


def test_a_killed_run_goes_on_to_the_same_bits(words: list[str], tmp_path: Path) -> None:
    """Killed behind the first step of the second round, when its answers are from weights that no checkpoint has."""
    assert main([*words, "--out", str(tmp_path / "whole"), "--save-every", "5"]) == 0
    command = [sys.executable, "-m", "brise", *words, "--out", str(tmp_path / "run"), "--save-every", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "step" and event["step"] == 3:
                os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert main([*words, "--out", str(tmp_path / "run"), "--save-every", "5", "--resume"]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_what_rounds_take_is_in_the_plan(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A large teacher beside the student's weights and moments, which an offline one has left when they come."""
    large = write_tiny(tmp_path / "large.gguf", "llama", vocab=60_000)
    out = ("--teacher", str(large), "--out", str(tmp_path / "run"), "--dry-run", "--batch-tokens", "128")
    assert main([*words, *out]) == 0
    on = events(capsys.readouterr().out, "plan")[0]
    assert main([*words[:words.index("--on-policy")], "--json", *out]) == 0
    off = events(capsys.readouterr().out, "plan")[0]
    assert {part["name"] for part in on["parts"]} == {"weights", "answering", "process"}  # type: ignore[attr-defined]
    assert "teaching" in {part["name"] for part in off["parts"]}  # type: ignore[attr-defined]
    assert main([*words, *out, "--round-tokens", "2000"]) == 1
    assert "less --round-tokens" in capsys.readouterr().err


def test_a_teacher_of_other_tokens_is_refused_before_there_is_a_run(
        words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_tiny(tmp_path / "other.gguf", "llama", vocab=400)
    assert main([*words, "--teacher", str(other), "--out", str(tmp_path / "run")]) == 1
    assert "the student has 288 tokens and the teacher 400" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "named"), [
    (("--steps", "3"), "--steps and --on-policy"), (("--epochs", "3"), "--epochs and --on-policy"),
    (("--teacher-weight", "0.5"), "--teacher-weight is 0.5"), (("--learn", "all"), "--learn is all"),
    (("--round-temperature", "-1"), "temperature of -1")])
def test_what_does_not_go_together_is_refused_by_name(
        options: tuple[str, ...], named: str, words: list[str], tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--out", str(tmp_path / "run"), *options]) == 1
    assert named in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "named"), [
    (("--on-policy",), "--on-policy needs --teacher"), (("--round-steps", "4"), "--round-steps needs --on-policy"),
    (("--teacher-divergence", "reverse"), "--teacher-divergence needs --teacher")])
def test_options_of_teachers_need_one(
        options: tuple[str, ...], named: str, words: list[str], tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    bare = words[:words.index("--teacher")]
    assert main([*bare, "--out", str(tmp_path / "run"), *options]) == 1
    assert named in capsys.readouterr().err and not (tmp_path / "run").exists()
