"""The rows of the case table for images: features in place of embeddings, and gelu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brise.models.ops import Backend, Ops
from brise.models.weights import Array
from tests import tolerances
from tests.backends.inputs import Precision, normal


@dataclass(frozen=True)
class PutRows:
    """Without features the op gives back what it got."""

    tokens: int
    features: int
    width: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.tokens)
        x = normal(rng, (self.tokens, self.width), precision)
        if not self.features:
            return ops.put_rows(x, None, None)
        rows = rng.integers(-1, self.features, self.tokens).astype(np.int32)
        return ops.put_rows(x, normal(rng, (self.features, self.width), np.float32), rows)

    def allowed(self, expected: Array) -> Array:
        return np.zeros(1)


@dataclass(frozen=True)
class Gelu:
    tokens: int
    width: int
    size: float = 1.0

    def _x(self, precision: Precision) -> Array:
        return normal(np.random.default_rng(self.width), (self.tokens, self.width), precision, self.size)

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return ops.gelu(self._x(precision))

    def allowed(self, expected: Array) -> Array:
        return tolerances.GELU * np.abs(self._x(np.float64)) + tolerances.SUBNORMAL
