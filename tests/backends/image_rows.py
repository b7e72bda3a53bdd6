"""The rows of the case table for encoders of images and audio: features in place of embeddings, norm and gelu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brise.models.ops import Backend, Ops
from brise.models.weights import Array, Dense
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
    by_tanh: bool = False

    def _x(self, precision: Precision) -> Array:
        return normal(np.random.default_rng(self.width), (self.tokens, self.width), precision, self.size)

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return (ops.gelu_tanh if self.by_tanh else ops.gelu)(self._x(precision))

    def allowed(self, expected: Array) -> Array:
        share = tolerances.GELU_TANH if self.by_tanh else tolerances.GELU
        return share * np.abs(self._x(np.float64)) + tolerances.SUBNORMAL


@dataclass(frozen=True)
class LayerNorm:
    """Numbers around `mean`; row 0 is all equal, and eps decides."""

    tokens: int
    width: int
    mean: float = 0.5
    size: float = 1.0
    eps: float = 1e-5

    def _inputs(self, precision: Precision) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(self.width)
        x = normal(rng, (self.tokens, self.width), np.float32, self.size)
        x[:1] = 0
        x += np.float32(self.mean)
        w, b = normal(rng, (self.width,), np.float32), normal(rng, (self.width,), np.float32)
        return x.astype(precision), w, b

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x, w, b = self._inputs(precision)
        weight, bias = (backend.place("norm", Dense("F32", rows.shape, rows)) for rows in (w, b))
        return ops.layer_norm(x, weight, bias, self.eps)

    def allowed(self, expected: Array) -> Array:
        x, w, b = self._inputs(np.float32)
        return tolerances.layer_norm(x.astype(np.float64), w, expected, expected - b, self.eps)
