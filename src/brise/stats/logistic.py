"""Logistic regression in plain NumPy: the chance that an answer is right, from a few of its signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import Floats, scores

# On standardised signals: a prior of N(0, 1) on each weight, worth about one observation. It keeps weights finite where
# the signals separate right from wrong answers perfectly.
RIDGE = 1.0
MAX_STEPS = 50


@dataclass(frozen=True)
class Fit:
    """The log-odds are bias + sum of weight (value - mean) / scale."""

    bias: float
    weights: Floats
    means: Floats
    scales: Floats

    def log_odds(self, values: Any) -> Floats:
        found: Floats = self.bias + (np.asarray(values, np.float64) - self.means) / self.scales @ self.weights
        return found


def fit(values: Any, outcomes: Any, ridge: float = RIDGE) -> Fit:
    """By Newton's method, the bias not shrunk. `values` is (answers, signals), outcomes are in [0, 1]."""
    given, wanted = np.asarray(values, np.float64), scores(outcomes, "outcomes")
    if given.ndim != 2 or len(given) != len(wanted) or not len(given):
        raise EvidenceError(f"there are {given.shape} values for {len(wanted)} outcomes")
    if not np.isfinite(given).all():
        raise EvidenceError("a value is not a finite number")
    means, scales = given.mean(axis=0), given.std(axis=0)
    scales = np.where(scales > 1e-12, scales, 1.0)
    design = np.column_stack([np.ones(len(given)), (given - means) / scales])
    prior = ridge * np.diag([1e-6, *[1.0] * given.shape[1]])
    weights = np.zeros(design.shape[1])
    loss = _loss(design, wanted, weights, prior)
    for _ in range(MAX_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        slope = design.T @ (wanted - chances) - prior @ weights
        curve = (design * (chances * (1 - chances))[:, None]).T @ design + prior
        step = np.linalg.solve(curve, slope)
        while (better := _loss(design, wanted, weights + step, prior)) > loss + 1e-12 and np.abs(step).max() > 1e-10:
            step = step / 2  # far from the optimum a full step may lead away
        weights, last, loss = weights + step, loss, better
        if last - loss < 1e-9:
            break
    return Fit(float(weights[0]), weights[1:], means, scales)


def out_of_fold(values: Any, outcomes: Any, units: Sequence[str], folds: int, ridge: float = RIDGE) -> Floats:
    """Log-odds of each answer by a fit on the other folds; a cluster's answers share a fold. 0 where there is no other.
    """
    given, wanted = np.asarray(values, np.float64), np.asarray(outcomes, np.float64)
    number = {name: at % folds for at, name in enumerate(dict.fromkeys(units))}
    part, odds = np.array([number[name] for name in units]), np.zeros(len(given))
    for fold in range(folds):
        inside, outside = part == fold, part != fold
        if inside.any() and outside.any():
            odds[inside] = fit(given[outside], wanted[outside], ridge).log_odds(given[inside])
    return odds


def _loss(design: Floats, wanted: Floats, weights: Floats, prior: Floats) -> float:
    odds = design @ weights
    return float((np.logaddexp(0, odds) - wanted * odds).sum() + weights @ prior @ weights / 2)
