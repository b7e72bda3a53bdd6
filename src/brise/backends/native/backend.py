"""The native backend records a model once as a program of C++ ops and replays it for every step.

A step is one call, with the GIL released and no Python in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from brise import _native
from brise.backends.encoders import EagerEncoder
from brise.backends.host import available_bytes
from brise.backends.native.eager import EagerOps
from brise.backends.native.experts import expert_stack, place_loaded
from brise.backends.native.lora import NativeAdapterTable
from brise.backends.native.recorder import NO_INTS, Recorder, matrix_handle
from brise.backends.pages import packed_pages
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.config import Config
from brise.models.ops import Cache, CacheFormat, Encode, Forward, Room
from brise.models.weights import Array, Dense, Placed, Quant, Stack, Stored, Weight, Weights
from brise.quant.formats import FORMATS

TILE = 16  # rows of a weight that are packed together
STREAMED_NUMBERS = 1 << 20  # of a weight that is converted block by block: 4 MB as float32


if {name: (columns, nbytes) for name, columns, nbytes in _native.formats()} != {
        format.name: (format.block_size, format.block_bytes) for format in FORMATS.values()}:
    raise ImportError("native/formats.cpp and quant/formats.py list different weight formats; build brise again")


class NativeBackend:
    """C++ kernels on `threads` threads; `isa` forces an instruction set (None: the best on this processor)."""

    name = "native"
    device = None
    split = None
    encodes_on_device = False

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        self.handle = _native.Backend(threads, isa or "")

    @staticmethod
    def available_isas() -> list[str]:
        """The instruction sets of this build that this processor runs, best first."""
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
        """Packs a matrix into tiles, or copies a vector; refuses a format without a kernel."""
        match weight:
            case Placed():
                return weight
            case Dense(format=format, shape=(_,)):
                return Placed(weight.shape, _native.vector(float32_vector(format, weight.data)))
            case Dense(format=format, shape=(_, cols)) | Quant(format=format, shape=(_, cols)):
                return Placed(weight.shape, self._pack(name, format, weight.data, cols))
            case Stored(format=format, shape=(count,)):
                return Placed(weight.shape, _native.vector(float32_vector(format, weight.rows(0, count))))
            case Stored(shape=(_, _)):
                return Placed(weight.shape, self._stream(name, weight))
            case Stack(matrices):
                parts = [self.place(f"{name}.{index}", matrix) for index, matrix in enumerate(matrices)]
                return Placed(weight.shape, tuple(matrix_handle(part) for part in parts))
        raise UnsupportedError(f"{name} has {len(weight.shape)} dimensions; the native backend takes 1 and 2")

    def ops(self, trace: dict[str, Array] | None = None) -> EagerOps:
        """The ops one at a time, each as a program of one op."""
        return EagerOps(self.handle, trace)

    def encoder(self, encode: Encode, config: Any, weights: Any) -> EagerEncoder:
        """An encoder that runs op by op."""
        return EagerEncoder(self.ops(), encode, config, weights)

    def encoding_on_host(self) -> NativeBackend:
        """Itself."""
        return self

    def encoder_room(self, encode: Encode, config: Any, weights: Any, source: Any, num_bytes: int) -> Room:
        """What it takes op by op."""
        return Room(num_bytes)

    def new_expert_store(self, num_bytes: int) -> _native.ExpertStore:
        """A store that keeps the most recently used packed matrices, up to `num_bytes`."""
        try:
            return _native.ExpertStore(num_bytes)
        except ValueError as error:
            raise UnsupportedError(str(error)) from None

    def place_experts(self, name: str, stack: Stack, store: _native.ExpertStore,
                      on_read: Callable[[Weight], None]) -> Weight:
        """A stack whose matrices are packed when a token needs them."""
        def pack(part: str, matrix: Dense | Quant | Stored) -> _native.Weight:
            handle = matrix_handle(self.place(part, matrix))
            on_read(matrix)
            return handle

        return place_loaded(name, stack, store, pack)

    def expert_bytes(self, stack: Weight) -> int:
        """Memory of one packed matrix of a stack."""
        return expert_stack(stack).matrix_bytes

    def shape_only(self, name: str, weight: Weight) -> Weight:
        """The placed weight without its memory. A program over it can be recorded and planned, but not run."""
        match weight:
            case Placed():
                return weight
            case Dense(format=format, shape=(*rows, cols)) | Quant(format=format, shape=(*rows, cols)) | Stored(
                    format=format, shape=(*rows, cols)) if len(rows) < 2:
                try:
                    return Placed(weight.shape, _native.shape_only(format, rows[0], cols) if rows else
                                  _native.shape_only("F32", cols, 0))
                except ValueError as error:
                    raise UnsupportedError(f"{name}: {error}") from None
            case Stack(matrices):
                parts = [self.shape_only(f"{name}.{index}", matrix) for index, matrix in enumerate(matrices)]
                return Placed(weight.shape, tuple(matrix_handle(part) for part in parts))
        raise UnsupportedError(f"{name} has {len(weight.shape)} dimensions; the native backend takes 1 and 2")

    def nbytes(self, weight: Weight) -> Room:
        """Memory of a placed weight, or of the weight that a shape-only one stands for."""
        if isinstance(weight, Placed) and isinstance(weight.handle, tuple):
            return Room(sum(handle.nbytes for handle in weight.handle))
        return Room(matrix_handle(weight).nbytes)

    def _pack(self, name: str, format: str, data: Array, cols: int) -> _native.Weight:
        try:
            return self.handle.pack(format, byte_rows(data), cols)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None

    def _stream(self, name: str, weight: Stored) -> _native.Weight:
        """Packs a few rows at a time, so that only those are in memory besides the packed weight."""
        num_rows, cols = weight.shape
        try:
            handle = _native.empty(weight.format, num_rows, cols)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None
        step = max(STREAMED_NUMBERS // cols // TILE * TILE, TILE)
        for first in range(0, num_rows, step):
            self.handle.fill(handle, first, byte_rows(weight.rows(first, min(first + step, num_rows))))
        return handle

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache:
        return _native.Cache(config.num_layers, num_pages, page_size, config.cache_heads, config.cache_dim, format,
                             cache_sides(config))

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Room:
        """Memory that `new_cache` would allocate."""
        return Room(_native.cache_bytes(config.num_layers, num_pages, page_size, config.cache_heads, config.cache_dim,
                                        format, cache_sides(config)))

    def available(self) -> Room:
        """The host's memory that programs can have without swapping."""
        return Room(available_bytes())

    def own_bytes(self) -> Room:
        """Nothing: the process counts the kernels and their threads."""
        return Room()

    def adapter_room(self, num_bytes: int) -> Room:
        """Prepared adapters lie in the host's memory."""
        return Room(num_bytes)

    def taken(self) -> int:
        """Nothing: there is no device."""
        return 0

    def adapters(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> NativeAdapterTable:
        """A table of empty slots; over shape-only weights, one to plan with."""
        return NativeAdapterTable(config, weights, num_slots, max_rank)

    def runner(self, config: Config, weights: Weights, max_tokens: int,
               adapters: NativeAdapterTable | None = None) -> NativeRunner:
        """A runner whose one program runs steps with and without adapters; those without cost nothing extra."""
        return NativeRunner(self, config, weights if adapters is None else adapters.weights)


class NativeRunner:
    """Replays the recorded `forward` and `hidden` of one model."""

    def __init__(self, backend: NativeBackend, config: Config, weights: Weights) -> None:
        self.backend, self.config, self.weights = backend, config, weights
        self.programs: dict[Forward, Recorder[_native.Program]] = {}

    def logits(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.forward, batch, cache)

    def hidden(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.hidden, batch, cache)

    def cancel(self) -> None:
        """A step of the CPU runs to its end."""

    @property
    def work_bytes(self) -> int:
        """Memory of activations and scratch space so far."""
        return sum(recorder.program.work_bytes for recorder in self.programs.values())

    def planned_bytes(self, num_tokens: int, num_rows: int) -> Room:
        """The `work_bytes` after a first step of this size, with logits; weights may be shape-only."""
        return Room(self._recorded(decoder.forward).program.planned_bytes(num_tokens, num_rows))

    def _run(self, forward: Forward, batch: Batch, cache: Cache | None) -> Array:
        if cache is None or batch.page_table is None or batch.slots is None:
            batch, num_pages = packed_pages(batch)
            cache = self.backend.new_cache(self.config, num_pages, PAGE_SIZE, "f32")
        return self._recorded(forward).run(batch, cache)[0]

    def _recorded(self, forward: Forward) -> Recorder[_native.Program]:
        """The program of `forward`, recorded once: it is the same for every batch and cache."""
        if forward not in self.programs:
            recorder = self.programs[forward] = Recorder(self.backend.handle.program())
            any_batch = Batch(NO_INTS, NO_INTS, NO_INTS, NO_INTS)
            recorder.finish([forward(recorder, self.config, self.weights, any_batch, None)])
        return self.programs[forward]


def cache_sides(config: Config) -> int:
    """The number of sides of the cache: 2 for keys and values, 1 for latents, which are both."""
    return 2 if config.latent is None else 1


def byte_rows(data: Array) -> Array:
    """The bytes of rows of a weight."""
    return np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1)


def float32_vector(format: str, data: Array) -> Array:
    """A 1-D weight as float32; BF16 is stored in uint16."""
    if format == "BF16":
        return (np.asarray(data).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(data, np.float32)
