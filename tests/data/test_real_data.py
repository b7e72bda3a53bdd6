"""Real task data and the real model's tokens: all of it is read, in seconds, as the server would read it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from brise.checkpoint.open import open_checkpoint
from brise.data.prepare import DataOptions, prepare
from brise.data.read_rows import BadRowsError
from brise.text.load import Tokens, tokens_for
from tests.data.rows import answers, served
from tests.test_architecture import ROOT

DATA = ROOT.parent / "shared" / "data"
FILES = sorted(DATA.glob("*/train.jsonl")) if DATA.is_dir() else []
pytestmark = pytest.mark.skipif(not FILES, reason="needs the task data beside the repository")


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokens:
    return tokens_for(open_checkpoint(smollm2_path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_file_is_read(smollm2: Tokens, path: Path, tmp_path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:100]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(lines), encoding="utf-8")
    if path.parent.name == "shapes_vqa":  # its pictures lie in an array
        with pytest.raises(BadRowsError, match="unknown field 'image'"):
            prepare([few], smollm2, DataOptions())
        return
    data = prepare([few], smollm2, DataOptions(held_out_share=0.2))
    assert len(data.train) + len(data.held_out) + data.report.between == len(lines)
    assert not data.report.leakage.is_certain
    messages = json.loads(lines[0])["messages"]
    row = next(row for row in (*data.train, *data.held_out) if row.place == f"{few}:1")
    ((start, _),) = answers(row)
    assert tuple(row.tokens[:start]) == served(smollm2, messages[:-1])


def test_ten_thousand_rows_take_seconds(smollm2: Tokens) -> None:
    path = DATA / "banking77" / "train.jsonl"
    start = time.process_time()  # the machine may do other things
    data = prepare([path], smollm2, DataOptions())
    assert data.report.rows == 9997 and data.report.repeats.num_same == 4
    assert time.process_time() - start < 20
