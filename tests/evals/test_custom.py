"""A scorer of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.errors import EvidenceError
from brise.evals import custom
from brise.evals.example import EvalAnswer
from tests.evals.rows import examples

ROWS = examples("right", "left")
ANSWERS = [EvalAnswer("right"), EvalAnswer("up")]


def written(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"def score(example, answer):\n    {body}\n")
    return f"{path}:score"


def figures(spec: str) -> dict[str, float]:
    return {measure.name: measure.estimate for measure in custom.load(spec).measures(ROWS, ANSWERS)}


def test_a_number_is_one_figure(tmp_path: Path) -> None:
    assert figures(written(tmp_path, "return example['reference']['text'] == answer['text']")) == {"score": 0.5}


def test_a_dict_has_several_and_a_row_may_lack_one(tmp_path: Path) -> None:
    more = "({'r': 1} if 'r' in answer['text'] else {})"
    found = figures(written(tmp_path, f"return {{'length': len(answer['text']), **{more}}}"))
    assert found == {"length": 3.5, "r": 1.0}


def test_the_example_has_its_prompt(tmp_path: Path) -> None:
    assert figures(written(tmp_path, "return float(example['messages'][0]['content'] == '?')")) == {"score": 1.0}


@pytest.mark.parametrize(("body", "message"), [
    ("return 1 / (answer['text'] != 'up')", r"failed at data\.jsonl:2: ZeroDivisionError"),
    ("return 'good'", r"gave 'score': 'good' at data\.jsonl:1"), ("return float('nan')", "gave 'score': nan"),
    ("return {1: 2}", "gave 1: 2"), ("return None", "gave 'score': None")])
def test_its_errors_name_the_row(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        figures(written(tmp_path, body))


@pytest.mark.parametrize(("spec", "message"), [
    ("mine.py", "allowed is FILE.py:FUNCTION"), ("mine:score", "allowed is"), ("mine.py:a b", "allowed is"),
    ("absent.py:score", "cannot be run: FileNotFoundError")])
def test_a_wrong_name_is_refused(spec: str, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        custom.load(spec)


def test_a_broken_file_and_a_missing_function_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def (")
    with pytest.raises(EvidenceError, match="cannot be run: SyntaxError"):
        custom.load(f"{tmp_path / 'mine.py'}:score")
    with pytest.raises(EvidenceError, match="has no function 'other'"):
        custom.load(written(tmp_path, "pass").replace(":score", ":other"))
