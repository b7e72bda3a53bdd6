"""Recording of programs: a model's `forward` runs once with Recorder as its ops, which makes a program of C++ ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from brise import _native
from brise.backends.native.experts import expert_stack
from brise.backends.native.lora import Target, handle_of, record_embed, record_linears
from brise.errors import UnsupportedError
from brise.models.batch import Batch
from brise.models.ops import Cache
from brise.models.rope import Layout
from brise.models.weights import Array, Layer, Placed, Weight

P = TypeVar("P", bound="_native.Recording")
NO_INTS = np.zeros(0, np.int32)
NO_PAGES = np.zeros((0, 0), np.int32)


@dataclass(frozen=True)
class Value:
    """A value of the program being recorded; `heads` is the number of heads in a row."""

    id: int
    heads: int = 1


class Recorder(Generic[P]):
    """The ops as a recorder: every call adds an op to `program`, which is empty, and returns the number of its value.
    """

    def __init__(self, program: P) -> None:
        self.program = program
        self.outputs: list[Value] = []

    def finish(self, outputs: Sequence[Value]) -> None:
        self.outputs = list(outputs)
        self.program.finish([value.id for value in outputs])

    def run(self, batch: Batch, cache: Cache | None) -> list[Array]:
        """Copies of all outputs (rows, width); the next step overwrites the program's own memory."""
        self.step(batch, cache)
        return [self.program.read(value.id, len(batch.rows)).copy() for value in self.outputs]

    def step(self, batch: Batch, cache: Cache | None) -> None:
        run_step(self.program, batch, cache)

    def embed(self, table: Weight, tokens: Array) -> Value:
        return Value(record_embed(self.program, table))

    def take_rows(self, x: Value, rows: Array) -> Value:
        return Value(self.program.take_rows(x.id), x.heads)

    def put_rows(self, x: Value, features: Array | None, rows: Array | None) -> Value:
        return Value(self.program.put_rows(x.id), x.heads)

    def linear(self, x: Value, w: Weight) -> Value:
        return self.linears(x, (w,))[0]

    def linears(self, x: Value, weights: Sequence[Weight]) -> tuple[Value, ...]:
        return tuple(Value(id) for id in record_linears(self.program, x.id, weights))

    def bias(self, x: Value, b: Weight) -> Value:
        return Value(self.program.bias(x.id, matrix_handle(b)), x.heads)

    def add(self, x: Value, y: Value) -> Value:
        return Value(self.program.add(x.id, y.id), x.heads)

    def scale(self, x: Value, factor: float) -> Value:
        return Value(self.program.scale(x.id, factor), x.heads)

    def rms_norm(self, x: Value, w: Weight, eps: float) -> Value:
        return Value(self.program.rms_norm(x.id, matrix_handle(w), eps), x.heads)

    def layer_norm(self, x: Value, w: Weight, b: Weight, eps: float) -> Value:
        return Value(self.program.layer_norm(x.id, matrix_handle(w), matrix_handle(b), eps))

    def heads(self, x: Value, num_heads: int) -> Value:
        return Value(x.id, num_heads)

    def flat(self, x: Value) -> Value:
        return Value(x.id)

    def columns(self, x: Value, first: int, last: int) -> Value:
        if (first, last) == (0, self.program.width(x.id) // x.heads):
            return x
        return Value(self.program.columns(x.id, x.heads, first, last), x.heads)

    def concat(self, x: Value, y: Value) -> Value:
        return Value(self.program.concat(x.id, y.id, x.heads), x.heads)

    def heads_linear(self, x: Value, w: Weight) -> Value:
        return Value(self.program.heads_linear(x.id, matrix_handles(w)), x.heads)

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Value:
        return Value(self.program.rope_table(list(inv_freq), attention_factor))

    def rope(self, x: Value, table: Value, layout: Layout) -> Value:
        return Value(self.program.rope(x.id, table.id, x.heads, layout == "interleaved"), x.heads)

    def scale_queries(self, x: Value, positions: Array, beta: float, period: int) -> Value:
        return Value(self.program.scale_queries(x.id, beta, period), x.heads)

    def attend(self, q: Value, k: Value, v: Value, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Value:
        return Value(self.program.attend(q.id, k.id, v.id, layer, q.heads, k.heads, scale, window or 0))

    def attend_latent(self, q: Value, kv: Value, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Value:
        return Value(self.program.attend_latent(q.id, kv.id, layer, q.heads, scale, rank), q.heads)

    def gelu(self, x: Value) -> Value:
        return Value(self.program.gelu(x.id), x.heads)

    def gelu_tanh(self, x: Value) -> Value:
        return Value(self.program.gelu_tanh(x.id), x.heads)

    def route(self, logits: Value, per_token: int, scale: float) -> Value:
        return Value(self.program.route(logits.id, per_token, scale))

    def experts(self, x: Value, gates: Value, w1: Weight, w2: Weight, w3: Weight) -> Value:
        return Value(self.program.experts(x.id, gates.id, expert_stack(w1), expert_stack(w2), expert_stack(w3)))

    def silu_mul(self, gate: Value, up: Value) -> Value:
        return Value(self.program.silu_mul(gate.id, up.id), gate.heads)

    def gelu_mul(self, gate: Value, up: Value) -> Value:
        return Value(self.program.gelu_mul(gate.id, up.id), gate.heads)

    def layer(self, body: Callable[[Value, Layer], Value], x: Value, layer: Layer) -> Value:
        return body(x, layer)

    def named(self, x: Value, name: str) -> Value:
        return x


def run_step(program: _native.Recording, batch: Batch, cache: Cache | None) -> None:
    """Runs a finished program for one step; its values can be read until the next one."""
    pages = NO_PAGES if batch.page_table is None else batch.page_table
    slots = NO_INTS if batch.slots is None else batch.slots
    run = program.run_quietly if batch.background else program.run
    run(batch.tokens, batch.positions, batch.query_starts, batch.rows, pages, slots, cache, batch.features,
        batch.feature_rows, batch.adapters, batch.reach)


def matrix_handle(weight: Weight) -> _native.Weight:
    """The packed matrix or vector of a placed weight, without its adapters."""
    handle = handle_of(weight)
    return handle.base if isinstance(handle, Target) else handle


def matrix_handles(weight: Weight) -> list[_native.Weight]:
    """The matrices of a placed stack."""
    if not isinstance(weight, Placed) or not isinstance(weight.handle, tuple):
        raise UnsupportedError(f"a {type(weight).__name__} of shape {weight.shape} is no stack in the native backend")
    return list(weight.handle)
