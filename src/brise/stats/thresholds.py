"""Thresholds on the small model's confidence decide which of its answers are kept, with a guarantee about those.

The claim: P(wrong | kept) <= risk, with probability 1 - delta over the calibration data, where each answer weighs alike
(or, in learn_then_test_clusters, each conversation). Higher confidence means surer. Sources: SGR (Geifman & El-Yaniv,
1705.08500); Learn then Test (Angelopoulos et al., 2110.01052).

Answers of one conversation go wrong together, so a conversation is one bet: on the sum of risk - wrong over its kept
answers, over the bound M of its length. That is over 0 on average only if the claim holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brise.errors import EvidenceError
from brise.stats.clusters import ClusterLayout, Floats, require_clusters, scores
from brise.stats.intervals import binomial_cdf, binomial_upper, ratio
from brise.stats.sequential_test import STAKES, candidate_alpha

MOSTLY_ALONE = 0.9  # of the rows are drawn, or clusters are bet on


@dataclass(frozen=True)
class RiskClaim:
    """At most `risk` of the kept answers are wrong, and this itself fails with probability `delta` at most."""

    risk: float = 0.05
    delta: float = 0.05

    def __post_init__(self) -> None:
        for name, value in (("risk", self.risk), ("delta", self.delta)):
            if not 0 < value < 1:
                raise EvidenceError(f"{name} is {value}, allowed is over 0 and under 1")


@dataclass(frozen=True)
class Threshold:
    """Keep answers with confidence >= `confidence`. `bound` is the certified risk, `kept` their share."""

    confidence: float
    kept: float
    bound: float


def of_analysis(claim: RiskClaim, k: int) -> RiskClaim:
    """What the k-th interim analysis (from 1) of one set of data may claim; all together fail with `delta` at most."""
    return replace(claim, delta=candidate_alpha(claim.delta, k))


def floor(error_rate: float, claim: RiskClaim) -> float:
    """The share that must escalate even if confidence ranked perfectly (2606.29054)."""
    return max(0.0, (error_rate - claim.risk) / (1 - claim.risk))


def least_units(claim: RiskClaim, most_rows: int = 1) -> int:
    """Answers that must be kept, all of them right, before anything can be certified: (1 - risk)^n <= delta.

    With conversations of up to `most_rows` answers, stakes are so much smaller.
    """
    return math.ceil(-math.log(claim.delta) / math.log1p(claim.risk / (1 - claim.risk) / most_rows))


def auroc(confidences: Any, wrong: Any) -> float:
    """How often a right answer has the higher confidence than a wrong one, ties counting half; 0.5 if all are equal."""
    confident, mistakes = np.asarray(confidences, np.float64), scores(wrong, "wrong")
    bad = int(mistakes.sum())
    if not 0 < bad < len(mistakes):
        return 0.5
    _, inverse, counts = np.unique(confident, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts - 1) / 2  # the rank of each value, ties sharing theirs
    good = len(mistakes) - bad
    return float((middles[inverse][mistakes == 0].sum() - good * (good + 1) / 2) / (good * bad))


def oracle(confidences: Any, wrong: Any, claim: RiskClaim) -> float:
    """The share that could be kept if the error of each threshold were known: an upper limit for every rule."""
    ranked, errors = _ranked(confidences, wrong)
    fine = np.flatnonzero(errors <= claim.risk * np.arange(1, len(ranked) + 1))
    return float(fine[-1] + 1) / len(ranked) if len(fine) else 0.0


@dataclass(frozen=True)
class Expected:
    """The share that `units` labelled answers would certify, if they are like the data that this is computed from."""

    units: int
    kept: float


def expected(confidences: Any, wrong: Any, units: int, claim: RiskClaim) -> Expected:
    """By exact binomial tails at the data's own error of each share, and one error more."""
    ranked, errors = _ranked(confidences, wrong)
    for kept in sorted({*np.linspace(1, len(ranked), 100).astype(int).tolist()}, reverse=True):
        number = round(units * kept / len(ranked))
        mistakes = math.ceil(errors[kept - 1] * units / len(ranked)) + 1
        if number and binomial_cdf(mistakes, number, claim.risk) <= claim.delta:
            return Expected(units, kept / len(ranked))
    return Expected(units, 0.0)


def units_needed(confidences: Any, wrong: Any, claim: RiskClaim, share: float = 0.8) -> Expected | None:
    """The fewest of 100, 200, 500, ... answers that would keep `share` of what the oracle keeps; None: not 100,000."""
    wanted = share * oracle(confidences, wrong, claim)
    if wanted == 0:
        return None
    sizes = (step * 10**power for power in (2, 3, 4) for step in (1, 2, 3, 5, 7))
    return next((found for size in sizes
                 if (found := expected(confidences, wrong, size, claim)).kept >= wanted), None)


def sequence(confidences: Any, wrong: Any, units: int, claim: RiskClaim, steps: int = 40) -> list[float]:
    """Thresholds for `learn_then_test`, from other data than it will be given, which have so many `units` (answers).

    The first is where the test is likeliest to pass: a stricter one keeps too few answers to show anything.
    """
    ranked, errors = _ranked(confidences, wrong)
    places = sorted({max(1, round(len(ranked) * step / steps)) for step in range(1, steps + 1)})
    tails = [binomial_cdf(round((errors[kept - 1] + 0.5) * units / len(ranked)),
                          max(1, round(units * kept / len(ranked))), claim.risk) for kept in places]
    start = int(np.argmin(tails))
    return [float(ranked[kept - 1]) for kept in places[start:]]


@dataclass(frozen=True)
class Try:
    """A threshold to be tested, with the stake of its bets. By the data that it is from, wealth grows by the factor
    exp(`growth`) with each cluster, and the share `kept` of answers is kept.
    """

    confidence: float
    stake: float
    growth: float
    kept: float


def tries(confidences: Any, wrong: Any, layout: ClusterLayout, claim: RiskClaim, steps: int = 40) -> list[Try]:
    """Thresholds and stakes for `certify_answers`, from other data than it will be given. The first is where wealth
    grows fastest: a stricter one keeps too few answers to show anything.
    """
    confident, mistakes = np.asarray(confidences, np.float64), scores(wrong, "wrong")
    ranked, _ = _ranked(confident, mistakes)
    places = sorted({max(1, round(len(ranked) * step / steps)) for step in range(1, steps + 1)})
    found = [_try(float(ranked[kept - 1]), confident, mistakes, layout, claim) for kept in places]
    return found[int(np.argmax([one.growth for one in found])):]


def _try(threshold: float, confident: Floats, mistakes: Floats, layout: ClusterLayout, claim: RiskClaim) -> Try:
    """The best stake by these data, and by one error more."""
    gains = _kept_gains(threshold, confident, mistakes, layout, claim)
    stakes = np.linspace(0.05, 0.95, 19) / (1 - claim.risk)
    logs = np.log1p(stakes[:, None] * gains).sum(axis=1) + np.log1p(-stakes * (1 - claim.risk) / layout.most_rows)
    best = int(np.argmax(logs))
    return Try(threshold, float(stakes[best]), float(logs[best]) / len(gains), float((confident >= threshold).mean()))


def _kept_gains(threshold: float, confident: Floats, mistakes: Floats, layout: ClusterLayout,
                claim: RiskClaim) -> Floats:
    return layout.bets(np.where(confident >= threshold, claim.risk - mistakes, 0.0)).values


def certify_answers(confidences: Any, wrong: Any, layout: ClusterLayout, wanted: Sequence[Try],
                    claim: RiskClaim) -> tuple[Threshold | None, str]:
    """Learn then Test of a claim about answers, the first M of each conversation, and the name of the method.

    M was known before these data. If it is 1, answers are independent, and the tails exact. Else each threshold's
    wealth, of three bettors around its stake, must reach 1 / delta at some time (Ville's inequality). Answers that are
    cut are no evidence; where they could turn the claim, a threshold fails.
    """
    confident, mistakes = np.asarray(confidences, np.float64), scores(wrong, "wrong")
    counts, most = layout.counts, layout.most_rows
    require_clusters(len(layout.limits))
    first = "Learn then Test, exact binomial tails" if most == 1 else (
        f"Learn then Test, betting on sums over conversations of up to {most} answers")
    found = None
    for one in wanted:
        kept = confident >= one.confidence
        if most == 1:
            trials, errors = int(kept[counts].sum()), int(mistakes[kept & counts].sum())
            holds = binomial_cdf(errors, trials, claim.risk) <= claim.delta
            bound = binomial_upper(errors, trials, claim.delta) if trials else 1.0
        else:
            holds = _most_wealth(_kept_gains(one.confidence, confident, mistakes, layout, claim), one.stake,
                                 claim) >= -math.log(claim.delta)
            bound = claim.risk
        if not holds or (not counts.all() and _highest(mistakes - claim.risk, kept, layout, claim) > 0):
            break
        found = Threshold(float(one.confidence), float(kept.mean()), bound)
    return found, first


def _most_wealth(gains: Floats, stake: float, claim: RiskClaim) -> float:
    """The log of the most that three bettors together ever had."""
    stakes = np.minimum(stake * np.array([0.5, 1.0, 1.5]), 0.95 / (1 - claim.risk))
    logs = np.cumsum(np.log1p(stakes[:, None] * gains), axis=1)
    return float((np.logaddexp.reduce(logs, axis=0) - math.log(len(stakes))).max(initial=0.0))


def _highest(excess: Floats, kept: Any, layout: ClusterLayout, claim: RiskClaim) -> float:
    """The upper limit of the mean excess over all kept answers, those that are cut too, at level delta."""
    sums = np.bincount(layout.of_row, np.where(kept, excess, 0.0))
    numbers = np.bincount(layout.of_row, kept.astype(np.float64))
    return ratio(sums, numbers, 1 - 2 * min(claim.delta, 0.4)).high if numbers.any() else 0.0


def expected_of(wanted: Sequence[Try], units: int, clusters: int, claim: RiskClaim) -> Expected:
    """The share that so many clusters (of `units` answers) would certify, if they are like the data of these tries."""
    enough = [one.kept for one in wanted if one.growth * clusters >= -math.log(claim.delta)]
    return Expected(units, max(enough, default=0.0))


def needed_of(wanted: Sequence[Try], rows_per_cluster: float, share: float, claim: RiskClaim) -> Expected | None:
    """The answers that would keep this share; None: more than 100,000, or no number."""
    best = max((one for one in wanted if one.kept >= share), key=lambda one: one.growth, default=None)
    if best is None or best.growth <= 0 or share == 0:
        return None
    units = math.ceil(-math.log(claim.delta) / best.growth * rows_per_cluster)
    return Expected(units, best.kept) if units <= 100_000 else None


def certify(confidences: Any, wrong: Any, clusters: Sequence[object], thresholds: Sequence[float],
            claim: RiskClaim) -> tuple[Threshold | None, str]:
    """Learn then Test by rows if each is a cluster of its own, else by clusters, which weigh alike; and the name of the
    method.

    Where nearly every row is alone, one row is drawn of each cluster: these are independent, and answers of clusters
    that weigh alike. Exact tails of a few rows less show far more than bets.
    """
    drawn = _one_of_each(clusters)
    if len(drawn) >= MOSTLY_ALONE * len(clusters):
        found = learn_then_test(np.asarray(confidences, np.float64)[drawn], scores(wrong, "wrong")[drawn], thresholds,
                                claim)
        of_each = "" if len(drawn) == len(clusters) else ", one answer drawn of each cluster"
        return found, f"Learn then Test, exact binomial tails{of_each}"
    return (learn_then_test_clusters(confidences, wrong, clusters, thresholds, claim),
            "Learn then Test, betting on the means of clusters")


def _one_of_each(clusters: Sequence[object]) -> NDArray[np.intp]:
    """The place of one row of each cluster, drawn without looking at the rows, in ascending order."""
    at_random = np.random.default_rng(0).permutation(len(clusters))
    places = {clusters[place]: place for place in at_random.tolist()}
    return np.array(sorted(places.values()), np.intp)


def sgr(confidences: Any, wrong: Any, claim: RiskClaim) -> Threshold | None:
    """The lowest threshold that a binary search with exact binomial bounds certifies; None: impossible here.

    Answers are independent; `wrong` is 0 or 1. The error budget is shared by the steps of the search.
    """
    ranked, errors = _ranked(confidences, wrong)
    units = len(ranked)
    require_clusters(units)
    steps = max(1, math.ceil(math.log2(units)))
    low, high, found = 1, units, 0
    for _ in range(steps):
        kept = _with_ties(ranked, (low + high + 1) // 2)
        # That the bound is within the risk is the same as this, which costs one tail and no search.
        if binomial_cdf(int(errors[kept - 1]), kept, claim.risk) <= claim.delta / steps:
            found, low = max(found, kept), kept
        else:
            high = max((low + high + 1) // 2 - 1, 1)
        if low >= high:
            break
    if not found:
        return None
    return Threshold(float(ranked[found - 1]), found / units,
                     binomial_upper(int(errors[found - 1]), found, claim.delta / steps))


def learn_then_test(confidences: Any, wrong: Any, thresholds: Sequence[float], claim: RiskClaim) -> Threshold | None:
    """Tests thresholds from the strictest on at full level each, and stops at the first that fails.

    The `thresholds` must have been fixed before the calibration data were seen, for instance as quantiles of
    confidences on other data.
    """
    ranked, errors = _ranked(confidences, wrong)
    require_clusters(len(ranked))
    found: tuple[float, int, int] | None = None
    for threshold in sorted(thresholds, reverse=True):
        kept = int(np.searchsorted(-ranked, -threshold, side="right"))
        mistakes = int(errors[kept - 1]) if kept else 0
        if binomial_cdf(mistakes, kept, claim.risk) > claim.delta:
            break
        found = float(threshold), kept, mistakes
    if found is None:
        return None
    return Threshold(found[0], found[1] / len(ranked), binomial_upper(found[2], found[1], claim.delta))


def learn_then_test_clusters(confidences: Any, wrong: Any, clusters: Sequence[object], thresholds: Sequence[float],
                             claim: RiskClaim) -> Threshold | None:
    """The same where answers of one cluster (a conversation) go wrong together.

    The test bets on clusters: on the mean over a cluster's answers of (risk - wrong) for kept ones, zero for others
    (sequential_test.py); so large and small conversations weigh alike. `bound` is the claimed risk itself.
    """
    confident, mistakes = np.asarray(confidences, np.float64), scores(wrong, "wrong")
    index_of: dict[object, int] = {}
    indices = np.array([index_of.setdefault(cluster, len(index_of)) for cluster in clusters], np.intp)
    if not len(confident) == len(mistakes) == len(indices):
        raise EvidenceError(f"there are {len(confident)} confidences, {len(mistakes)} outcomes and {len(indices)} "
                            "cluster names")
    require_clusters(len(index_of))
    sizes = np.bincount(indices)
    found = None
    for threshold in sorted(thresholds, reverse=True):
        kept = confident >= threshold
        gains = np.bincount(indices, np.where(kept, claim.risk - mistakes, 0.0)) / sizes
        if _final_wealth(gains, 1 / (1 - claim.risk)) < 1 / claim.delta:
            break
        found = Threshold(float(threshold), float(kept.mean()), claim.risk)
    return found


def _final_wealth(gains: Floats, largest_stake: float) -> float:
    """Wealth after all clusters. Gains are small (at most the risk), so the stakes are spread up to the largest."""
    logs = [np.log1p(stake * largest_stake * gains).sum() for stake in STAKES]
    return float(np.exp(np.logaddexp.reduce(logs) - math.log(len(STAKES))))


def _ranked(confidences: Any, wrong: Any) -> tuple[Floats, Floats]:
    """Confidences in falling order, and how many of the first k answers are wrong."""
    confident = np.asarray(confidences, np.float64)
    mistakes = scores(wrong, "wrong")
    if confident.shape != mistakes.shape or not len(confident):
        raise EvidenceError(f"there are {confident.size} confidences and {mistakes.size} outcomes; they must be as "
                            "many, and some")
    if not np.isfinite(confident).all():
        raise EvidenceError("a confidence is not a finite number")
    if not np.isin(mistakes, (0.0, 1.0)).all():
        raise EvidenceError("an outcome is neither 0 (right) nor 1 (wrong)")
    order = np.argsort(-confident, kind="stable")
    return confident[order], np.cumsum(mistakes[order])


def _with_ties(ranked: Floats, kept: int) -> int:
    """A threshold cannot separate equal confidences: all that equal the last kept one are kept."""
    return int(np.searchsorted(-ranked, -ranked[kept - 1], side="right"))
