"""The rows of the case table for routers and experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brise.backends.reference.ops import numbers
from brise.models.ops import Backend, Ops
from brise.models.weights import Array, Dense, Quant, Stack
from tests import tolerances
from tests.backends.inputs import Precision, normal, weight


def matrix(rng: np.random.Generator, format: str, rows: int, cols: int) -> Dense | Quant:
    """A random matrix, as a stack holds it."""
    made = weight(rng, format, rows, cols)
    assert isinstance(made, Dense | Quant)
    return made


@dataclass(frozen=True)
class Route:
    """With `ties`, logits are whole numbers: many experts are equally good."""

    tokens: int
    experts: int
    per_token: int
    scale: float = 1.0
    size: float = 1.0
    ties: bool = False

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        logits = normal(np.random.default_rng(self.tokens), (self.tokens, self.experts), np.float32, self.size)
        return ops.route((np.rint(logits) if self.ties else logits).astype(precision), self.per_token, self.scale)

    def allowed(self, expected: Array) -> Array:
        return tolerances.ROUTE * expected + float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Experts:
    """Plain formats: quantized experts are compared with quantized linears, to the last bit, in test_experts.py.

    Every token has `per_token` experts, but every seventh none at all; the last expert has no token.
    """

    format: str
    tokens: int
    experts: int
    per_token: int
    width: int
    inner: int

    def stacks(self) -> tuple[Stack, Stack, Stack]:
        """w1, w2, w3."""
        rng = np.random.default_rng((self.experts, self.width, self.inner))
        shapes = ((self.inner, self.width), (self.width, self.inner), (self.inner, self.width))
        w1, w2, w3 = (Stack(tuple(matrix(rng, self.format, *shape) for _ in range(self.experts))) for shape in shapes)
        return w1, w2, w3

    def inputs(self) -> tuple[Array, Array]:
        """x and gates, float32."""
        rng = np.random.default_rng(self.tokens)
        gates = np.zeros((self.tokens, self.experts), np.float32)
        some = max(self.experts - 1, 1)
        for token in range(self.tokens):
            if token % 7 != 6:
                chosen = rng.permutation(some)[:self.per_token]
                gates[token, chosen] = rng.uniform(0.05, 1.5, len(chosen))
        return normal(rng, (self.tokens, self.width), np.float32), gates

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x, gates = self.inputs()
        placed = [backend.place(f"layers.0.feed_forward.{name}", stack)
                  for name, stack in zip(("w1", "w2", "w3"), self.stacks(), strict=True)]
        return ops.experts(x.astype(precision), gates.astype(precision), *placed)

    def allowed(self, expected: Array) -> Array:
        x, gates = (array.astype(np.float64) for array in self.inputs())
        bound = np.zeros(expected.shape)
        for index, matrices in enumerate(zip(*(stack.matrices for stack in self.stacks()), strict=True)):
            w1, w2, w3 = (numbers(matrix, np.float64) for matrix in matrices)
            bound += gates[:, index, None] * tolerances.expert(x, w1, w2, w3, self.per_token)
        return bound
