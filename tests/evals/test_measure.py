"""Figures and their intervals: by hand, against scipy's or simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.evals.measure import Measure, bounded, difference, of_rows, ratio
from brise.stats.clusters import Floats
from brise.stats.intervals import tango


def binary(values: list[int] | Floats) -> Measure:
    return Measure("right", np.array([(value, 1) for value in values], np.float64), ratio)


def names(count: int, each: int = 1) -> list[str]:
    return [f"c{number // each}" for number in range(count * each)]


def test_ratio_of_sums_and_of_nothing() -> None:
    rows = of_rows([{"f1": (2, 3)}, {"f1": (2, 5)}, {}], ["f1", "other"])
    assert rows[0].estimate == 0.5 and np.isnan(rows[1].estimate)
    assert bounded(rows[1], names(3)).low is None


def test_right_or_wrong_has_the_exact_binomial_interval() -> None:
    found = bounded(binary([1] * 90 + [0] * 10), names(100))
    assert found.how == "exact binomial"
    assert (found.low, found.high) == pytest.approx((0.8237774, 0.9509953), abs=1e-6)  # scipy's binomtest(90, 100)


def test_all_right_is_not_certain() -> None:
    found = bounded(binary([1] * 100), names(100))
    assert (found.low, found.high) == pytest.approx((0.025 ** 0.01, 1.0))
    clustered = bounded(binary([1] * 200), names(50, 4))
    assert (clustered.low, clustered.high) == pytest.approx((0.025 ** 0.02, 1.0)), "as many as there are conversations"


def test_few_conversations_give_no_interval() -> None:
    found = bounded(binary([1, 0] * 100), names(20, 10))
    assert found.estimate == 0.5 and found.low is None and found.how == "fewer than 30 conversations"


def test_rows_of_one_conversation_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(1).integers(0, 2, 100), 6).astype(np.float64)
    one, six = bounded(binary(values), names(600)), bounded(binary(values), names(100, 6))
    assert one.low is not None and one.high is not None and six.low is not None and six.high is not None
    assert (six.high - six.low) / (one.high - one.low) == pytest.approx(6 ** 0.5, rel=0.1)


def test_the_same_seed_gives_the_same_interval() -> None:
    measure = Measure("f1", np.random.default_rng(0).integers(1, 9, (60, 2)).astype(np.float64), ratio)
    assert bounded(measure, names(60), 3) == bounded(measure, names(60), 3) != bounded(measure, names(60), 4)


def test_the_bootstrap_covers_the_truth_of_a_clustered_f1() -> None:
    """Conversations with a rate of their own: 95 % intervals hold the true ratio in 91 to 99 % of 150 simulations."""
    draws, hits = np.random.default_rng(7), 0
    for _ in range(150):
        rates = draws.beta(4, 2, 60)  # mean 2/3
        wanted = np.repeat(draws.poisson(3, 60) + 1, 3)
        right = draws.binomial(wanted, np.repeat(rates, 3))
        found = bounded(Measure("recall", np.stack([right, wanted], 1).astype(np.float64), ratio), names(60, 3))
        assert found.low is not None and found.high is not None
        hits += found.low <= 2 / 3 <= found.high
    assert 0.91 * 150 <= hits <= 0.99 * 150


def test_a_difference_of_right_or_wrong_is_tangos() -> None:
    one, other = binary([1] * 50 + [0] * 10 + [1] * 40), binary([1] * 50 + [1] * 10 + [0] * 40)
    found = difference(one, other, names(100))
    wanted = tango(40, 10, 100)
    assert (found.estimate, found.low, found.high) == (wanted.estimate, wanted.low, wanted.high)


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    counts = np.random.default_rng(2).integers(0, 9, (80, 2)).astype(np.float64)
    counts[:, 1] += counts[:, 0]
    better = counts + np.array([1.0, 1.0])
    found = difference(Measure("a", better, ratio), Measure("b", counts, ratio), names(80))
    alone = bounded(Measure("b", counts, ratio), names(80))
    assert found.low is not None and found.high is not None and alone.low is not None and alone.high is not None
    assert found.low > 0 and found.high - found.low < (alone.high - alone.low) / 2


def test_a_difference_needs_the_same_rows() -> None:
    with pytest.raises(EvidenceError, match="2 and 3 rows"):
        difference(binary([1, 0]), binary([1, 0, 1]), names(2))
