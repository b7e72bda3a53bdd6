"""The figures of a report: counts of each example, the function of their sums, and intervals by resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import MIN_CLUSTERS, Floats
from brise.stats.intervals import Interval, binomial_interval, tango

RESAMPLES = 4000
CONFIDENCE = 0.95

# Of one row: name of a figure -> (numerator, denominator). The figure is the sum of numerators over that of
# denominators, which makes a mean (denominator 1) and micro precision, recall and F1 alike.
Counts = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Measure:
    """`counts` has a row of K numbers for each example; `value` maps their sums, any number at once, to the figure.

    A share lies between 0 and 1; the higher of two figures is the better one unless `lower_is_better`.
    """

    name: str
    counts: Floats  # (N, K)
    value: Callable[[Floats], Floats]  # (..., K) -> (...)
    is_share: bool = True
    lower_is_better: bool = False

    @property
    def estimate(self) -> float:
        return float(self.value(self.counts.sum(0)))

    @property
    def is_binary(self) -> bool:
        """Whether each example counts once and is right or wrong."""
        return self.value is ratio and bool((self.counts[:, 1] == 1).all() and np.isin(self.counts[:, 0], (0, 1)).all())


@dataclass(frozen=True)
class Bounded:
    """An estimate with its interval; None: too few conversations for one. `how` names the method."""

    estimate: float
    low: float | None
    high: float | None
    how: str


def ratio(sums: Floats) -> Floats:
    """Numerator over denominator; nan where there is nothing."""
    top, bottom = sums[..., 0], sums[..., 1]
    out: Floats = np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom != 0)
    return out


def of_rows(rows: Sequence[Counts], names: Sequence[str]) -> list[Measure]:
    """A ratio of sums for each name; a row that does not have the name counts nothing there."""
    return [Measure(name, np.array([row.get(name, (0.0, 0.0)) for row in rows], np.float64), ratio) for name in names]


def bounded(measure: Measure, conversations: Sequence[str], seed: int = 0) -> Bounded:
    """The estimate and its 95 % interval.

    Right or wrong, one row a conversation: the exact binomial one (Clopper-Pearson). Else whole conversations are
    drawn again with replacement (seeded) and the quantiles of the figure taken.
    """
    estimate, groups = measure.estimate, _groups(conversations)
    if np.isnan(estimate):
        return Bounded(estimate, None, None, "nothing to count")
    if groups.max() + 1 < MIN_CLUSTERS:
        return Bounded(estimate, None, None, f"fewer than {MIN_CLUSTERS} conversations")
    if measure.is_binary and groups.max() + 1 == len(groups):
        exact = binomial_interval(int(measure.counts[:, 0].sum()), len(groups), CONFIDENCE)
        return Bounded(estimate, exact.low, exact.high, "exact binomial")
    values = measure.value(_resampled(measure.counts, groups, seed))
    low, high = _quantiles(values)
    if measure.is_share and low == high and estimate in (0.0, 1.0):
        # All alike: drawing again shows no spread. Of as many conversations, this is what could have been missed.
        num_groups = int(groups.max()) + 1
        exact = binomial_interval(round(estimate * num_groups), num_groups, CONFIDENCE)
        return Bounded(estimate, exact.low, exact.high, "exact binomial over conversations")
    return Bounded(estimate, low, high, "bootstrap of conversations")


def difference(one: Measure, other: Measure, conversations: Sequence[str], seed: int = 0) -> Bounded:
    """`one` less `other` on the same rows, with a paired interval: Tango's for right or wrong, else the bootstrap."""
    if len(one.counts) != len(other.counts):
        raise EvidenceError(f"{len(one.counts)} and {len(other.counts)} rows are not the same")
    groups = _groups(conversations)
    estimate = one.estimate - other.estimate
    if np.isnan(estimate):
        return Bounded(estimate, None, None, "nothing to count")
    if groups.max() + 1 < MIN_CLUSTERS:
        return Bounded(estimate, None, None, f"fewer than {MIN_CLUSTERS} conversations")
    if one.is_binary and other.is_binary and groups.max() + 1 == len(groups):
        gap = one.counts[:, 0] - other.counts[:, 0]
        interval: Interval = tango(int((gap > 0).sum()), int((gap < 0).sum()), len(gap), CONFIDENCE)
        return Bounded(interval.estimate, interval.low, interval.high, "Tango, paired")
    values = (one.value(_resampled(one.counts, groups, seed)) - other.value(_resampled(other.counts, groups, seed)))
    low, high = _quantiles(values)
    if low == high:
        return Bounded(estimate, None, None, "no spread")
    return Bounded(estimate, low, high, "bootstrap of conversations, paired")


def _groups(conversations: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    index_of: dict[str, int] = {}
    return np.array([index_of.setdefault(name, len(index_of)) for name in conversations], np.intp)


def _resampled(counts_NK: Floats, groups: np.ndarray[tuple[int], np.dtype[np.intp]], seed: int) -> Floats:
    """Sums of counts over conversations drawn again; the same seed draws the same conversations for any counts."""
    num_groups = int(groups.max()) + 1
    sums_CK = np.zeros((num_groups, counts_NK.shape[1]))
    np.add.at(sums_CK, groups, counts_NK)
    draws = np.random.default_rng(seed)
    step = max(1, (1 << 22) // num_groups)  # 32 MB of weights at a time
    parts = [draws.multinomial(num_groups, np.full(num_groups, 1 / num_groups), min(step, RESAMPLES - start)) @ sums_CK
             for start in range(0, RESAMPLES, step)]
    out: Floats = np.concatenate(parts)
    return out


def _quantiles(values: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
