"""Pairs of outcomes with a truth that is known because it was planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brise.stats.clusters import Bets, Floats, Ints


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


@dataclass(frozen=True)
class Conversations:
    """Simulated conversations, (runs, conversations): their lengths, and sums of D over the first rows of each."""

    lengths: Ints
    sums: Floats  # (runs, conversations, longest + 1): of the first k rows

    def bets(self, most_rows: int) -> Bets:
        """Bets on answers with this M."""
        taken = np.minimum(self.lengths, most_rows)
        values = np.take_along_axis(self.sums, taken[..., None], -1)[..., 0]
        return Bets(values / most_rows, taken / most_rows, np.full(taken.shape[-1], most_rows), most_rows)

    def means(self) -> Floats:
        """D of conversations that weigh alike."""
        means: Floats = np.take_along_axis(self.sums, self.lengths[..., None], -1)[..., 0] / self.lengths
        return means


def conversations(rng: np.random.Generator, runs: int, units: int, *, sizes: Sequence[int], shares: Sequence[float],
                  effects: Sequence[float], discordance: float = 0.1, rho: float = 0.5) -> Conversations:
    """Of each length (`sizes`, with probabilities `shares`) the mean of D is in `effects`; P(D != 0) = discordance, or
    as much as the effect needs. Rows of a conversation share their draw with probability `rho`.
    """
    kinds = rng.choice(len(sizes), (runs, units), p=shares)
    lengths, effect = np.asarray(sizes)[kinds], np.asarray(effects)[kinds]
    apart = np.maximum(discordance, np.abs(effect))
    shared, sums = rng.random((runs, units)), np.zeros((runs, units, max(sizes) + 1))
    for at in range(max(sizes)):
        draws = np.where(rng.random((runs, units)) < rho, shared, rng.random((runs, units)))
        d = (draws < (apart + effect) / 2).astype(np.float64) - ((draws >= (apart + effect) / 2) & (draws < apart))
        sums[..., at + 1] = sums[..., at] + d * (at < lengths)
    return Conversations(lengths, sums)
