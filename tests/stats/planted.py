"""Pairs of outcomes with a truth that is known because it was planted."""

from __future__ import annotations

import numpy as np

from brise.stats.clusters import Floats


def differences(rng: np.random.Generator, runs: int, units: int, discordance: float, effect: float) -> Floats:
    """D of paired right/wrong outcomes, (runs, units): P(D != 0) = discordance and E[D] = effect."""
    better = (discordance + effect) / 2
    draws = rng.random((runs, units))
    return (draws < better).astype(np.float64) - ((draws >= better) & (draws < discordance))


def three_standard_errors(rate: float, runs: int) -> float:
    """The largest share of `runs` independent runs that the probability `rate` explains: 3 standard errors up."""
    return rate + 3 * float(np.sqrt(rate * (1 - rate) / runs))


def three_standard_errors_below(rate: float, runs: int) -> float:
    """The smallest such share."""
    return 2 * rate - three_standard_errors(rate, runs)
