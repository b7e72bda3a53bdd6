"""A sequential test of a failure rate: may a roll-out go on, or must it halt? It is valid at every interim analysis.

A roll-out states a rate of failures that is tolerated, f0, and a larger one that is not, f1. Two bettors look at the
devices in the order in which they began (Waudby-Smith & Ramdas, 2010.09686; as in sequential_test.py):

    harm     bets that the rate is over f0; at 1 / alpha the roll-out halts. If the rate is f0 or less, this happens
             with probability alpha at most, at any number of interim analyses.
    safety   bets that the rate is under f1; at 1 / alpha more devices may get the bundle. If the rate is f1 or more,
             this happens with probability alpha at most.

Failures are known sooner than successes, so the order in which outcomes arrive is biased. Devices stand in the order in
which they began, which is settled before their outcomes; one that has not ended counts as a success for `harm` and as a
failure for `safety`. Each wealth is then at most what it will be when all have ended, so both guarantees hold while
outcomes are missing. What is assumed: whether a device begins does not depend on its outcome.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import Floats
from brise.stats.sequential_test import mixture

SUCCESS, FAILURE, PENDING = 0, 1, -1
# The rates that the bettors expect: multiples of f0, of which 2 and 3 count twice, and shares of f1. With f0 = 1 % a
# bundle that fails on 3 % of devices is halted after 227 (median; p95 713), on 10 % after 26 (86), and one without
# failures is shown to be under f1 = 2 % by 181 (simulated, docs/dev/LOG.md, 2026-11-30).
HARMFUL = (2.0, 2.0, 3.0, 3.0, 10.0)
HARMLESS = (0.0, 0.25, 0.5)
HIGHEST = 0.9  # of the rates expected
RATES = (5e-4, 0.5)  # that a test may state: within them a block of factors stays inside a double's range
MOST_MORE = 1 << 20  # devices

FailureVerdict = Literal["halt", "advance", "undecided"]


@dataclass(frozen=True)
class FailureTest:
    """What a roll-out states before it begins: the rate `tolerated` (f0), the rate `refuted` (f1) and alpha."""

    tolerated: float = 0.01
    refuted: float = 0.02
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for name, rate in (("tolerated", self.tolerated), ("refuted", self.refuted)):
            if not RATES[0] <= rate <= RATES[1]:
                raise EvidenceError(f"the {name} failure rate is {rate}, allowed is {RATES[0]} to {RATES[1]}")
        if not self.refuted > self.tolerated:
            raise EvidenceError(f"the refuted failure rate is {self.refuted}, it must be over the tolerated one of "
                                f"{self.tolerated}")
        if not 1e-6 <= self.alpha < 1:
            raise EvidenceError(f"alpha is {self.alpha}, allowed is 1e-6 to under 1")

    @property
    def level(self) -> float:
        """The wealth that is proof."""
        return 1 / self.alpha


@dataclass(frozen=True)
class FailureEvidence:
    """What the devices have shown: the highest wealth so far of either bettor, and what follows.

    `decided_at` counts devices in the order in which they began.
    """

    harm: float
    safety: float
    verdict: FailureVerdict
    decided_at: int | None = None


def harm(outcomes: Any, test: FailureTest) -> Floats:
    """Evidence after each device that the rate is over f0. Outcomes are SUCCESS, FAILURE or PENDING; shape (..., n)."""
    failed = (_checked(outcomes) == FAILURE).astype(np.float64)
    return mixture(failed - test.tolerated, 1 / test.tolerated, _harm_stakes(test))


def safety(outcomes: Any, test: FailureTest) -> Floats:
    """Evidence after each device that the rate is under f1; of the same shape."""
    failed = (_checked(outcomes) != SUCCESS).astype(np.float64)
    return mixture(test.refuted - failed, 1 / (1 - test.refuted), _safety_stakes(test))


def judge(outcomes: Any, test: FailureTest) -> FailureEvidence:
    """The verdict over devices in the order in which they began; harm that is proven is never outweighed."""
    if len(_checked(outcomes)) == 0:
        return FailureEvidence(1.0, 1.0, "undecided")
    against, for_ = harm(outcomes, test), safety(outcomes, test)
    highest = max(float(against.max()), 1.0), max(float(for_.max()), 1.0)
    if highest[0] >= test.level:
        return FailureEvidence(*highest, "halt", int(np.argmax(against >= test.level)) + 1)
    if highest[1] >= test.level:
        return FailureEvidence(*highest, "advance", int(np.argmax(for_ >= test.level)) + 1)
    return FailureEvidence(*highest, "undecided")


def least_devices(test: FailureTest) -> int:
    """How many devices show a rate under f1 if none of them fails. With fewer there is no statistic."""
    return _least(lambda number: float(_grown([1.0] * len(HARMLESS), [math.log1p(stake * test.refuted) * number
                                                                      for stake in _safety_stakes(test)])), test.level)


def more_devices(outcomes: Any, test: FailureTest) -> int:
    """How many more devices would decide: if none of them fails, or if they fail as those before did, whichever is
    fewer. Devices that have not ended count as neither.
    """
    ended = _checked(outcomes)
    ended = ended[ended != PENDING]
    failures, number = int((ended == FAILURE).sum()), len(ended)
    for_ = [_product(stake * test.refuted, -stake * (1 - test.refuted), number - failures, failures)
            for stake in _safety_stakes(test)]
    steps_for = [math.log1p(stake * test.refuted) for stake in _safety_stakes(test)]
    fewest = _least(lambda more: _grown(for_, [step * more for step in steps_for]), test.level)
    rate = failures / number if number else 0.0
    if rate <= test.tolerated:
        return fewest
    against = [_product(-stake * test.tolerated, stake * (1 - test.tolerated), number - failures, failures)
               for stake in _harm_stakes(test)]
    steps = [rate * math.log1p(stake * (1 - test.tolerated)) + (1 - rate) * math.log1p(-stake * test.tolerated)
             for stake in _harm_stakes(test)]
    return min(fewest, _least(lambda more: _grown(against, [step * more for step in steps]), test.level))


def _harm_stakes(test: FailureTest) -> list[float]:
    """A stake for each rate p expected: a failure multiplies the wealth by p / f0, as the likelihood ratio does."""
    f0 = test.tolerated
    return [(min(multiple * f0, HIGHEST) - f0) / (f0 * (1 - f0)) for multiple in HARMFUL]


def _safety_stakes(test: FailureTest) -> list[float]:
    f1 = test.refuted
    return [(f1 - share * f1) / (f1 * (1 - f1)) for share in HARMLESS]


def _checked(outcomes: Any) -> Any:
    found = np.asarray(outcomes, np.int8)
    if found.size and not np.isin(found, (SUCCESS, FAILURE, PENDING)).all():
        raise EvidenceError("outcomes are 0 (success), 1 (failure) and -1 (not ended)")
    return found


def _product(success: float, failure: float, successes: int, failures: int) -> float:
    """The wealth of one bettor after these; its logarithm is enough for a plan."""
    if failures and failure <= -1:
        return 0.0
    return math.exp(min(successes * math.log1p(success) + (failures * math.log1p(failure) if failures else 0.0), 700.0))


def _grown(wealths: list[float], logs: list[float]) -> float:
    """The mean of wealths that have grown by these logarithms."""
    return sum(wealth * math.exp(min(log, 700.0)) for wealth, log in zip(wealths, logs, strict=True)) / len(wealths)


def _least(wealth: Any, level: float) -> int:
    """The least number of devices from 1 at which `wealth`, which grows, is at `level`; MOST_MORE at most."""
    low, high = 0, 1
    while wealth(high) < level and high < MOST_MORE:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wealth(middle) >= level else (middle, high)
    return high
