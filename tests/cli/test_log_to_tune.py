"""From captured traffic to training: `brise log export` writes what `brise tune` reads, and rights are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import read_lineage
from brise.cli.main import main

ALLOWED = '[[allow]]\nprovider = "openai"\nbasis = "contract 7"\ndate = 2026-01-01\nscope = "training"\n'


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A hosted model's answers, as the store gives them back."""
    rows = [{"model": "gpt-4o", "messages": [
        {"role": "system", "content": "One word."}, {"role": "user", "content": f"play song {number}"},
        {"role": "assistant", "content": "play"}]} for number in range(12)]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = ("--store", str(tmp_path / "traffic.sqlite"))
    assert main(["log", "import", str(tmp_path / "traffic.jsonl"), "--task", "music", *store]) == 0
    assert main(["log", "export", "--task", "music", "--out", str(tmp_path / "music.jsonl"), *store]) == 0
    return tmp_path / "music.jsonl"


def exported_answers(tmp_path: Path, answers: list[dict[str, object]], **more: object) -> None:
    rows = [{"model": "open-1", "messages": [{"role": "user", "content": f"question {number}"},
                                             {"role": "assistant", **answer}], **more}
            for number, answer in enumerate(answers)]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = ("--store", str(tmp_path / "traffic.sqlite"))
    assert main(["log", "import", str(tmp_path / "traffic.jsonl"), "--task", "t", *store]) == 0
    assert main(["log", "export", "--task", "t", "--out", str(tmp_path / "my rows.jsonl"), *store]) == 0


CALL = {"id": "1", "type": "function", "function": {"name": "play", "arguments": '{"song": "x"}'}}
TOOLS = [{"type": "function", "function": {"name": "play", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(("answers", "more", "score"), [
    ([{"content": json.dumps({"city": str(n)})} for n in range(6)], {}, "json"),
    ([{"content": json.dumps([{"type": "city", "value": str(n)}])} for n in range(6)], {}, "spans"),
    ([{"content": "yes"}, {"content": "no"}] * 4, {}, "class"),
    ([{"content": f"A sentence, number {n}."} for n in range(6)], {}, "exact"),
    ([{"content": None, "tool_calls": [CALL]}, {"content": "Which song?"}], {"tools": TOOLS}, "call"),
    ([{"content": json.dumps({"name": "play", "arguments": {"n": n}})} for n in range(6)], {}, "call"),
    ([{"content": "[1]"}, {"content": "no"}] * 4, {}, "class"), ([{"content": "{}"}, {"content": "no"}], {}, "exact")])
def test_an_export_names_the_scorer_that_fits_its_answers_and_the_next_command(
        answers: list[dict[str, object]], more: dict[str, object], score: str, tmp_path: Path, tiny_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    exported_answers(tmp_path, answers, **more)
    err = capsys.readouterr().err
    assert f"the scorer that fits: --score {score}: " in err
    path = tmp_path / "my rows.jsonl"
    assert f"next: brise pull smollm2 && brise eval '{path}' --model smollm2 --score {score}" in err
    words = ["eval", str(path), "--model", str(tiny_path), "--score", score]
    assert main([*words, "--max-tokens", "1", "--threads", "1"]) == 0


def test_captured_answers_are_trained_on_where_a_right_is_recorded(
        exported: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", str(exported), "--model", str(tiny_path), "--out", str(tmp_path / "run"), "--threads", "1",
             "--dtype", "float32", "--steps", "1", "--batch-size", "4", "--rank", "4", "--parity-rows", "2"]
    assert main(words) == 1
    assert "12 rows hold answers of 'openai', a hosted provider" in capsys.readouterr().err
    (tmp_path / "rights.toml").write_text(ALLOWED)
    assert main([*words, "--rights", str(tmp_path / "rights.toml")]) == 0
    lineage = read_lineage(tmp_path / "run" / "adapter")
    assert lineage is not None and lineage.rights == {"openai": "contract 7 (2026-01-01)"}
