"""The rows of the case table for the other ops of latent attention: parts of heads, and a matrix for each head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brise.backends.reference.ops import numbers
from brise.models.ops import Backend, Ops
from brise.models.weights import Array, Dense, Quant, Stack
from tests import tolerances
from tests.backends import emulate
from tests.backends.inputs import Precision, normal, off_ties, weight


@dataclass(frozen=True)
class Flat:
    tokens: int
    heads: int
    head_dim: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return ops.flat(normal(np.random.default_rng(0), (self.tokens, self.heads, self.head_dim), precision))

    def allowed(self, expected: Array) -> Array:
        return np.zeros(1)


@dataclass(frozen=True)
class Columns:
    tokens: int
    heads: int
    head_dim: int
    first: int
    last: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x = normal(np.random.default_rng(0), (self.tokens, self.heads, self.head_dim), precision)
        return ops.columns(x, self.first, self.last)

    def allowed(self, expected: Array) -> Array:
        return np.zeros(1)


@dataclass(frozen=True)
class Concat:
    tokens: int
    heads: int
    head_dim: int
    other_dim: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.head_dim)
        return ops.concat(normal(rng, (self.tokens, self.heads, self.head_dim), precision),
                          normal(rng, (self.tokens, self.heads, self.other_dim), precision))

    def allowed(self, expected: Array) -> Array:
        return np.zeros(1)


@dataclass(frozen=True)
class HeadsLinear:
    format: str
    tokens: int
    heads: int
    width: int
    outputs: int

    def _inputs(self) -> tuple[Array, list[Dense | Quant]]:
        rng = np.random.default_rng((self.tokens, self.width, self.outputs))
        matrices = [weight(rng, self.format, self.outputs, self.width) for _ in range(self.heads)]
        shape = (self.tokens, self.heads, self.width)
        is_plain = isinstance(matrices[0], Dense)
        x = normal(rng, shape, np.float32) if is_plain else off_ties(rng, shape, emulate.GROUP)
        return x, [matrix for matrix in matrices if isinstance(matrix, Dense | Quant)]

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x, matrices = self._inputs()
        return ops.heads_linear(x.astype(precision, copy=False), backend.place("layers.0.wk_b", Stack(tuple(matrices))))

    def allowed(self, expected: Array) -> Array:
        x, matrices = self._inputs()
        return np.stack([self._allowed(x[:, head], matrix) for head, matrix in enumerate(matrices)], axis=1)

    def _allowed(self, x: Array, matrix: Dense | Quant) -> Array:
        """Of one head, as of any linear: a block format rounds each head's numbers for themselves."""
        plain = numbers(matrix, np.float64)
        size = np.abs(x) @ np.abs(plain).T
        if isinstance(matrix, Dense):
            return tolerances.float_linear(self.width) * size
        rounding = tolerances.rounded_activations(plain, emulate.steps(x), emulate.GROUP)
        return rounding + tolerances.QUANTISED_LINEAR * size
