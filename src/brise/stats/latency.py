"""Whether the small model's slow answers are slow by no more than a margin: the p95 of both, in pairs or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import Floats, unit_means
from brise.stats.sequential_test import rate_wealth

# Seconds at which the large model's p95 may lie, 8 to a factor of 10: fixed before any data, as they must be.
LIMITS_S: Sequence[float] = tuple(round(10 ** (k / 8), 4) for k in range(-16, 17))


def p95_wealth(small_s: Any, large_s: Any, clusters: Sequence[object], margin_s: float,
               quantile: float = 0.95) -> Floats:
    """Evidence after each unit that the small model's p95 is at most `margin_s` above the large one's.

    If it is more, then for every limit x either under 95 % of small answers come within x + margin, or over 95 % of
    large ones within x. So the lesser of the two pieces of evidence against that is fair at each x, and so is their
    mean over limits that were fixed before. Under the null it reaches 1 / alpha with probability alpha at most.
    """
    small, large = np.asarray(small_s, np.float64), np.asarray(large_s, np.float64)
    if not (np.isfinite(small).all() and np.isfinite(large).all()) or min(small.min(), large.min()) < 0:
        raise EvidenceError("a latency is not a number of seconds from 0 on")
    if not margin_s >= 0:
        raise EvidenceError(f"the margin is {margin_s} s, allowed is 0 and more")
    is_fast = np.stack([unit_means(small <= limit + margin_s, clusters) for limit in LIMITS_S])
    is_slow = np.stack([unit_means(large > limit, clusters) for limit in LIMITS_S])
    lesser = np.minimum(rate_wealth(is_fast, quantile), rate_wealth(is_slow, 1 - quantile))
    mean: Floats = lesser.mean(axis=0)
    return mean
