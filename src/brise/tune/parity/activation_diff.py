"""Finding where two runs of a model diverge: their named values, in the model's order.

The trained side continues from the served side's value after each of them, so that each error belongs to one attention
or feed-forward block and not to those before it. The error of a value is the median over tokens of
|served - trained| / |trained|, so that the few tokens with huge activations that decoders have decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brise.models.batch import Batch
from brise.models.weights import Array
from brise.tune.parity.served import GuidedSide, ParitySide


@dataclass(frozen=True)
class DivergenceRule:
    """A value diverges if its error exceeds `floor` and `jump` times the usual error.

    The usual error is that of the base or, without a base, the largest error of the values before it.
    """

    jump: float = 2.0
    floor: float = 1e-4
    blind_jump: float = 4.0  # without a base: neighbours differ more than base and adapted model
    blind_floor: float = 0.05


@dataclass(frozen=True)
class Parting:
    """Errors by name, in the model's order, and the names that diverge; the first of them is where to look."""

    errors: Mapping[str, float]
    base_errors: Mapping[str, float] | None
    names: tuple[str, ...]

    @property
    def first(self) -> str | None:
        return self.names[0] if self.names else None

    @property
    def worst(self) -> str:
        """The name with the largest error, relative to the base's where that is known."""
        return max(self.errors, key=lambda name: self.errors[name] / max(self._usual(name), 1e-12))

    def _usual(self, name: str) -> float:
        return 1.0 if self.base_errors is None else self.base_errors[name]


def part(trained: GuidedSide, served: ParitySide, batch: Batch, base: tuple[GuidedSide, ParitySide] | None,
         rule: DivergenceRule = DivergenceRule()) -> Parting:
    """Runs both sides (and both without the adapter) on a batch, and finds the names that diverge."""
    errors = own_errors(trained, served, batch)
    usual = None if base is None else own_errors(*base, batch)
    names, largest = [], 0.0
    for name, error in errors.items():
        limit = (max(rule.blind_floor, rule.blind_jump * largest) if usual is None
                 else max(rule.floor, rule.jump * usual[name]))
        if error > limit or not np.isfinite(error):
            names.append(name)
        largest = max(largest, error)
    return Parting(errors, usual, tuple(names))


def own_errors(trained: GuidedSide, served: ParitySide, batch: Batch) -> dict[str, float]:
    """The error of every named value."""
    values = served.trace(batch)
    return {name: relative_error(values[name], value) for name, value in trained.guided_trace(batch, values).items()}


def relative_error(actual: Array, expected: Array) -> float:
    """Median over rows of |actual - expected| / |expected|; infinite where numbers are not finite."""
    differences = np.linalg.norm((actual - expected).reshape(len(expected), -1).astype(np.float64), axis=1)
    sizes = np.linalg.norm(expected.reshape(len(expected), -1).astype(np.float64), axis=1)
    if not (np.isfinite(differences).all() and np.isfinite(sizes).all()):
        return float("inf")
    return float(np.median(differences / np.maximum(sizes, np.finfo(np.float32).tiny)))
