"""Classification against values computed by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from brise.evals import classify, scorers
from brise.evals.example import EvalAnswer
from tests.evals.rows import examples


def figures(wanted: list[str], given: list[str]) -> dict[str, float]:
    rows = examples(*wanted)
    scorer = scorers.built_in(classify.labels_of(rows))["class"]
    return {measure.name: measure.estimate for measure in scorer.measures(rows, [EvalAnswer(text) for text in given])}


def test_by_hand() -> None:
    found = figures(["a", "a", "b", "c"], ["a", "b", "b ", "I think it is c"])
    assert found == pytest.approx({"accuracy": 0.5, "outside": 0.25, "macro_f1": (2 / 3 + 2 / 3 + 0) / 3})


def test_macro_f1_is_scikit_learns_over_the_labels_of_references() -> None:
    draws = np.random.default_rng(0)
    wanted, given = ([f"l{number}" for number in draws.integers(0, 7, 300)] for _ in range(2))
    given[:20] = ["nonsense"] * 20
    assert figures(wanted, given)["macro_f1"] == pytest.approx(
        f1_score(wanted, given, labels=sorted(set(wanted)), average="macro", zero_division=0))


def test_confusions_are_the_most_frequent_mistakes_first() -> None:
    rows = examples("a", "a", "b", "b", "c")
    answers = [EvalAnswer(text) for text in ("b", "b", "b", "x" * 200, "a")]
    assert classify.confusions(rows, answers) == [("a", "b", 2), ("b", "x" * 80, 1), ("c", "a", 1)]
    assert len(classify.confusions(rows, answers, most=1)) == 1
