"""The kinds of rows of the case table: the inputs of each op, its call, and its tolerance.

A row makes the same inputs each time (an op may overwrite its arguments). Inputs are float32
numbers, 4 bytes off any vector alignment; the judge gets the same numbers in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from brise.backends.reference.ops import numbers
from brise.models.ops import Backend, Ops
from brise.models.rope import Layout
from brise.models.weights import Array, Dense, Weight
from tests import tolerances
from tests.backends import emulate
from tests.backends.inputs import Precision, normal, off_ties, weight


class Row(Protocol):
    """One line of the table."""

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        """The op's result on this row's inputs."""

    def allowed(self, expected: Array) -> Array:
        """The largest error, for each number of the result or for all."""


@dataclass(frozen=True)
class Embed:
    format: str
    tokens: int
    width: int
    vocab: int = 37

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.tokens)
        table = backend.place("tok_embeddings", weight(rng, self.format, self.vocab, self.width))
        tokens = rng.integers(0, self.vocab, self.tokens).astype(np.int32)
        tokens[:2] = (0, self.vocab - 1)[:self.tokens]
        return ops.embed(table, tokens)

    def allowed(self, expected: Array) -> Array:
        if self.format in ("F32", "F16", "BF16"):
            return np.zeros(1)
        return tolerances.EMBED * np.abs(expected).max(axis=1, keepdims=True, initial=0)


@dataclass(frozen=True)
class TakeRows:
    tokens: int
    rows: int
    width: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.rows)
        rows = rng.integers(0, self.tokens, self.rows).astype(np.int32)
        return ops.take_rows(normal(rng, (self.tokens, self.width), precision), rows)

    def allowed(self, expected: Array) -> Array:
        return np.zeros(1)


@dataclass(frozen=True)
class Linear:
    """`extreme` gives weights and activations at the ends of their ranges: nothing may saturate."""

    format: str
    tokens: int
    width: int
    outputs: int
    extreme: bool = False

    def inputs(self) -> tuple[Array, Weight]:
        rng = np.random.default_rng((self.tokens, self.width, self.outputs))
        w = weight(rng, self.format, self.outputs, self.width, self.extreme)
        if self.extreme:
            return rng.choice(np.array([-2.0, 2.0], np.float32), (self.tokens, self.width)), w
        if isinstance(w, Dense):
            return normal(rng, (self.tokens, self.width), np.float32), w
        return off_ties(rng, (self.tokens, self.width), emulate.GROUP), w

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x, w = self.inputs()
        return ops.linear(x.astype(precision, copy=False), backend.place("layers.0.wq", w))

    def allowed(self, expected: Array) -> Array:
        x, w = self.inputs()
        plain = numbers(w, np.float64)
        size = np.abs(x) @ np.abs(plain).T
        if isinstance(w, Dense):
            return tolerances.float_linear(self.width) * size
        rounding = tolerances.rounded_activations(plain, emulate.steps(x), emulate.GROUP)
        return rounding + tolerances.QUANTISED_LINEAR * size


@dataclass(frozen=True)
class Linears:
    """Weights of several formats and heights on one x; results side by side."""

    formats: tuple[str, ...]
    tokens: int
    width: int
    outputs: tuple[int, ...]

    def _parts(self) -> list[Linear]:
        return [Linear(format, self.tokens, self.width, outputs)
                for format, outputs in zip(self.formats, self.outputs, strict=True)]

    def _x(self) -> Array:
        return off_ties(np.random.default_rng(self.tokens), (self.tokens, self.width), emulate.GROUP)

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        weights = [backend.place("layers.0.wq", part.inputs()[1]) for part in self._parts()]
        return np.concatenate(ops.linears(self._x().astype(precision, copy=False), weights), axis=1)

    def allowed(self, expected: Array) -> Array:
        x, bounds = self._x(), []
        for part in self._parts():
            plain = numbers(part.inputs()[1], np.float64)
            bounds.append(tolerances.rounded_activations(plain, emulate.steps(x), emulate.GROUP)
                          + tolerances.QUANTISED_LINEAR * (np.abs(x) @ np.abs(plain).T))
        return np.concatenate(bounds, axis=1)


@dataclass(frozen=True)
class Bias:
    tokens: int
    width: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.width)
        x = normal(rng, (self.tokens, self.width), precision)
        bias = Dense("F32", (self.width,), normal(rng, (self.width,), np.float32))
        return ops.bias(x, backend.place("layers.0.bq", bias))

    def allowed(self, expected: Array) -> Array:
        return tolerances.ONE_ROUNDING * np.abs(expected)


@dataclass(frozen=True)
class Add:
    tokens: int
    width: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.width)
        shape = (self.tokens, self.width)
        return ops.add(normal(rng, shape, precision), normal(rng, shape, precision))

    def allowed(self, expected: Array) -> Array:
        return tolerances.ONE_ROUNDING * np.abs(expected)


@dataclass(frozen=True)
class RmsNorm:
    """`heads` 0: over (T, D); else over (T, H, E) with E = width. Row 0 is all zeros: eps decides."""

    tokens: int
    width: int
    heads: int = 0
    size: float = 1.0
    eps: float = 1e-5

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        rng = np.random.default_rng(self.width)
        shape = (self.tokens, self.heads, self.width) if self.heads else (self.tokens, self.width)
        x = normal(rng, shape, precision, self.size)
        x[:1] = 0
        w = Dense("F32", (self.width,), normal(rng, (self.width,), np.float32))
        return ops.rms_norm(x, backend.place("norm", w), self.eps)

    def allowed(self, expected: Array) -> Array:
        return tolerances.rms_norm(self.width) * np.abs(expected)


@dataclass(frozen=True)
class Heads:
    tokens: int
    heads: int
    head_dim: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x = normal(np.random.default_rng(0), (self.tokens, self.heads * self.head_dim), precision)
        return ops.heads(x, self.heads)

    def allowed(self, expected: Array) -> Array:
        return np.zeros(1)


@dataclass(frozen=True)
class RopeTable:
    positions: tuple[int, ...]
    dim: int
    attention_factor: float = 1.0

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        inv_freq = [10000.0 ** (-2.0 * i / self.dim) for i in range(self.dim // 2)]
        return ops.rope_table(np.array(self.positions, np.int32), inv_freq, self.attention_factor)

    def allowed(self, expected: Array) -> Array:
        return np.full(1, tolerances.ROPE_TABLE * self.attention_factor)


@dataclass(frozen=True)
class Rope:
    layout: Layout
    tokens: int
    heads: int
    head_dim: int
    dim: int

    def _inputs(self, precision: Precision) -> tuple[Array, Array]:
        rng = np.random.default_rng(self.head_dim)
        x = normal(rng, (self.tokens, self.heads, self.head_dim), precision)
        angles = rng.uniform(-math.pi, math.pi, (self.tokens, self.dim // 2))
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        return x, table.astype(precision)

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return ops.rope(*self._inputs(precision), self.layout)

    def allowed(self, expected: Array) -> Array:
        x, _ = self._inputs(np.float64)
        return tolerances.ROPE * 2 * np.abs(x).max(axis=-1, keepdims=True, initial=0)


@dataclass(frozen=True)
class Scale:
    tokens: int
    width: int
    factor: float

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return ops.scale(normal(np.random.default_rng(self.width), (self.tokens, self.width), precision), self.factor)

    def allowed(self, expected: Array) -> Array:
        return tolerances.ONE_ROUNDING * np.abs(expected)


@dataclass(frozen=True)
class ScaleQueries:
    tokens: int
    heads: int
    head_dim: int
    first: int
    period: int

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        x = normal(np.random.default_rng(self.first), (self.tokens, self.heads, self.head_dim), precision)
        positions = np.arange(self.first, self.first + self.tokens, dtype=np.int32)
        return ops.scale_queries(x, positions, 0.1, self.period)

    def allowed(self, expected: Array) -> Array:
        return tolerances.SCALE_QUERIES * np.abs(expected)


@dataclass(frozen=True)
class GeluMul:
    tokens: int
    width: int
    size: float = 1.0

    def _inputs(self, precision: Precision) -> tuple[Array, Array]:
        rng = np.random.default_rng(self.width)
        shape = (self.tokens, self.width)
        return normal(rng, shape, precision, self.size), normal(rng, shape, precision)

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return ops.gelu_mul(*self._inputs(precision))

    def allowed(self, expected: Array) -> Array:
        gate, up = self._inputs(np.float64)
        return (tolerances.GELU_TANH + tolerances.U) * np.abs(gate * up) + tolerances.SUBNORMAL


@dataclass(frozen=True)
class SiluMul:
    tokens: int
    width: int
    size: float = 1.0

    def _inputs(self, precision: Precision) -> tuple[Array, Array]:
        rng = np.random.default_rng(self.width)
        shape = (self.tokens, self.width)
        return normal(rng, shape, precision, self.size), normal(rng, shape, precision)

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        return ops.silu_mul(*self._inputs(precision))

    def allowed(self, expected: Array) -> Array:
        gate, up = self._inputs(np.float64)
        return tolerances.SILU_MUL * np.abs(expected) + tolerances.SILU_MUL_CLAMP * np.abs(gate * up)
