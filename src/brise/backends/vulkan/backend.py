"""The Vulkan backend: the program that the native backend records, replayed on a GPU.

Weights keep the native tiles, byte for byte. Encoders of images run on the GPU, too (encoder.py), those of audio on the
CPU by the native backend; features go up with the step. docs/guides/gpu.md says which models and devices it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from brise import _native
from brise.backends.host import available_bytes
from brise.backends.native.backend import STREAMED_NUMBERS, TILE, NativeBackend, byte_rows, cache_sides, float32_vector
from brise.backends.native.eager import EagerOps
from brise.backends.native.lora import NativeAdapterTable
from brise.backends.native.recorder import NO_INTS, Recorder, matrix_handle
from brise.backends.pages import packed_pages
from brise.backends.vulkan.encoder import VulkanEncoder
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.config import Config
from brise.models.ops import Cache, CacheFormat, DeviceMemory, Encode, Encoder, Forward, Room
from brise.models.weights import (
    Array,
    Dense,
    LowRank,
    Placed,
    Quant,
    Stack,
    Stored,
    Weight,
    Weights,
    weights_with_paths,
)

_ENCODERS = ("vision.", "audio.")
# The driver (64 MB) and its compiled shaders (49 MB) in the process, measured with Mesa's lavapipe and rounded up.
_DRIVER_BYTES = 130_000_000


class HostPlaced(Placed):
    """A weight that stays in the host's memory, for an encoder."""


class VulkanBackend:
    """A model on one GPU; `selector` is its number, a part of its name, or "" for the best. `native` packs its weights.

    DeviceError if there is no such device, DeviceLacksError if it is too old.
    """

    name = "vulkan"
    split = None

    def __init__(self, selector: str, native: NativeBackend) -> None:
        self.encodes_on_device = True
        self.native, self.handle = native, _native.VulkanDevice(selector)
        facts = self.handle.facts()
        self.selector = f"vulkan:{facts['number']}"
        self.is_software = facts["type"] == "cpu"
        self.device = DeviceMemory(f"{facts['name']} ({self.selector})", bool(facts["is_shared"]))

    def facts(self) -> Mapping[str, str | int]:
        """The device and its driver, and the CPU's part."""
        facts = self.handle.facts()
        return {**self.native.facts(), "backend": self.name, "device": self.device.label, "selector": self.selector,
                "driver": f"{facts['driver']} {facts['driver_version']}".strip(), "api": str(facts["api"]),
                "type": str(facts["type"])}

    def place(self, name: str, weight: Weight) -> Weight:
        """Packs a matrix or a stack into tiles on the device, or copies a vector; refuses a format without a shader."""
        if self._stays_on_host(name):
            return host_placed(self.native.place(name, weight))
        match weight:
            case Placed():
                return weight
            case Dense(format=format, shape=(_,)):
                return Placed(weight.shape, self.handle.vector(float32_vector(format, weight.data)))
            case Stored(format=format, shape=(count,)):
                return Placed(weight.shape, self.handle.vector(float32_vector(format, weight.rows(0, count))))
            case (Dense(format=format, shape=(rows, cols)) | Quant(format=format, shape=(rows, cols))
                  | Stored(format=format, shape=(rows, cols))):
                handle = self._empty(name, format, rows, cols)
                self._fill(name, handle, weight)
                return Placed(weight.shape, handle)
            case Stack():
                return self._place_stack(name, weight)
        raise UnsupportedError(f"{name} is of a shape that the GPU does not compute: {weight.shape}",
                               hint="take --device cpu")

    def ops(self, trace: dict[str, Array] | None = None) -> EagerOps:
        """The ops one at a time on the device, each as a program of one op."""
        return EagerOps(self.handle, trace, self.native.handle)

    def encoder(self, encode: Encode, config: Any, weights: Any) -> Encoder:
        """Recorded at once, so that an op without a shader is refused when a model loads; on the CPU if its weights lie
        there."""
        if _is_on_host(weights):
            return self.native.encoder(encode, config, weights)
        return VulkanEncoder(self.handle, encode, config, weights)

    def encoding_on_host(self) -> VulkanBackend:
        """The same device, for a model whose encoders do not fit there."""
        out = copy(self)
        out.encodes_on_device = False
        return out

    def encoder_room(self, encode: Encode, config: Any, weights: Any, source: Any, num_bytes: int) -> Room:
        """The memory of the encoder's program, and what is on the host between it and the engine."""
        if _is_on_host(weights):
            return self.native.encoder_room(encode, config, weights, source, num_bytes)
        return VulkanEncoder(self.handle, encode, config, weights).planned_bytes(source)

    def new_expert_store(self, num_bytes: int) -> _native.ExpertStore:
        """A store in the host's memory: the CPU runs experts that stay in a file, between two submissions."""
        return self.native.new_expert_store(num_bytes)

    def place_experts(self, name: str, stack: Stack, store: _native.ExpertStore,
                      on_read: Callable[[Weight], None]) -> Weight:
        """A stack of the CPU, whose matrices are packed when a token needs them."""
        return self.native.place_experts(name, stack, store, on_read)

    def expert_bytes(self, stack: Weight) -> int:
        """Memory of one packed matrix of a stack."""
        return self.native.expert_bytes(stack)

    def shape_only(self, name: str, weight: Weight) -> Weight:
        """The placed weight without its memory."""
        shaped = self.native.shape_only(name, weight)
        return host_placed(shaped) if self._stays_on_host(name) else shaped

    def nbytes(self, weight: Weight) -> Room:
        """Memory of a placed weight, or of the weight that a shape-only one stands for."""
        if isinstance(weight, Placed) and isinstance(weight.handle, tuple):
            format, rows, cols = weight.handle[0].shape
            return Room(device=self.handle.stack_bytes(format, len(weight.handle), rows, cols))
        handle = matrix_handle(weight)
        if isinstance(weight, HostPlaced):
            return Room(host=handle.nbytes)
        format, rows, cols = handle.shape
        return Room(device=self.handle.weight_bytes(format or "F32", rows, cols))

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache:
        return _native.VulkanCache(self.handle, config.num_layers, num_pages, page_size, config.cache_heads,
                                   config.cache_dim, format, cache_sides(config))

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Room:
        """Memory that `new_cache` would allocate."""
        return Room(device=self.handle.cache_bytes(config.num_layers, num_pages, page_size, config.cache_heads,
                                                   config.cache_dim, format, cache_sides(config)))

    def available(self) -> Room:
        """What is free now: on the device by its driver, which counts other programs where it can."""
        return Room(available_bytes(), self.handle.budget()[0])

    def own_bytes(self) -> Room:
        """The driver's part of the process, the staging ring, and the tiles that are packed for it."""
        return Room(_DRIVER_BYTES + self.handle.staging_bytes * 3 // 2)

    def adapter_room(self, num_bytes: int) -> Room:
        """Prepared adapters lie on the device."""
        return Room(device=num_bytes)

    def taken(self) -> int:
        """What was allocated on the device. A software device's memory is the process's own."""
        return 0 if self.is_software else self.handle.allocated - self.handle.allocated_for_host

    def adapters(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> VulkanAdapterTable:
        """A table of empty slots; over shape-only weights, one to plan with."""
        return VulkanAdapterTable(self.handle, NativeAdapterTable(config, weights, num_slots, max_rank))

    def runner(self, config: Config, weights: Weights, max_tokens: int,
               adapters: VulkanAdapterTable | None = None) -> VulkanRunner:
        """A runner whose program is recorded at once, so that an op without a shader is refused when a model loads."""
        return VulkanRunner(self, config, weights if adapters is None else adapters.weights)

    def _stays_on_host(self, name: str) -> bool:
        """Whether a weight is of an encoder that the CPU computes: those of audio, and all where the device is full."""
        return name.startswith("audio." if self.encodes_on_device else _ENCODERS)

    def _empty(self, name: str, format: str, rows: int, cols: int) -> _native.Weight:
        try:
            return self.handle.empty(format, rows, cols)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None

    def _place_stack(self, name: str, stack: Stack) -> Placed:
        first, count = stack.matrices[0], len(stack.matrices)
        for index, matrix in enumerate(stack.matrices):
            if (matrix.format, matrix.shape) != (first.format, first.shape):
                raise UnsupportedError(f"{name}.{index} is {matrix.format} {matrix.shape}, allowed is {first.format} "
                                       f"{first.shape} as for the other matrices of the stack")
        try:
            handles = self.handle.empty_stack(first.format, count, *first.shape)
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None
        for index, (handle, matrix) in enumerate(zip(handles, stack.matrices, strict=True)):
            self._fill(f"{name}.{index}", handle, matrix)
        return Placed(stack.shape, tuple(handles))

    def _fill(self, name: str, handle: _native.Weight, weight: Dense | Quant | Stored) -> None:
        """Packs all rows, of one that is in a file a few at a time."""
        num_rows, cols = weight.shape
        step = max(STREAMED_NUMBERS // cols // TILE * TILE, TILE) if isinstance(weight, Stored) else num_rows
        try:
            for first in range(0, num_rows, step):
                rows = weight.rows(first, min(first + step, num_rows)) if isinstance(weight, Stored) else weight.data
                self.handle.fill(self.native.handle, handle, first, byte_rows(rows))
        except ValueError as error:
            raise UnsupportedError(f"{name}: {error}") from None


class VulkanAdapterTable:
    """An AdapterTable (models/ops.py) whose prepared adapters lie on the device."""

    def __init__(self, device: _native.VulkanDevice, table: NativeAdapterTable) -> None:
        self._device, self._table = device, table
        self.weights = table.weights

    @property
    def num_slots(self) -> int:
        return self._table.num_slots

    @property
    def max_rank(self) -> int:
        return self._table.max_rank

    def prepare(self, low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array]) -> _native.Adapter:
        """Packs an adapter and takes it to the device; running steps continue meanwhile."""
        adapter = self._table.prepare(low_ranks, gains)
        self._device.place_adapter(adapter)
        return adapter

    def rows(self, path: str, first: int, last: int) -> Array:
        """Rows of a matrix without its adapters, read back from the device."""
        return self._table.rows(path, first, last)

    def nbytes(self, prepared: _native.Adapter) -> int:
        """Memory of a prepared adapter on the device."""
        return self._table.nbytes(prepared)

    def put(self, slot: int, prepared: _native.Adapter | None) -> None:
        """Fills or empties a slot. A running step keeps the adapters that it began with."""
        self._table.put(slot, prepared)


class VulkanRunner:
    """Replays the recorded `forward` and `hidden` of one model on its device."""

    def __init__(self, backend: VulkanBackend, config: Config, weights: Weights) -> None:
        self.backend, self.config, self.weights = backend, config, weights
        self.programs: dict[Forward, Recorder[_native.VulkanProgram]] = {}
        try:
            self._recorded(decoder.forward)
        except ValueError as error:
            raise UnsupportedError(str(error), hint="take --device cpu") from None

    def logits(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.forward, batch, cache)

    def hidden(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.hidden, batch, cache)

    def cancel(self) -> None:
        """Ends a step between two of its submissions, which take about 50 ms each."""
        for recorder in tuple(self.programs.values()):  # the engine's thread may add one
            recorder.program.cancel()

    @property
    def work_bytes(self) -> Room:
        """Memory of activations, scratch space and a step's arrays so far."""
        return sum((_room(recorder.program.work_bytes) for recorder in self.programs.values()), Room())

    def planned_bytes(self, num_tokens: int, num_rows: int) -> Room:
        """The `work_bytes` after a first step of this size, with logits; weights may be shape-only."""
        program = self._recorded(decoder.forward).program
        check_largest(self.backend.handle, program, num_tokens, num_rows)
        return _room(program.planned_bytes(num_tokens, num_rows))

    def _run(self, forward: Forward, batch: Batch, cache: Cache | None) -> Array:
        if cache is None or batch.page_table is None or batch.slots is None:
            batch, num_pages = packed_pages(batch)
            cache = self.backend.new_cache(self.config, num_pages, PAGE_SIZE, "f32")
        return self._recorded(forward).run(batch, cache)[0]

    def _recorded(self, forward: Forward) -> Recorder[_native.VulkanProgram]:
        if forward not in self.programs:
            recorder = Recorder(self.backend.handle.program(self.backend.native.handle))
            any_batch = Batch(NO_INTS, NO_INTS, NO_INTS, NO_INTS)
            recorder.finish([forward(recorder, self.config, self.weights, any_batch, None)])
            self.programs[forward] = recorder
        return self.programs[forward]


def check_largest(device: _native.VulkanDevice, program: _native.VulkanProgram, num_tokens: int, num_rows: int) -> None:
    """Refuses a step with a buffer that the device does not bind at once; weights lie in as many as it takes."""
    facts, largest = device.facts(), program.largest_bytes(num_tokens, num_rows)
    most = min(int(facts["max_binding"]), int(facts["max_allocation"]))
    if largest > most:
        raise UnsupportedError(f"a step of {num_tokens} tokens has a buffer of {largest} bytes, {facts['name']} binds "
                               f"at most {most}", hint="take --device cpu")


def _room(bytes_: tuple[int, int]) -> Room:
    """Bytes on the device and on the host, as a program gives them."""
    device, host = bytes_
    return Room(host, device)


def _is_on_host(weights: Any) -> bool:
    return any(isinstance(weight, HostPlaced) for _, weight in weights_with_paths(weights))


def host_placed(weight: Weight) -> HostPlaced:
    """A weight that the native backend placed, marked as one that stays in the host's memory."""
    assert isinstance(weight, Placed)
    return HostPlaced(weight.shape, weight.handle)
