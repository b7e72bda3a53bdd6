"""A paired non-inferiority test: may the small model take over? It is valid at every interim analysis.

Each cluster gives D = S - T, the small model's score less the large one's, in [-1, 1]. The claim to be shown is
E[D] > -delta, for a margin delta stated before any data are seen. A claim about answers weighs a cluster by its n rows:
it bets on their sum of D + delta over a bound M of n (clusters.Bets), which is positive on average if the claim holds.
Evidence grows as the wealth of a bettor who bets on the claim: Waudby-Smith & Ramdas, 2010.09686; time-uniform bounds:
Howard et al., 1810.08240.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import Bets, ClusterLayout, Floats, require_clusters, scores, stacked

# The stakes of eight bettors; wealth is their mean, so none of them has to be the right one. Sums over M are smaller
# than means, because most clusters are shorter than M, so their stakes lie higher (docs/dev/LOG.md, 2026-11-30).
STAKES: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
STAKES_OF_SUMS: Sequence[float] = (0.1, 0.2, 0.35, 0.5, 0.7, 0.8, 0.9, 1.0)

BLOCK = 128  # clusters whose product of factors in [0.1, 2.8] stays far inside a double's range
LARGEST = sys.float_info.max / len(STAKES)

# Seconds at which the large model's p95 may lie, 8 to a factor of 10: fixed before any data, as they must be.
LIMITS_S: Sequence[float] = tuple(round(10 ** (k / 8), 4) for k in range(-16, 17))

Verdict = Literal["promote", "not good enough", "undecided"]


@dataclass(frozen=True)
class NonInferiorityTest:
    """The test's guarantee: a model that is `delta` or more worse is promoted with probability `alpha` at most.

    Wealth of `futility` for the opposite claim ends the test with "not good enough". Each cluster's D is within
    `bound` of zero: 1, but more for a judge's opinions that are corrected by people (labels.corrected_units).
    """

    delta: float = 0.02
    alpha: float = 0.05
    futility: float = 20.0
    bound: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise EvidenceError(f"delta is {self.delta}, allowed is 0 to under 1")
        if not 0 < self.alpha < 1:
            raise EvidenceError(f"alpha is {self.alpha}, allowed is over 0 and under 1")
        if not self.futility > 1:
            raise EvidenceError(f"futility is {self.futility}, it must be over 1")
        if not self.bound >= 1:
            raise EvidenceError(f"the bound is {self.bound}, it must be 1 or more")


@dataclass(frozen=True)
class Outcome:
    """The verdict, decided after `decided_at` clusters (None: not yet). The paths have a value for each cluster."""

    verdict: Verdict
    decided_at: int | None
    path: Floats
    futility_path: Floats


def decide(differences: Any, test: NonInferiorityTest) -> Outcome:
    """Runs the test over clusters (their D, or bets) in the order in which they came; the first decision stands."""
    require_clusters(_checked(differences, test.bound))
    if not isinstance(differences, Bets):
        differences = np.asarray(differences, np.float64)
    path, against = (side(differences, test.delta, test.bound) for side in (wealth, wealth_against))
    promoted, stopped = _first(path >= 1 / test.alpha), _first(against >= test.futility)
    if promoted is not None and (stopped is None or promoted <= stopped):
        return Outcome("promote", promoted + 1, path, against)
    if stopped is not None:
        return Outcome("not good enough", stopped + 1, path, against)
    return Outcome("undecided", None, path, against)


def _checked(differences: Any, bound: float) -> int:
    """The number of clusters; EvidenceError where a difference is over the bound."""
    if not isinstance(differences, Bets):
        return len(scores(differences, "differences", -bound, bound))
    weights = scores(differences.weights, "weights")
    within = bound * (1 + 1e-12) * np.maximum(weights, 1e-300)
    scores(differences.values / within, "differences", -1.0, 1.0)
    return len(weights)


def wealth(differences: Bets | Floats, delta: float, bound: float = 1.0) -> Floats:
    """K_t after each cluster: the mean over stakes of prod(1 + stake (D + delta)); 1 / alpha of it is proof.

    Under E[D] <= -delta it reaches 1 / alpha with probability alpha at most, at any number of interim analyses. Shape
    (..., n) of clusters gives the same shape. With a larger `bound` of |D| the stakes are so much smaller.
    """
    return _wealth(differences, delta, bound, 1.0)


def wealth_against(differences: Bets | Floats, delta: float, bound: float = 1.0) -> Floats:
    """Evidence for the opposite claim, E[D] < -delta."""
    return _wealth(differences, delta, bound, -1.0)


def _wealth(differences: Bets | Floats, delta: float, bound: float, sign: float) -> Floats:
    largest = bound / (bound - sign * delta)
    if not isinstance(differences, Bets):
        return mixture((sign * np.asarray(differences, np.float64) + sign * delta) / bound, largest, STAKES)
    return _path((sign * differences.values + sign * delta * differences.weights) / bound, largest, differences)


def _path(gains: Floats, largest_stake: float, bets: Bets) -> Floats:
    """Wealth over clusters whose M may grow, while it is learned.

    Where M grows, so does the claim, to the first M answers of each conversation. What was won with the smaller one is
    given up, what was lost is not. So if the claim with the last M is false, the wealth since then was fair from a
    start of 1 or less, whether those before it were false (then it was fair throughout) or true.
    """
    changes = [0, *(np.flatnonzero(np.diff(bets.limits)) + 1).tolist(), len(bets.limits)]
    out, capital = np.empty(gains.shape), np.ones(gains.shape[:-1])
    for start, end in zip(changes, changes[1:], strict=False):
        if start == end:
            continue
        stakes = STAKES if bets.limits[start] == 1 else [
            stake * max(1.0, min(largest_stake / 2, float(bets.limits[start]))) for stake in STAKES_OF_SUMS]
        part = np.minimum(capital[..., None] * mixture(gains[..., start:end], largest_stake, stakes), LARGEST)
        if end < len(bets.limits) or bets.limits[start] < bets.most_rows:
            part = np.minimum(part, capital[..., None])
            capital = part[..., -1]
        out[..., start:end] = part
    return out


def mixture(gains: Floats, largest_stake: float, stakes: Sequence[float]) -> Floats:
    """Wealth after each cluster: the mean over stakes of prod(1 + stake gain), along the last axis.

    Sums and products only, in the order of time: IEEE 754 gives the same bits on every machine for them, but not
    for logarithms. So a path can be replayed to the last bit.
    """
    total = np.zeros(gains.shape)
    for stake in stakes:
        total += _products(1 + min(stake, largest_stake) * gains)
    mean: Floats = np.minimum(total / len(stakes), LARGEST)
    return mean


def _products(factors: Floats) -> Floats:
    """Running products along the last axis. Powers of two are split off block by block, so that evidence which once
    left the range of a double comes back as it was.
    """
    out = np.empty(factors.shape)
    mantissa, exponent = np.ones(factors.shape[:-1]), np.zeros(factors.shape[:-1], np.int64)
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, factors.shape[-1], BLOCK):
            block = np.maximum(factors[..., start:start + BLOCK], 0.0)
            block[..., 0] *= mantissa
            block = np.cumprod(block, axis=-1)
            out[..., start:start + BLOCK] = np.minimum(np.ldexp(block, exponent[..., None]), LARGEST)
            mantissa, taken = np.frexp(block[..., -1])
            exponent = exponent + taken
    return out


def _first(reached: Any) -> int | None:
    return int(np.argmax(reached)) if reached.any() else None


@dataclass(frozen=True)
class SampleSizePlan:
    """What a test will cost: `units` clusters to compare, of which about `labels` differ and need a judgement."""

    units: int
    labels: int


def plan(discordance: float, test: NonInferiorityTest, power: float = 0.9) -> SampleSizePlan:
    """Clusters for a model that is as good as the large one, with `discordance` = P(S != T).

    The fixed-n normal approximation (z_{1-alpha} + z_power)^2 discordance / delta^2. The sequential
    test promotes an equal model in 6 of 10 runs by then, and in 9 of 10 by twice as many (simulated).
    """
    if not 0 < discordance <= 1:
        raise EvidenceError(f"discordance is {discordance}, allowed is over 0 to 1")
    units = units_needed(discordance, test, power)
    return SampleSizePlan(units, round(discordance * units))


def units_needed(spread: float, test: NonInferiorityTest, power: float = 0.9) -> int:
    """The same with the variance of what each cluster gives: of sums it may be over 1."""
    if not 0.5 <= power < 1:
        raise EvidenceError(f"power is {power}, allowed is 0.5 to under 1")
    if test.delta == 0:
        raise EvidenceError("delta is 0: no number of clusters shows that two equal models are equal",
                            hint="state how many points worse the small model may be")
    z = NormalDist().inv_cdf(1 - test.alpha) + NormalDist().inv_cdf(power)
    return round(z * z * spread / test.delta**2)


def candidate_alpha(alpha: float, k: int) -> float:
    """The alpha of the k-th candidate (from 1) tried on one set of data; all together stay within `alpha`."""
    if k < 1:
        raise EvidenceError(f"candidates count from 1, got {k}")
    return alpha * 6 / (math.pi * k) ** 2


def alpha_left(alpha: float, k: int) -> float:
    """What the first k candidates leave of `alpha` to all that may follow."""
    return alpha - sum(candidate_alpha(alpha, number) for number in range(1, k + 1))


def proven_slices(evidence: Mapping[str, float], alpha: float = 0.05) -> frozenset[str]:
    """Slices whose e-values pass e-BH (Wang & Ramdas, 2009.02824): at most `alpha` of them are wrong on average.

    A slice that is not among them always escalates.
    """
    ranked = sorted(evidence, key=lambda name: -evidence[name])
    passing = [k for k, name in enumerate(ranked, 1) if k * evidence[name] >= len(ranked) / alpha]
    return frozenset(ranked[:max(passing, default=0)])


def rate_wealth(successes: Bets | Floats, least: float) -> Floats:
    """Evidence after each cluster that a rate (valid JSON, within the latency limit) is over `least`.

    `successes` are in [0, 1], shape (..., n). For p95 latency: success is an answer within a limit stated before, least
    is 0.95; p95_wealth compares two models.
    """
    if not 0 < least < 1:
        raise EvidenceError(f"the least rate is {least}, allowed is over 0 and under 1")
    if isinstance(successes, Bets):
        return _path(successes.values - least * successes.weights, 1 / least, successes)
    found = np.asarray(successes, np.float64)
    scores(found.ravel(), "successes")
    return mixture(found - least, 1 / least, STAKES)


def p95_wealth(small_s: Any, large_s: Any, layout: ClusterLayout, margin_s: float, quantile: float = 0.95) -> Floats:
    """Evidence after each cluster that the small model's p95 is at most `margin_s` above the large one's.

    If it is more, then for every limit x either under 95 % of small answers come within x + margin, or over 95 % of
    large ones within x. So the lesser of the two pieces of evidence against that is fair at each x, and so is their
    mean over limits that were fixed before. Under the null it reaches 1 / alpha with probability alpha at most.
    """
    small, large = np.asarray(small_s, np.float64), np.asarray(large_s, np.float64)
    if not (np.isfinite(small).all() and np.isfinite(large).all()) or min(small.min(), large.min()) < 0:
        raise EvidenceError("a latency is not a number of seconds from 0 on")
    if not margin_s >= 0:
        raise EvidenceError(f"the margin is {margin_s} s, allowed is 0 and more")
    is_fast = stacked([layout.bets(small <= limit + margin_s) for limit in LIMITS_S])
    is_slow = stacked([layout.bets(large > limit) for limit in LIMITS_S])
    lesser = np.minimum(rate_wealth(is_fast, quantile), rate_wealth(is_slow, 1 - quantile))
    mean: Floats = lesser.mean(axis=0)
    return mean
