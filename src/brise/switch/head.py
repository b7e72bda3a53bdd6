"""A head on the small model's last hidden state: how likely is it that the answer is right?

A logistic regression on the numbers of engine/last_hidden.py. On the answers that a rule is fitted on, its value is
that of a head which was fitted without their conversations: else it would look better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from brise.dialects.records import Body
from brise.engine.last_hidden import WIDTH
from brise.stats import logistic
from brise.stats.clusters import Floats

SIGNAL = "head"  # log-odds that the answer is right
RIDGES = (1.0, 10.0, 100.0, 1000.0)  # observations that the prior on each weight is worth; there are 64 weights


def hidden_of(body: Body | None) -> tuple[float, ...]:
    """The state that the shadow wrote beside an answer; () if there is none, as of answers from before it did."""
    beside = (body or {}).get("brise")
    found = beside.get("hidden") if isinstance(beside, dict) else None
    if not isinstance(found, list) or len(found) != WIDTH or not all(isinstance(value, int | float) for value in found):
        return ()
    return tuple(map(float, found))


def measured(weights: Sequence[float], hidden: Sequence[float]) -> Mapping[str, float]:
    """The signal, or none where there is no state to look at."""
    if len(weights) != WIDTH + 1 or len(hidden) != WIDTH:
        return {}
    return {SIGNAL: float(weights[0] + np.dot(weights[1:], hidden))}


def crossed(hidden: Sequence[Sequence[float]], units: Sequence[str], right: Floats, folds: int
            ) -> tuple[tuple[float, ...], list[Mapping[str, float]]]:
    """Bias and weights of the head of all answers, and each answer's value by a head fitted on other conversations.

    How much weights are shrunk is what predicts best across the folds. () and no values if an answer has no state, or
    if all are right or all wrong.
    """
    if not hidden or any(len(state) != WIDTH for state in hidden) or right.min() == right.max():
        return (), [{} for _ in hidden]
    states = np.array(hidden, np.float64)
    found = [logistic.out_of_fold(states, right, units, folds, ridge) for ridge in RIDGES]
    losses = [float((np.logaddexp(0, odds) - right * odds).mean()) for odds in found]
    best = int(np.argmin(losses))
    return _fitted(states, right, RIDGES[best]), [{SIGNAL: float(odds)} for odds in found[best]]


def _fitted(states: Floats, right: Floats, ridge: float) -> tuple[float, ...]:
    """In units of the states themselves."""
    found = logistic.fit(states, right, ridge)
    slopes = found.weights / found.scales
    return float(found.bias - slopes @ found.means), *map(float, slopes)
