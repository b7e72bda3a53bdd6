"""What labelled answers will certify: the figures that are promised before they are paid for."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats import logistic
from brise.stats import thresholds as cascade
from brise.stats.clusters import Floats
from brise.stats.thresholds import RiskClaim
from tests.stats.planted import three_standard_errors

PROMISE = RiskClaim(risk=0.05, delta=0.05)
APART = 2**0.5 * NormalDist().inv_cdf(0.9)  # of two normal curves with an AUROC of 0.90


def answers(rng: np.random.Generator, units: int, error: float = 0.12) -> tuple[Floats, Floats]:
    """Confidences of right and wrong answers, two normal curves with an AUROC of 0.90."""
    wrong = (rng.random(units) < error).astype(np.float64)
    return rng.normal(size=units) - APART * wrong, wrong


class Population:
    """So many answers that a threshold's risk is known. Each weighs `weights`, by default alike."""

    def __init__(self, confidences: Floats, wrong: Floats, weights: Floats | None = None) -> None:
        order = np.argsort(-confidences)
        share = np.ones(len(wrong)) if weights is None else weights
        self._falling = -confidences[order]
        self._risks = np.cumsum((wrong * share)[order]) / np.cumsum(share[order])

    def risk(self, confidence: float) -> float:
        """Of answers that are at least so sure."""
        return float(self._risks[np.searchsorted(self._falling, -confidence, side="right") - 1])


@pytest.fixture(scope="module")
def population() -> Population:
    return Population(*answers(np.random.default_rng(99), 200_000))


def test_the_figures_of_the_specification() -> None:
    """1,000 units certify 5 % and keep about 74 % at AUROC .90, where an oracle keeps 86 %; under 300, little."""
    rng = np.random.default_rng(1)
    many = answers(rng, 100_000)
    assert cascade.auroc(*many) == pytest.approx(0.9, abs=0.005)
    assert cascade.oracle(*many, PROMISE) == pytest.approx(0.86, abs=0.01)
    kept = {units: float(np.mean([found.kept if (found := cascade.sgr(*answers(rng, units), PROMISE)) else 0.0
                                  for _ in range(60)])) for units in (1000, 250)}
    assert kept[1000] == pytest.approx(0.74, abs=0.03)
    assert kept[250] < 0.3


def test_a_sequence_from_other_data_keeps_more_and_keeps_its_promise(population: Population,
                                                                      repetitions: Callable[[int], int]) -> None:
    rng, broken, kept, runs = np.random.default_rng(2), 0, [], repetitions(500)
    for _ in range(runs):
        thresholds = cascade.sequence(*answers(rng, 400), 1000, PROMISE)
        confidences, wrong = answers(rng, 1000)
        found, method = cascade.certify(confidences, wrong, range(1000), thresholds, PROMISE)
        kept.append(found.kept if found else 0.0)
        broken += found is not None and population.risk(found.confidence) > PROMISE.risk
    assert method.endswith("exact binomial tails")
    assert broken / runs <= three_standard_errors(PROMISE.delta, runs)
    assert np.mean(kept) > 0.74  # 0.779, with a standard error of 0.009 in 50 runs


def test_clustered_answers_keep_the_promise(repetitions: Callable[[int], int]) -> None:
    """Conversations of 1 to 6 answers; half of what goes wrong goes wrong for a whole conversation."""
    rng, broken, kept, runs = np.random.default_rng(3), 0, [], repetitions(500)

    def draw(conversations: int) -> tuple[Floats, Floats, Floats]:
        names = np.repeat(np.arange(conversations), rng.integers(1, 7, conversations)).astype(np.float64)
        whole = (rng.random(conversations) < 0.06)[names.astype(int)]
        wrong = (whole | (rng.random(len(names)) < 0.06)).astype(np.float64)
        return rng.normal(size=len(names)) - APART * wrong, wrong, names

    confidences, wrong, names = draw(50_000)
    truth = Population(confidences, wrong, 1 / np.bincount(names.astype(int))[names.astype(int)])
    for _ in range(runs):
        fitted = draw(150)
        thresholds = cascade.sequence(fitted[0], fitted[1], 500, PROMISE)
        confidences, wrong, names = draw(500)
        found, method = cascade.certify(confidences, wrong, names.tolist(), thresholds, PROMISE)
        kept.append(found.kept if found else 0.0)
        broken += found is not None and truth.risk(found.confidence) > PROMISE.risk
    assert method.endswith("means of clusters")
    assert broken / runs <= three_standard_errors(PROMISE.delta, runs)
    assert np.mean(kept) > 0.4


def test_a_few_pairs_among_single_answers_cost_little_and_keep_the_promise(population: Population,
                                                                          repetitions: Callable[[int], int]) -> None:
    """One answer in fifty stands in twice, with its confidence and its outcome."""
    rng, broken, kept, alone, runs = np.random.default_rng(8), 0, [], [], repetitions(500)
    for _ in range(runs):
        thresholds = cascade.sequence(*answers(rng, 400), 1000, PROMISE)
        confidences, wrong = answers(rng, 1000)
        twice = np.concatenate([np.arange(1000), np.arange(0, 1000, 50)])
        found, method = cascade.certify(confidences[twice], wrong[twice], twice.tolist(), thresholds, PROMISE)
        single, _ = cascade.certify(confidences, wrong, range(1000), thresholds, PROMISE)
        kept.append(found.kept if found else 0.0)
        alone.append(single.kept if single else 0.0)
        broken += found is not None and population.risk(found.confidence) > PROMISE.risk
    assert method.endswith("exact binomial tails, one answer drawn of each cluster")
    assert broken / runs <= three_standard_errors(PROMISE.delta, runs)
    assert kept == alone  # the pairs are alike, so the drawn answers are the same ones


def test_the_plan_says_what_will_be_kept() -> None:
    rng = np.random.default_rng(4)
    data = answers(rng, 2000)
    thousand = cascade.expected(*data, 1000, PROMISE)
    assert thousand.kept == pytest.approx(0.76, abs=0.06)
    assert cascade.expected(*data, 100, PROMISE).kept < 0.3
    needed = cascade.units_needed(*data, PROMISE)
    assert needed is not None and 300 <= needed.units <= 1000
    assert cascade.units_needed(np.zeros(500), np.ones(500), PROMISE) is None
    assert cascade.least_units(PROMISE) == 59 and cascade.least_units(RiskClaim(0.01, 0.05)) == 299


def test_ranking_is_measured_with_ties() -> None:
    assert cascade.auroc([3, 2, 1, 0], [0, 0, 1, 1]) == 1.0
    assert cascade.auroc([0, 1, 2, 3], [0, 0, 1, 1]) == 0.0
    assert cascade.auroc([1, 1, 1, 1], [0, 1, 0, 1]) == 0.5
    assert cascade.auroc([2, 1, 1, 0], [0, 1, 0, 1]) == pytest.approx(0.875)
    assert cascade.auroc([1, 2], [0, 0]) == 0.5


def test_too_few_units_are_refused() -> None:
    for method in (lambda: cascade.sgr(np.ones(29), np.zeros(29), PROMISE),
                   lambda: cascade.learn_then_test(np.ones(29), np.zeros(29), [0.5], PROMISE)):
        with pytest.raises(EvidenceError, match="29 independent clusters"):
            method()


def test_logistic_regression_finds_planted_weights() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal([1.0, -3.0, 0.0], [2.0, 0.5, 1.0], (20_000, 3))
    planted = np.array([0.8, -1.5, 0.0])
    odds = 0.3 + (values - [1.0, -3.0, 0.0]) / [2.0, 0.5, 1.0] @ planted
    outcomes = (rng.random(20_000) < 1 / (1 + np.exp(-odds))).astype(float)
    found = logistic.fit(values, outcomes)
    assert found.weights == pytest.approx(planted, abs=0.06) and found.bias == pytest.approx(0.3, abs=0.06)
    assert found.log_odds(values) == pytest.approx(odds, abs=0.4)


def test_logistic_regression_stays_finite_where_the_data_are_parted() -> None:
    values = np.array([[0.0, 7.0]] * 40 + [[1.0, 7.0]] * 40)
    found = logistic.fit(values, [0] * 40 + [1] * 40)
    assert np.isfinite(found.weights).all() and found.weights[0] > 1 and found.weights[1] == 0
    constant = logistic.fit(values, [1] * 80)
    assert np.isfinite(constant.bias) and constant.bias > 5
