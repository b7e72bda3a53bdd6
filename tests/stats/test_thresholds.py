"""Kept answers are wrong as seldom as promised, on data whose truth was planted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats import thresholds
from brise.stats.clusters import Floats
from brise.stats.thresholds import RiskClaim, Threshold
from tests.stats.planted import three_standard_errors

PROMISE = RiskClaim(risk=0.05, delta=0.05)
RUNS = 500


def answers(rng: np.random.Generator, units: int) -> tuple[Floats, Floats]:
    """Confidences, and whether wrong: 15 % overall, ranked with an AUROC of about 0.9."""
    signal = rng.normal(size=units)
    return signal + rng.normal(scale=0.3, size=units), (rng.random(units) < chance(signal)).astype(np.float64)


def chance(signal: Floats) -> Floats:
    out: Floats = 1 / (1 + np.exp(3.2 * signal + 3.0))
    return out


@pytest.fixture(scope="module")
def population() -> tuple[Floats, Floats]:
    return answers(np.random.default_rng(99), 400_000)


def true_risk(threshold: Threshold, population: tuple[Floats, Floats]) -> float:
    kept = population[0] >= threshold.confidence
    return float(population[1][kept].mean())


def test_sgr_breaks_its_promise_at_most_delta_of_the_time(population: tuple[Floats, Floats],
                                                             repetitions: Callable[[int], int]) -> None:
    rng, broken, kept, runs = np.random.default_rng(1), 0, [], repetitions(RUNS)
    for _ in range(runs):
        found = thresholds.sgr(*answers(rng, 1000), PROMISE)
        if found is not None:
            broken += true_risk(found, population) > PROMISE.risk
            kept.append(found.kept)
    assert broken / runs <= three_standard_errors(PROMISE.delta, runs)
    assert np.mean(kept) > 0.5  # and it is of use: 0.58, with a standard error of 0.009 in 50 runs


def test_a_point_estimate_would_break_it_half_the_time(population: tuple[Floats, Floats]) -> None:
    rng, broken = np.random.default_rng(2), 0
    for _ in range(200):
        confidences, wrong = answers(rng, 1000)
        order = np.argsort(-confidences)
        rates = np.cumsum(wrong[order]) / np.arange(1, 1001)
        last = int(np.flatnonzero(rates <= PROMISE.risk)[-1])
        broken += float(population[1][population[0] >= confidences[order][last]].mean()) > PROMISE.risk
    assert broken / 200 > 0.3


def test_learn_then_test_keeps_its_promise(population: tuple[Floats, Floats],
                                              repetitions: Callable[[int], int]) -> None:
    rng, broken, kept, runs = np.random.default_rng(3), 0, [], repetitions(RUNS)
    grid = np.quantile(population[0][:2000], np.linspace(0, 0.95, 39)).tolist()
    for _ in range(runs):
        found = thresholds.learn_then_test(*answers(rng, 1000), grid, PROMISE)
        if found is not None:
            broken += true_risk(found, population) > PROMISE.risk
            kept.append(found.kept)
    assert broken / runs <= three_standard_errors(PROMISE.delta, runs)
    assert np.mean(kept) > 0.5


def test_clusters_keep_the_promise_where_rows_would_not() -> None:
    rng, by_cluster, by_row = np.random.default_rng(4), 0, 0
    runs, sessions, rows = 300, 60, 12
    for _ in range(runs):
        # Every session is all right or all wrong; confidence says nothing. 5.5 % are wrong: over the promise.
        wrong = np.repeat((rng.random(sessions) < 0.055).astype(np.float64), rows)
        confidences = rng.random(sessions * rows)
        names = np.repeat(np.arange(sessions), rows).tolist()
        grid = [0.5, 0.2, 0.0]
        by_cluster += thresholds.learn_then_test_clusters(confidences, wrong, names, grid, PROMISE) is not None
        by_row += thresholds.learn_then_test(confidences, wrong, grid, PROMISE) is not None
    assert by_row / runs > 0.15
    assert by_cluster / runs <= three_standard_errors(PROMISE.delta, runs)


def test_clusters_can_be_certified() -> None:
    rng = np.random.default_rng(6)
    confidences = rng.random(6000)
    wrong = (rng.random(6000) < 0.005).astype(np.float64)
    names = np.repeat(np.arange(600), 10).tolist()
    found = thresholds.learn_then_test_clusters(confidences, wrong, names, [0.8, 0.4, 0.0], PROMISE)
    assert found is not None and found.confidence == 0.0 and found.kept == 1.0


def test_an_impossible_promise_is_an_answer() -> None:
    wrong = (np.random.default_rng(5).random(1000) < 0.3).astype(np.float64)
    assert thresholds.sgr(np.zeros(1000), wrong, PROMISE) is None
    assert thresholds.learn_then_test(np.zeros(1000), wrong, [0.0], PROMISE) is None
    assert thresholds.floor(0.3, PROMISE) == pytest.approx(0.25 / 0.95)
    assert thresholds.floor(0.01, PROMISE) == 0.0


def test_equal_confidences_are_kept_together() -> None:
    found = thresholds.sgr(np.ones(500), np.zeros(500), PROMISE)
    assert found is not None and found.kept == 1.0


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(EvidenceError, match="3 confidences and 2 outcomes"):
        thresholds.sgr([1, 2, 3], [0, 1], PROMISE)
    with pytest.raises(EvidenceError, match="neither 0"):
        thresholds.sgr([1, 2], [0, 0.5], PROMISE)
    with pytest.raises(EvidenceError, match="risk is 0"):
        RiskClaim(risk=0)
    with pytest.raises(EvidenceError, match="2 independent clusters"):
        thresholds.learn_then_test_clusters([1.0, 1.0], [0, 0], ["a", "b"], [0.5], PROMISE)
