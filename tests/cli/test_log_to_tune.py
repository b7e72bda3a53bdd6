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
