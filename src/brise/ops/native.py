"""The native backend: a model is recorded once as a list of C++ ops and replayed for every step.

Recording runs the model's own `forward` with `Recorder` as its ops, whose values are numbers in the program
instead of arrays. A step is then one call without Python in between and with the GIL released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from brise.errors import UnsupportedError
from brise.models import dense
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.rope import Layout
from brise.models.weights import Array, Dense, Placed, Quant, Weight, Weights
from brise.ops import _native
from brise.ops.contract import Cache, CacheFormat, Forward

PAGE_SIZE = 16  # the smallest the kernels take
NO_INTS = np.zeros(0, np.int32)
NO_PAGES = np.zeros((0, 0), np.int32)


class NativeBackend:
    """C++ kernels on `threads` threads; `isa` forces an instruction set (None: the best of this processor)."""

    name = "native"

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        self.handle = _native.Backend(threads, isa or "")

    @staticmethod
    def available_isas() -> list[str]:
        """Instruction sets of this build that this processor runs, best first."""
        return _native.isa_names()

    @property
    def isa(self) -> str:
        return self.handle.isa

    @property
    def threads(self) -> int:
        return self.handle.threads

    def place(self, name: str, weight: Weight) -> Weight:
        """Packs a matrix into tiles, copies a vector; refuses what there is no kernel for."""
        match weight:
            case Placed():
                return weight
            case Dense(format=format, shape=(_,)):
                return Placed(weight.shape, _native.vector(_float32(format, weight.data)))
            case Dense(format=format, shape=(_, cols)) | Quant(format=format, shape=(_, cols)):
                return Placed(weight.shape, self._pack(name, format, weight.data, cols))
        raise UnsupportedError(f"{name} has {len(weight.shape)} dimensions; the native backend takes 1 and 2")

    def _pack(self, name: str, format: str, data: Array, cols: int) -> _native.Weight:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(data.shape[0], -1)
        try:
            return self.handle.pack(format, raw, cols)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache:
        return _native.Cache(config.num_layers, num_pages, page_size, config.num_kv_heads, config.head_dim, format)

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> int:
        """What `new_cache` would take, without taking it."""
        return _native.cache_bytes(config.num_layers, num_pages, page_size, config.num_kv_heads, config.head_dim,
                                   format)

    def runner(self, config: Config, weights: Weights, max_tokens: int) -> NativeRunner:
        return NativeRunner(self, config, weights)


class NativeRunner:
    """Replays the recorded `forward` and `hidden` of one model."""

    def __init__(self, backend: NativeBackend, config: Config, weights: Weights) -> None:
        self.backend, self.config, self.weights = backend, config, weights
        self.programs: dict[Forward, Recorder] = {}

    def logits(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(dense.forward, batch, cache)

    def hidden(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(dense.hidden, batch, cache)

    @property
    def work_bytes(self) -> int:
        """Memory of activations and scratch so far."""
        return sum(recorder.program.work_bytes for recorder in self.programs.values())

    def _run(self, forward: Forward, batch: Batch, cache: Cache | None) -> Array:
        if cache is None or batch.page_table is None or batch.slots is None:
            batch, num_pages = packed_pages(batch)
            cache = self.backend.new_cache(self.config, num_pages, PAGE_SIZE, "f32")
        recorder = self.programs.get(forward)
        if recorder is None:
            recorder = self.programs[forward] = Recorder(self.backend)
            result = forward(recorder, self.config, self.weights, batch, cache)
            recorder.finish([result])
        return recorder.run(batch, cache)[0]


def packed_pages(batch: Batch) -> tuple[Batch, int]:
    """The batch with pages for exactly its own tokens, and how many: attention without a cache is this."""
    starts = np.asarray(batch.query_starts)
    counts = -(-np.diff(starts) // PAGE_SIZE)
    table = np.zeros((len(counts), int(counts.max(initial=0))), np.int32)
    slots = np.zeros(len(batch.tokens), np.int32)
    first = 0
    for index, count in enumerate(counts):
        begin, end = starts[index], starts[index + 1]
        table[index, :count] = np.arange(first, first + count)
        slots[begin:end] = first * PAGE_SIZE + np.arange(end - begin)
        first += int(count)
    return replace(batch, page_table=table, slots=slots), max(first, 1)


@dataclass(frozen=True)
class Value:
    """A value of the program being recorded; `heads` is how many heads a row is seen as."""

    id: int
    heads: int = 1


class Recorder:
    """The ops as recording: every call adds to the program and gives back a value number."""

    def __init__(self, backend: NativeBackend) -> None:
        self.program = backend.handle.program()
        self.outputs: list[Value] = []

    def finish(self, outputs: Sequence[Value]) -> None:
        self.outputs = list(outputs)
        self.program.finish([value.id for value in outputs])

    def run(self, batch: Batch, cache: Cache | None, num_rows: int | None = None) -> list[Array]:
        """Every output as (rows, width), copied: the next step writes over the program's own memory."""
        pages = NO_PAGES if batch.page_table is None else batch.page_table
        slots = NO_INTS if batch.slots is None else batch.slots
        self.program.run(batch.tokens, batch.positions, batch.query_starts, batch.rows, pages, slots, cache)
        rows = len(batch.rows) if num_rows is None else num_rows
        return [self.program.read(value.id, rows).copy() for value in self.outputs]

    def embed(self, table: Weight, tokens: Array) -> Value:
        return Value(self.program.embed(_handle(table)))

    def take_rows(self, x: Value, rows: Array) -> Value:
        return Value(self.program.take_rows(x.id), x.heads)

    def put_rows(self, x: Value, features: Array | None, rows: Array | None) -> Value:
        return x

    def linear(self, x: Value, w: Weight) -> Value:
        return self.linears(x, (w,))[0]

    def linears(self, x: Value, weights: Sequence[Weight]) -> tuple[Value, ...]:
        return tuple(Value(id) for id in self.program.linears(x.id, [_handle(w) for w in weights]))

    def bias(self, x: Value, b: Weight) -> Value:
        return Value(self.program.bias(x.id, _handle(b)), x.heads)

    def add(self, x: Value, y: Value) -> Value:
        return Value(self.program.add(x.id, y.id), x.heads)

    def rms_norm(self, x: Value, w: Weight, eps: float) -> Value:
        return Value(self.program.rms_norm(x.id, _handle(w), eps), x.heads)

    def heads(self, x: Value, num_heads: int) -> Value:
        return Value(x.id, num_heads)

    def rope_table(self, positions: Array, turns: Sequence[float], magnitude: float) -> Value:
        return Value(self.program.rope_table(list(turns), magnitude))

    def rope(self, x: Value, table: Value, layout: Layout) -> Value:
        return Value(self.program.rope(x.id, table.id, x.heads, layout == "interleaved"), x.heads)

    def scale_queries(self, x: Value, positions: Array, beta: float, period: int) -> Value:
        return Value(self.program.scale_queries(x.id, beta, period), x.heads)

    def attend(self, q: Value, k: Value, v: Value, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Value:
        return Value(self.program.attend(q.id, k.id, v.id, layer, q.heads, k.heads, scale, window or 0))

    def silu_mul(self, gate: Value, up: Value) -> Value:
        return Value(self.program.silu_mul(gate.id, up.id), gate.heads)

    def named(self, x: Value, name: str) -> Value:
        return x


def _handle(weight: Weight) -> _native.Weight:
    if not isinstance(weight, Placed):
        raise UnsupportedError(f"a {type(weight).__name__} weight was not placed in the native backend")
    handle: _native.Weight = weight.handle
    return handle


def _float32(format: str, data: Array) -> Array:
    """A 1-D weight as float32; BF16 lies in uint16."""
    if format == "BF16":
        return (np.asarray(data).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(data, np.float32)
