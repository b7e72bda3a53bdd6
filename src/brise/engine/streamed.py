"""Runs a model with one weight in memory at a time, so that a model larger than the memory can be evaluated.

Each weight is placed in the backend when an op needs it, and dropped after the op. That is slow for one token; for
thousands of tokens, loading is a small part of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from brise.models.batch import Batch
from brise.models.ops import Cache, Ops
from brise.models.rope import Layout
from brise.models.weights import Array, Dense, Layer, Quant, Stack, Stored, Weight
from brise.quant.rows import take_rows

Place = Callable[[str, Weight], Weight]
# Gets a weight, the index of the matrix in a stack, and the rows that it multiplied.
Observer = Callable[[Weight, int, Array], None]


def ignore(weight: Weight, matrix: int, x: Array) -> None:
    """An observer for evaluations, which do not need the inputs of weights."""


class StreamedOps:
    """The ops of another backend, with weights placed one at a time; `observe` gets the inputs of every matrix."""

    def __init__(self, ops: Ops, place: Place, observe: Observer = ignore,
                 forget: Callable[[], None] = lambda: None) -> None:
        self._ops, self._place, self._observe, self._forget = ops, place, observe, forget

    def embed(self, table: Weight, tokens: Array) -> Array:
        return take_rows(table, tokens)

    def take_rows(self, x: Array, rows: Array) -> Array:
        return self._ops.take_rows(x, rows)

    def put_rows(self, x: Array, features: Array | None, rows: Array | None) -> Array:
        return self._ops.put_rows(x, features, rows)

    def linear(self, x: Array, w: Weight) -> Array:
        return self._linear(x, w, w, 0)

    def linears(self, x: Array, weights: Sequence[Weight]) -> tuple[Array, ...]:
        return tuple(self.linear(x, w) for w in weights)

    def bias(self, x: Array, b: Weight) -> Array:
        return self._ops.bias(x, self._place("bias", b))

    def add(self, x: Array, y: Array) -> Array:
        return self._ops.add(x, y)

    def scale(self, x: Array, factor: float) -> Array:
        return self._ops.scale(x, factor)

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        return self._ops.rms_norm(x, self._place("norm", w), eps)

    def layer_norm(self, x: Array, w: Weight, b: Weight, eps: float) -> Array:
        return self._ops.layer_norm(x, self._place("norm", w), self._place("bias", b), eps)

    def heads(self, x: Array, num_heads: int) -> Array:
        return self._ops.heads(x, num_heads)

    def flat(self, x: Array) -> Array:
        return self._ops.flat(x)

    def columns(self, x: Array, first: int, last: int) -> Array:
        return self._ops.columns(x, first, last)

    def concat(self, x: Array, y: Array) -> Array:
        return self._ops.concat(x, y)

    def heads_linear(self, x: Array, w: Weight) -> Array:
        return np.stack([self._linear(np.ascontiguousarray(x[:, index]), w, matrix, index)
                         for index, matrix in enumerate(_matrices(w))], axis=1)

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Array:
        return self._ops.rope_table(positions, inv_freq, attention_factor)

    def rope(self, x: Array, table: Array, layout: Layout) -> Array:
        return self._ops.rope(x, table, layout)

    def scale_queries(self, x: Array, positions: Array, beta: float, period: int) -> Array:
        return self._ops.scale_queries(x, positions, beta, period)

    def attend(self, q: Array, k: Array, v: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Array:
        return self._ops.attend(q, k, v, batch, cache, layer if cache is not None else 0, scale, window)

    def attend_latent(self, q: Array, kv: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Array:
        return self._ops.attend_latent(q, kv, batch, cache, layer if cache is not None else 0, scale, rank)

    def route(self, logits: Array, per_token: int, scale: float) -> Array:
        return self._ops.route(logits, per_token, scale)

    def experts(self, x: Array, gates: Array, w1: Weight, w2: Weight, w3: Weight) -> Array:
        """Runs one expert after the other, each on the tokens that were routed to it."""
        y = np.zeros_like(x)
        stacks = zip(_matrices(w1), _matrices(w2), _matrices(w3), strict=True)
        for index, (gate, down, up) in enumerate(stacks):
            (chosen,) = np.nonzero(gates[:, index])
            if len(chosen) == 0:
                continue
            own = x[chosen]
            h = self._ops.silu_mul(self._linear(own, w1, gate, index), self._linear(own, w3, up, index))
            y[chosen] += gates[chosen, index, None] * self._linear(h, w2, down, index)
        return y

    def gelu(self, x: Array) -> Array:
        return self._ops.gelu(x)

    def gelu_tanh(self, x: Array) -> Array:
        return self._ops.gelu_tanh(x)

    def gelu_mul(self, gate: Array, up: Array) -> Array:
        return self._ops.gelu_mul(gate, up)

    def silu_mul(self, gate: Array, up: Array) -> Array:
        return self._ops.silu_mul(gate, up)

    def layer(self, body: Callable[[Array, Layer], Array], x: Array, layer: Layer) -> Array:
        return body(x, layer)

    def named(self, x: Array, name: str) -> Array:
        return x

    def _linear(self, x: Array, whole: Weight, matrix: Weight, index: int) -> Array:
        """x times `matrix`, which is one of the stack `whole`, or `whole` itself."""
        self._observe(whole, index, x)
        y = self._ops.linear(x, self._place("matrix", matrix))
        self._forget()
        return y


def _matrices(weight: Weight) -> tuple[Dense | Quant | Stored, ...]:
    assert isinstance(weight, Stack), type(weight)
    return weight.matrices
