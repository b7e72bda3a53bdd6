"""The native backend: a model is recorded once as a list of C++ ops and replayed for every step.

Recording runs the model's own `forward` with `Recorder` as its ops, whose values are numbers in the program
instead of arrays. A step is then one call without Python in between and with the GIL released.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brise import _native
from brise.backends.native.experts import expert_stack, place_loaded
from brise.backends.native.lora import NativeAdapterTable, Target, handle_of, record_linears
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import Cache, CacheFormat, Forward, ImageOps
from brise.models.rope import Layout
from brise.models.weights import Array, Dense, Layer, Placed, Quant, Stack, Stored, Weight, Weights

PAGE_SIZE = 16  # the smallest the kernels take
TILE = 16  # rows of a weight that are packed together
_STREAMED_NUMBERS = 1 << 20  # of a weight that is made row by row: 4 MB as float32
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

    def facts(self) -> Mapping[str, str | int]:
        """Name, instruction set and threads."""
        return {"backend": self.name, "isa": self.isa, "threads": self.threads}

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
            case Stored(format=format, shape=(count,)):
                return Placed(weight.shape, _native.vector(_float32(format, weight.rows(0, count))))
            case Stored(shape=(_, _)):
                return Placed(weight.shape, self._stream(name, weight))
            case Stack(matrices):
                parts = [self.place(f"{name}.{index}", matrix) for index, matrix in enumerate(matrices)]
                return Placed(weight.shape, tuple(_handle(part) for part in parts))
        raise UnsupportedError(f"{name} has {len(weight.shape)} dimensions; the native backend takes 1 and 2")

    def ops(self, trace: dict[str, Array] | None = None) -> ImageOps:
        """The ops one at a time; each is a program of one op."""
        eager = importlib.import_module("brise.backends.native.eager")  # it records with this module's Recorder
        ops: ImageOps = eager.EagerOps(self, trace)
        return ops

    def new_expert_store(self, num_bytes: int) -> _native.ExpertStore:
        """Keeps the packed matrices that were needed last, within `num_bytes`."""
        try:
            return _native.ExpertStore(num_bytes)
        except ValueError as error:
            raise UnsupportedError(str(error)) from None

    def place_experts(self, name: str, stack: Stack, store: _native.ExpertStore,
                      on_read: Callable[[Weight], None]) -> Weight:
        """A stack whose matrices are packed when a token needs them."""
        def pack(part: str, matrix: Dense | Quant | Stored) -> _native.Weight:
            handle = _handle(self.place(part, matrix))
            on_read(matrix)
            return handle

        return place_loaded(name, stack, store, pack)

    def expert_bytes(self, stack: Weight) -> int:
        """Memory of one packed matrix of a stack."""
        return expert_stack(stack).matrix_bytes

    def shape_only(self, name: str, weight: Weight) -> Weight:
        """What `place` would give, without its memory: a program can be recorded over it and planned, not run."""
        match weight:
            case Placed():
                return weight
            case Dense(format=format, shape=(*rows, cols)) | Quant(format=format, shape=(*rows, cols)) | Stored(
                    format=format, shape=(*rows, cols)) if len(rows) < 2:
                try:
                    return Placed(weight.shape, _native.phantom(format, rows[0], cols) if rows else
                                  _native.phantom("F32", cols, 0))
                except ValueError as error:
                    raise UnsupportedError(f"{name}: {error}") from None
            case Stack(matrices):
                parts = [self.shape_only(f"{name}.{index}", matrix) for index, matrix in enumerate(matrices)]
                return Placed(weight.shape, tuple(_handle(part) for part in parts))
        raise UnsupportedError(f"{name} has {len(weight.shape)} dimensions; the native backend takes 1 and 2")

    def nbytes(self, weight: Weight) -> int:
        """Memory of a placed weight, or of the one that a shape-only weight stands for."""
        if isinstance(weight, Placed) and isinstance(weight.handle, tuple):
            return sum(handle.nbytes for handle in weight.handle)
        return _handle(weight).nbytes

    def _pack(self, name: str, format: str, data: Array, cols: int) -> _native.Weight:
        try:
            return self.handle.pack(format, _bytes(data), cols)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None

    def _stream(self, name: str, weight: Stored) -> _native.Weight:
        """Packs a few rows at a time: beside the packed weight only they are in memory."""
        num_rows, cols = weight.shape
        try:
            handle = _native.empty(weight.format, num_rows, cols)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None
        step = max(_STREAMED_NUMBERS // cols // TILE * TILE, TILE)
        for first in range(0, num_rows, step):
            self.handle.fill(handle, first, _bytes(weight.rows(first, min(first + step, num_rows))))
        return handle

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache:
        return _native.Cache(config.num_layers, num_pages, page_size, config.cache_heads, config.cache_dim, format,
                             _sides(config))

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> int:
        """What `new_cache` would take, without taking it."""
        return _native.cache_bytes(config.num_layers, num_pages, page_size, config.cache_heads, config.cache_dim,
                                   format, _sides(config))

    def adapters(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> NativeAdapterTable:
        """A table of empty slots; over shape-only weights one to plan with."""
        return NativeAdapterTable(config, weights, num_slots, max_rank)

    def runner(self, config: Config, weights: Weights, max_tokens: int,
               adapters: NativeAdapterTable | None = None) -> NativeRunner:
        """One program runs steps with adapters and steps without, which cost what they cost without a table."""
        return NativeRunner(self, config, weights if adapters is None else adapters.weights)


class NativeRunner:
    """Replays the recorded `forward` and `hidden` of one model."""

    def __init__(self, backend: NativeBackend, config: Config, weights: Weights) -> None:
        self.backend, self.config, self.weights = backend, config, weights
        self.programs: dict[Forward, Recorder] = {}

    def logits(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.forward, batch, cache)

    def hidden(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.hidden, batch, cache)

    @property
    def work_bytes(self) -> int:
        """Memory of activations and scratch so far."""
        return sum(recorder.program.work_bytes for recorder in self.programs.values())

    def planned_bytes(self, num_tokens: int, num_rows: int) -> int:
        """What `work_bytes` becomes with the logits of a first step of that size; weights may be shape-only."""
        return self._recorded(decoder.forward).program.planned_bytes(num_tokens, num_rows)

    def _run(self, forward: Forward, batch: Batch, cache: Cache | None) -> Array:
        if cache is None or batch.page_table is None or batch.slots is None:
            batch, num_pages = packed_pages(batch)
            cache = self.backend.new_cache(self.config, num_pages, PAGE_SIZE, "f32")
        return self._recorded(forward).run(batch, cache)[0]

    def _recorded(self, forward: Forward) -> Recorder:
        """The program of `forward`, recorded once: it is the same for any batch and any cache."""
        if forward not in self.programs:
            recorder = self.programs[forward] = Recorder(self.backend)
            any_batch = Batch(NO_INTS, NO_INTS, NO_INTS, NO_INTS)
            recorder.finish([forward(recorder, self.config, self.weights, any_batch, None)])
        return self.programs[forward]


def packed_pages(batch: Batch) -> tuple[Batch, int]:
    """The batch with pages for exactly its own tokens, and how many: attention without a cache is this."""
    if batch.parents is not None:
        raise UnsupportedError("a batch with shared prompts (parents) is for training; the native backend has pages")
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

    def run(self, batch: Batch, cache: Cache | None) -> list[Array]:
        """Every output as (rows, width), copied: the next step writes over the program's own memory."""
        self.step(batch, cache)
        return [self.program.read(value.id, len(batch.rows)).copy() for value in self.outputs]

    def step(self, batch: Batch, cache: Cache | None) -> None:
        pages = NO_PAGES if batch.page_table is None else batch.page_table
        slots = NO_INTS if batch.slots is None else batch.slots
        self.program.run(batch.tokens, batch.positions, batch.query_starts, batch.rows, pages, slots, cache,
                         batch.features, batch.feature_rows, batch.adapters)

    def embed(self, table: Weight, tokens: Array) -> Value:
        return Value(self.program.embed(_handle(table)))

    def take_rows(self, x: Value, rows: Array) -> Value:
        return Value(self.program.take_rows(x.id), x.heads)

    def put_rows(self, x: Value, features: Array | None, rows: Array | None) -> Value:
        return Value(self.program.put_rows(x.id), x.heads)

    def linear(self, x: Value, w: Weight) -> Value:
        return self.linears(x, (w,))[0]

    def linears(self, x: Value, weights: Sequence[Weight]) -> tuple[Value, ...]:
        return tuple(Value(id) for id in record_linears(self.program, x.id, weights))

    def bias(self, x: Value, b: Weight) -> Value:
        return Value(self.program.bias(x.id, _handle(b)), x.heads)

    def add(self, x: Value, y: Value) -> Value:
        return Value(self.program.add(x.id, y.id), x.heads)

    def rms_norm(self, x: Value, w: Weight, eps: float) -> Value:
        return Value(self.program.rms_norm(x.id, _handle(w), eps), x.heads)

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
        return Value(self.program.heads_linear(x.id, _handles(w)), x.heads)

    def rope_table(self, positions: Array, turns: Sequence[float], magnitude: float) -> Value:
        return Value(self.program.rope_table(list(turns), magnitude))

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

    def route(self, logits: Value, per_token: int, scale: float) -> Value:
        return Value(self.program.route(logits.id, per_token, scale))

    def experts(self, x: Value, gates: Value, w1: Weight, w2: Weight, w3: Weight) -> Value:
        return Value(self.program.experts(x.id, gates.id, expert_stack(w1), expert_stack(w2), expert_stack(w3)))

    def silu_mul(self, gate: Value, up: Value) -> Value:
        return Value(self.program.silu_mul(gate.id, up.id), gate.heads)

    def layer(self, body: Callable[[Value, Layer], Value], x: Value, layer: Layer) -> Value:
        return body(x, layer)

    def named(self, x: Value, name: str) -> Value:
        return x


def _handle(weight: Weight) -> _native.Weight:
    handle = handle_of(weight)
    return handle.base if isinstance(handle, Target) else handle


def _handles(weight: Weight) -> list[_native.Weight]:
    """The matrices of a placed stack."""
    if not isinstance(weight, Placed) or not isinstance(weight.handle, tuple):
        raise UnsupportedError(f"a {type(weight).__name__} of shape {weight.shape} is no stack in the native backend")
    return list(weight.handle)


def _sides(config: Config) -> int:
    """Of the cache: keys and values, or latents, which are both."""
    return 2 if config.latent is None else 1


def _bytes(data: Array) -> Array:
    """Rows of a weight as their bytes."""
    return np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1)


def _float32(format: str, data: Array) -> Array:
    """A 1-D weight as float32; BF16 lies in uint16."""
    if format == "BF16":
        return (np.asarray(data).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(data, np.float32)
