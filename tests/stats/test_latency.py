"""The p95 of the small model: shown where it is within the margin, hardly ever where it is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats.clusters import Weighting, lay_out
from brise.stats.sequential_test import p95_wealth
from tests.stats.planted import three_standard_errors

UNITS = 700
LAYOUT = lay_out(range(UNITS), Weighting())


def test_a_faster_model_is_shown_to_be_and_a_slower_one_is_not() -> None:
    rng = np.random.default_rng(1)
    large = rng.exponential(1.0, UNITS)  # p95: 3.0 s
    assert p95_wealth(rng.exponential(0.4, UNITS), large, LAYOUT, 0.5).max() >= 20
    assert p95_wealth(large + 0.2, large, LAYOUT, 2.5).max() >= 20
    assert p95_wealth(rng.exponential(2.0, UNITS), large, LAYOUT, 0.5)[-1] < 1


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_at_the_boundary_the_promise_is_kept(margin: float, repetitions: Callable[[int], int]) -> None:
    rng, runs = np.random.default_rng(2), repetitions(100)
    shown = 0
    for _ in range(runs):
        large = rng.exponential(1.0, UNITS)
        small = rng.exponential(1.0, UNITS) + margin  # its p95 is the margin above
        shown += p95_wealth(small, large, LAYOUT, margin).max() >= 20
    assert shown / runs <= three_standard_errors(0.05, runs)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(EvidenceError, match="not a number of seconds"):
        p95_wealth([np.nan], [1.0], lay_out(["a"], Weighting()), 0.0)
    with pytest.raises(EvidenceError, match="margin is -1"):
        p95_wealth([1.0], [1.0], lay_out(["a"], Weighting()), -1.0)
