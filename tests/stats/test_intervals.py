"""Intervals against brute force and scipy-made fixtures."""

from __future__ import annotations

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats import intervals
from tests.stats.planted import differences


def tango_by_grid(b: int, c: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The differences that the score test does not refute; the nuisance rate by maximising the likelihood on a grid."""
    inside = []
    for theta in np.linspace(-0.999, 0.999, 1999):
        p21 = np.linspace(max(0.0, -theta), (1 - theta) / 2, 4001)[1:-1]
        p12, rest = p21 + theta, 1 - 2 * p21 - theta
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [k * np.log(p) if k else np.zeros_like(p21) for k, p in ((b, p12), (c, p21), (n - b - c, rest))]
        best = p21[np.nanargmax(np.where((p12 > 0) & (rest > 0), sum(parts), -np.inf))]
        if abs(b - c - n * theta) <= z * np.sqrt(n * (2 * best + theta - theta**2)):
            inside.append(theta)
    return inside[0], inside[-1]


@pytest.mark.parametrize(("b", "c", "n"), [(8, 12, 100), (0, 5, 60), (20, 3, 50), (1, 1, 40), (30, 30, 80)])
def test_tango_is_the_score_test_inverted(b: int, c: int, n: int) -> None:
    interval = intervals.tango(b, c, n)
    low, high = tango_by_grid(b, c, n)
    assert interval.low == pytest.approx(low, abs=0.002)
    assert interval.high == pytest.approx(high, abs=0.002)
    assert interval.estimate == (b - c) / n


# By scipy 1.17.1: the nuisance rate by optimize.minimize_scalar on the likelihood, the ends by optimize.brentq.
@pytest.mark.parametrize(("b", "c", "n", "low", "high"), [
    (8, 12, 100, -0.13277495, 0.05072068), (0, 5, 60, -0.18068942, -0.01814716), (20, 3, 50, 0.16719317, 0.49659666),
    (1, 1, 40, -0.10804975, 0.10804975), (30, 30, 80, -0.18678443, 0.18678443),
    (86, 150, 1600, -0.05899803, -0.02136156), (16, 9, 94, -0.03130144, 0.18154586),
    (107, 107, 2141, -0.01348724, 0.01348724)])
def test_tango_equals_scipys_solution(b: int, c: int, n: int, low: float, high: float) -> None:
    interval = intervals.tango(b, c, n)
    assert interval.low == pytest.approx(low, abs=2e-8) and interval.high == pytest.approx(high, abs=2e-8)


# Figures that others published of R's PropCIs::scoreci.mp(c, b, n), to the digits that they gave.
@pytest.mark.parametrize(("b", "c", "n", "confidence", "low", "high"), [
    (28, 25, 618, 0.9, -0.0148, 0.0247), (20, 60, 1000, 0.95, -0.0584, -0.0231), (48, 41, 549, 0.9, -0.0157, 0.0414)])
def test_tango_equals_propcis(b: int, c: int, n: int, confidence: float, low: float, high: float) -> None:
    interval = intervals.tango(b, c, n, confidence)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_tango_covers_a_planted_difference() -> None:
    units = differences(np.random.default_rng(1), 2000, 150, 0.12, -0.03)
    wins, losses = (units > 0).sum(axis=1), (units < 0).sum(axis=1)
    covered = [i.low <= -0.03 <= i.high for i in map(intervals.tango, wins.tolist(), losses.tolist(), [150] * 2000)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_tango_without_discordant_pairs_is_not_a_point() -> None:
    interval = intervals.tango(0, 0, 100)
    assert interval.low == pytest.approx(-interval.high) and 0.02 < interval.high < 0.06


# scipy.stats.binomtest(k, n).proportion_ci(0.9, "exact").high
@pytest.mark.parametrize(("errors", "trials", "upper"), [
    (0, 100, 0.02951304960715665), (3, 100, 0.0757107937498301), (17, 250, 0.10025509167683261),
    (499, 500, 0.999897418673523)])
def test_binomial_bounds_equal_scipys(errors: int, trials: int, upper: float) -> None:
    assert intervals.binomial_upper(errors, trials, 0.05) == pytest.approx(upper, rel=1e-9)


# scipy.stats.binom.cdf(k, n, p)
@pytest.mark.parametrize(("errors", "trials", "rate", "expected"), [
    (3, 100, 0.05, 0.2578386591160152), (17, 250, 0.1, 0.05133576879894437),
    (499, 500, 0.999, 0.39362105513881523), (50, 2000, 0.03, 0.10415507681764569)])
def test_binomial_tails_equal_scipys(errors: int, trials: int, rate: float, expected: float) -> None:
    assert intervals.binomial_cdf(errors, trials, rate) == pytest.approx(expected, rel=1e-9)


def test_the_normal_interval_wants_thirty_units() -> None:
    with pytest.raises(EvidenceError, match="29 independent clusters"):
        intervals.normal([0.1] * 29)
    assert intervals.normal([0.0, 0.2] * 50).estimate == pytest.approx(0.1)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(EvidenceError, match="60 and 50 discordant of 100"):
        intervals.tango(60, 50, 100)
