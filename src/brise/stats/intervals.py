"""Confidence intervals for a sample size that was fixed beforehand, to be read beside the sequential test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import require_clusters, scores


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits."""

    estimate: float
    low: float
    high: float


def tango(only_small: int, only_large: int, units: int, confidence: float = 0.95) -> Interval:
    """Tango's score interval (Statistics in Medicine 17, 1998) for a difference of paired proportions.

    Of `units` independent pairs, `only_small` had only the small model right, `only_large` only the large one.
    """
    if min(only_small, only_large) < 0 or units < 1 or only_small + only_large > units:
        raise EvidenceError(f"{only_small} and {only_large} discordant of {units} pairs cannot be")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    estimate = (only_small - only_large) / units

    def excess(theta: float, sign: float) -> float:
        return _score(only_small, only_large, units, theta) - sign * z

    return Interval(estimate, _root(lambda t: excess(t, 1.0), -1.0, estimate),
                    _root(lambda t: excess(t, -1.0), estimate, 1.0))


def normal(differences: Any, confidence: float = 0.95) -> Interval:
    """Mean of independent clusters and its interval by the central limit theorem."""
    units = scores(differences, "differences", -1.0, 1.0)
    require_clusters(len(units))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(units.std(ddof=1)) / math.sqrt(len(units))
    mean = float(units.mean())
    return Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def ratio(sums: Any, numbers: Any, confidence: float = 0.95) -> Interval:
    """The mean over all rows, from each cluster's sum and number of rows; rows of one cluster may go together.

    The ratio estimator (Cochran, Sampling Techniques, 6.3): the spread is that of sums less the mean times the number.
    """
    tops, bottoms = np.asarray(sums, np.float64), np.asarray(numbers, np.float64)
    require_clusters(len(tops))
    mean = float(tops.sum() / bottoms.sum())
    spread = math.sqrt(float(((tops - mean * bottoms) ** 2).sum()) * len(tops) / (len(tops) - 1))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread / float(bottoms.sum())
    return Interval(mean, mean - half, mean + half)


def binomial_upper(errors: int, trials: int, delta: float) -> float:
    """The largest rate not refuted at level `delta` by `errors` in `trials` (Clopper-Pearson, one-sided)."""
    if errors >= trials:
        return 1.0
    return _root(lambda p: binomial_cdf(errors, trials, p) - delta, errors / trials, 1.0)


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A share and the interval of Clopper and Pearson (1934)."""
    tail = (1 - confidence) / 2
    return Interval(successes / trials, 1 - binomial_upper(trials - successes, trials, tail),
                    binomial_upper(successes, trials, tail))


def binomial_cdf(errors: int, trials: int, rate: float) -> float:
    """P(Bin(trials, rate) <= errors), exact."""
    if rate <= 0 or errors >= trials:
        return 1.0
    if rate >= 1:
        return 0.0
    ks = np.arange(errors + 1, dtype=np.float64)
    steps = np.log(trials - ks[:-1]) - np.log(ks[1:])  # log C(n, k + 1) - log C(n, k)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + ks * math.log(rate) + (trials - ks) * math.log1p(-rate)
    return min(1.0, float(np.exp(np.logaddexp.reduce(logs))))


def _score(b: int, c: int, n: int, theta: float) -> float:
    """The score statistic at difference `theta`; the nuisance rate has its constrained maximum."""
    if abs(theta) >= 1:
        return math.copysign(math.inf, (b - c) / n - theta) if (b - c) / n != theta else 0.0
    linear = -b - c + (2 * n - b + c) * theta
    nuisance = (math.sqrt(max(linear * linear + 8 * n * c * theta * (1 - theta), 0.0)) - linear) / (4 * n)
    variance = n * (2 * nuisance + theta * (1 - theta))
    gap = b - c - n * theta
    if variance <= 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / math.sqrt(variance)


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where the falling f crosses zero, to the last bit of a double."""
    if f(low) <= 0:
        return low
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2
