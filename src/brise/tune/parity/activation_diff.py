"""Where two runs of a model part: the named values of both, in the model's order.

The trained side goes on from the served side's value after each of them, so that each error is the own one of an
attention or a feed-forward and not what those before it left. The error of a value is the median over tokens of
|served - trained| / |trained|: a few tokens with huge activations, as decoders have them, decide nothing.
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
    """A value parts if its error is over `floor` and over `jump` times what is usual.

    Usual is the base's own error there or, without a base to compare with, the largest error before it.
    """

    jump: float = 2.0
    floor: float = 1e-4
    blind_jump: float = 4.0  # without a base: errors of neighbours differ more than those of base and adapted
    blind_floor: float = 0.05


@dataclass(frozen=True)
class Parting:
    """Errors by name, in the model's order, and the names that part; the first of them is where to look."""

    errors: Mapping[str, float]
    base_errors: Mapping[str, float] | None
    names: tuple[str, ...]

    @property
    def first(self) -> str | None:
        return self.names[0] if self.names else None

    @property
    def worst(self) -> str:
        """The name with the largest error, beside the base's where that is known."""
        return max(self.errors, key=lambda name: self.errors[name] / max(self._usual(name), 1e-12))

    def _usual(self, name: str) -> float:
        return 1.0 if self.base_errors is None else self.base_errors[name]


def part(trained: GuidedSide, served: ParitySide, batch: Batch, base: tuple[GuidedSide, ParitySide] | None,
         rule: DivergenceRule = DivergenceRule()) -> Parting:
    """Runs both sides (and both without the adapter) on a batch and finds the names that part."""
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
    found = served.trace(batch)
    return {name: relative_error(found[name], value) for name, value in trained.guided_trace(batch, found).items()}


def relative_error(found: Array, expected: Array) -> float:
    """Median over rows of |found - expected| / |expected|; infinite where numbers are none."""
    differences = np.linalg.norm((found - expected).reshape(len(expected), -1).astype(np.float64), axis=1)
    sizes = np.linalg.norm(expected.reshape(len(expected), -1).astype(np.float64), axis=1)
    if not (np.isfinite(differences).all() and np.isfinite(sizes).all()):
        return float("inf")
    return float(np.median(differences / np.maximum(sizes, np.finfo(np.float32).tiny)))
