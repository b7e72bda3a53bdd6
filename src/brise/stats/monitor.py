"""The monitor of a switch: an unbiased estimate from a random share of audited answers, and an alarm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import Floats, scores
from brise.stats.intervals import Interval
from brise.stats.sequential_test import STAKES

ALARM = 1e4  # on average at least so many audited answers pass before a false alarm


def audited_mean(differences: Any, probabilities: Any, total: int, confidence: float = 0.95) -> Interval:
    """Mean D over all `total` kept answers, estimated from those audited, each with its own known probability.

    Horvitz-Thompson with the sample's own total of weights (Hajek): D / q summed, over 1 / q summed. Escalated
    traffic is no audit sample: it was selected for being unsure.
    """
    values, weights = scores(differences, "differences", -1.0, 1.0), _weights(probabilities)
    if len(values) != len(weights) or len(values) > total:
        raise EvidenceError(f"{len(values)} differences and {len(weights)} probabilities of {total} units cannot be")
    if len(values) < 2:
        raise EvidenceError(f"{len(values)} units are audited, at least 2 are needed for an interval")
    mean = float((values * weights).sum() / weights.sum())
    spread = math.sqrt(float(((weights * (values - mean)) ** 2).sum()))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread / float(weights.sum())
    return Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def _weights(probabilities: Any) -> Floats:
    chances = np.asarray(probabilities, np.float64)
    wrong = np.flatnonzero(~((chances > 0) & (chances <= 1)))
    if len(wrong):
        raise EvidenceError(f"probabilities[{wrong[0]}] is {chances[wrong[0]]}, allowed is over 0 to 1")
    weights: Floats = 1 / chances
    return weights


@dataclass(frozen=True)
class Alarm:
    """An e-CUSUM detector (Shin, Ramdas & Rinaldo, 2203.03532) of E[D] having fallen under -delta.

    `logs` holds one log wealth a stake; none falls below 0, so that a past in which all was well is
    forgotten. Make one with Alarm.start, and replace it by `updated(d)` at each audited answer.
    """

    delta: float
    logs: tuple[float, ...]
    level: float = ALARM

    @classmethod
    def start(cls, delta: float, level: float = ALARM) -> Alarm:
        if not 0 <= delta < 1:
            raise EvidenceError(f"delta is {delta}, allowed is 0 to under 1")
        if not level > 1:
            raise EvidenceError(f"the alarm level is {level}, it must be over 1")
        return cls(delta, (0.0,) * len(STAKES), level)

    def updated(self, difference: float) -> Alarm:
        """The detector one audited answer later."""
        if not -1 <= difference <= 1:
            raise EvidenceError(f"the difference is {difference}, allowed is -1 to 1")
        logs = tuple(max(log, 0.0) + math.log1p(-min(stake, 1 / (1 + self.delta)) * (difference + self.delta))
                     for stake, log in zip(STAKES, self.logs, strict=True))
        return Alarm(self.delta, logs, self.level)

    @property
    def evidence(self) -> float:
        """The mean over stakes; at `level` it is time to act."""
        top = max(self.logs)
        return math.exp(top) * sum(math.exp(log - top) for log in self.logs) / len(self.logs)

    @property
    def rings(self) -> bool:
        return self.evidence >= self.level
