"""`brise log ngrams` writes a table beside an adapter, and `brise log forget` takes it away again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.cli.main import main
from brise.data.ngrams import FILE


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, str]:
    """The traffic of two subjects."""
    rows = [{"model": "gpt-4o", "messages": [{"role": "user", "content": f"play song {number}"},
                                             {"role": "assistant", "content": "now playing it"}]}
            for number in range(6)]
    place = ("--store", str(tmp_path / "traffic.sqlite"))
    for subject in ("anna", "ben"):
        path = tmp_path / f"{subject}.jsonl"
        path.write_text("".join(json.dumps({**row, "id": f"{subject}{at}"}) + "\n" for at, row in enumerate(rows)))
        assert main(["log", "import", str(path), "--task", "music", "--subject", subject, *place]) == 0
    return place


def test_a_table_is_written_and_goes_with_a_subject(store: tuple[str, str], tmp_path: Path, tiny_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter").mkdir()
    words = ["log", "ngrams", "--base", str(tiny_path), "--task", "music", "--adapter", str(tmp_path / "adapter")]
    assert main([*words, *store, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    table = tmp_path / "adapter" / FILE
    assert (made["answers"], made["subjects"], made["bytes"], made["source"]) == (
        12, 2, table.stat().st_size, "traffic")
    assert main(["log", "forget", "anna", *store]) == 0
    assert not table.exists()
    assert f"removed {table}, a table of n-grams with something of 'anna'" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "reason"), [
    ([], "either --adapter FOLDER or --out FILE"), (["--adapter", "nowhere"], "there is no folder 'nowhere'"),
    (["--out", "t.bin", "--ngrams", "0"], "which makes no table"),
    (["--out", "t.bin", "--task", "other"], "there is no answer to count")])
def test_what_makes_no_table_is_said(more: list[str], reason: str, store: tuple[str, str], tiny_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "ngrams", "--base", str(tiny_path), *store, *more]) != 0
    assert reason in capsys.readouterr().err
