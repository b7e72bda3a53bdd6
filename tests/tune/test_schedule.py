"""The learning rate over the steps."""

from __future__ import annotations

import math

import pytest

from brise.tune.recipe import Recipe
from brise.tune.train import learning_rate


def recipe(**changes: object) -> Recipe:
    return Recipe(**({"learning_rate": 1.0, "warmup": 0.0,
                      "min_learning_rate": 0.1} | changes))  # type: ignore[arg-type]


def test_warm_up_rises_evenly_and_ends_at_the_peak() -> None:
    rates = [learning_rate(recipe(warmup=0.04), step, 100) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_it_falls_to_the_floor(kind: str, middle: float) -> None:
    made = recipe(schedule=kind)
    assert learning_rate(made, 50, 101) == pytest.approx(middle)
    assert learning_rate(made, 100, 101) == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert learning_rate(made, 1000, 101) == learning_rate(made, 100, 101)


def test_cosine_is_the_textbook_formula() -> None:
    made = recipe(min_learning_rate=0.0)
    assert [learning_rate(made, step, 11) for step in range(11)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(11)])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 1.0])
def test_one_step_has_the_whole_rate(kind: str, warmup: float) -> None:
    assert learning_rate(recipe(schedule=kind, warmup=warmup), 0, 1) == 1.0
