"""A model split between the CPU and a GPU: the first layers on the CPU, the last layers and the head on the GPU.

An embedding that is not the head lies on the CPU. A tied one lies on the GPU as the head, and the rows that the CPU
needs are read from the model's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brise import _native
from brise.backends.native.backend import NativeBackend, cache_sides
from brise.backends.native.eager import EagerOps
from brise.backends.native.recorder import NO_INTS, matrix_handle
from brise.backends.pages import packed_pages
from brise.backends.vulkan.backend import HostPlaced, VulkanBackend, check_largest, host_placed
from brise.backends.vulkan.split_adapters import SplitAdapterTable
from brise.backends.vulkan.split_recorder import SplitCache, SplitRecorder, TiedTable
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.config import Config
from brise.models.lora import EMBEDDING
from brise.models.ops import Cache, CacheFormat, DeviceMemory, Encode, Encoder, Forward, LayerSplit, Room
from brise.models.weights import Array, Placed, Stack, Weight, Weights

# A step's tokens, 512 at most, each with the 64 KiB of the file that Linux maps around the row that is read.
_ROW_PAGES = 512 << 16


class SplitBackend:
    """A model on `gpu` and on its host. `forget` is called after rows of a tied embedding were read from the file."""

    name = "vulkan"

    def __init__(self, gpu: VulkanBackend, split: LayerSplit, forget: Callable[[], None] = lambda: None) -> None:
        self.gpu, self.split, self._forget = gpu, split, forget

    @property
    def native(self) -> NativeBackend:
        return self.gpu.native

    @property
    def device(self) -> DeviceMemory:
        return self.gpu.device

    def facts(self) -> Mapping[str, str | int]:
        """The device and its driver, the CPU's part, and how many layers are on the device."""
        split = self.split
        label = f"{self.device.label}, {split.num_on_device} of {split.num_layers} layers; the CPU has the others"
        return {**self.gpu.facts(), "device": label, "layers": split.num_layers, "gpu_layers": split.num_on_device}

    def place(self, name: str, weight: Weight) -> Weight:
        """Packs a weight on its side."""
        if self.is_on_host(name):
            return host_placed(self.native.place(name, weight))
        return self._tied(name, weight, self.gpu.place(name, weight))

    def ops(self, trace: dict[str, Array] | None = None) -> EagerOps:
        """The ops one at a time on the device."""
        return self.gpu.ops(trace)

    @property
    def encodes_on_device(self) -> bool:
        """Whether encoders of images lie on the device, whatever the split."""
        return self.gpu.encodes_on_device

    def encoding_on_host(self) -> SplitBackend:
        """The same split, with all encoders on the host."""
        return SplitBackend(self.gpu.encoding_on_host(), self.split, self._forget)

    def encoder(self, encode: Encode, config: Any, weights: Any) -> Encoder:
        """An encoder where its weights lie."""
        return self.gpu.encoder(encode, config, weights)

    def encoder_room(self, encode: Encode, config: Any, weights: Any, source: Any, num_bytes: int) -> Room:
        """Work space of an encoder where its weights lie."""
        return self.gpu.encoder_room(encode, config, weights, source, num_bytes)

    def new_expert_store(self, num_bytes: int) -> _native.ExpertStore:
        """One store in the host's memory, for the layers of both sides."""
        return self.gpu.new_expert_store(num_bytes)

    def place_experts(self, name: str, stack: Stack, store: _native.ExpertStore,
                      on_read: Callable[[Weight], None]) -> Weight:
        """A stack of the CPU, which runs the experts of all layers."""
        return self.gpu.place_experts(name, stack, store, on_read)

    def expert_bytes(self, stack: Weight) -> int:
        """Memory of one packed matrix of a stack."""
        return self.gpu.expert_bytes(stack)

    def shape_only(self, name: str, weight: Weight) -> Weight:
        """The placed weight without its memory."""
        if self.is_on_host(name):
            return host_placed(self.native.shape_only(name, weight))
        return self._tied(name, weight, self.gpu.shape_only(name, weight))

    def nbytes(self, weight: Weight) -> Room:
        """Memory of a placed weight, or of the weight that a shape-only one stands for."""
        return self.native.nbytes(weight) if isinstance(weight, HostPlaced) else self.gpu.nbytes(weight)

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache:
        shape = num_pages, page_size, config.cache_heads, config.cache_dim, format, cache_sides(config)
        return SplitCache(_native.Cache(self.split.num_on_host, *shape),
                          _native.VulkanCache(self.gpu.handle, self.split.num_on_device, *shape))

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Room:
        """Memory that `new_cache` would allocate."""
        shape = num_pages, page_size, config.cache_heads, config.cache_dim, format, cache_sides(config)
        return Room(_native.cache_bytes(self.split.num_on_host, *shape),
                    self.gpu.handle.cache_bytes(self.split.num_on_device, *shape))

    def available(self) -> Room:
        """What is free now on both sides."""
        return self.gpu.available()

    def own_bytes(self) -> Room:
        """The driver's part of the process, the staging ring, and pages of the file around rows of a tied embedding."""
        return self.gpu.own_bytes() + Room(_ROW_PAGES * self.split.is_tied)

    def adapter_room(self, num_bytes: int) -> Room:
        """As much on each side: an adapter may change only layers of one of them."""
        return Room(num_bytes, num_bytes)

    def taken(self) -> int:
        """What was allocated on the device."""
        return self.gpu.taken()

    def adapters(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> SplitAdapterTable:
        """A table of empty slots; over shape-only weights, one to plan with."""
        return SplitAdapterTable(self.gpu.handle, config, weights, num_slots, max_rank, self.is_on_host)

    def runner(self, config: Config, weights: Weights, max_tokens: int,
               adapters: SplitAdapterTable | None = None) -> SplitRunner:
        """A runner whose programs are recorded at once, so that an op without a shader is refused when a model loads.
        """
        return SplitRunner(self, config, weights if adapters is None else adapters.weights)

    def is_on_host(self, path: str) -> bool:
        """Whether a weight of the decoder lies in the host's memory; the GPU's backend says it of an encoder's."""
        match path.split("."):
            case ["layers", index, *_]:
                return int(index) < self.split.num_on_host
        return path == EMBEDDING and not self.split.is_tied

    def _tied(self, name: str, source: Weight, placed: Weight) -> Weight:
        if name != EMBEDDING or isinstance(source, Placed):
            return placed
        return TiedTable(placed.shape, matrix_handle(placed), source, self._forget)


@dataclass(frozen=True)
class _Programs:
    """The programs of one forward pass, and what they take."""

    recorder: SplitRecorder
    table_row_bytes: int  # of a tied table, as float32

    @property
    def work_bytes(self) -> Room:
        device, host = self.recorder.device.work_bytes
        return Room(host + self.recorder.host.work_bytes, device)

    def planned_bytes(self, num_tokens: int, num_rows: int) -> Room:
        device, host = self.recorder.device.planned_bytes(num_tokens, num_rows)
        rows = 2 * self.table_row_bytes * num_tokens  # those that are different, and of all tokens
        return Room(host + self.recorder.host.planned_bytes(num_tokens, num_rows) + rows, device)


class SplitRunner:
    """Runs a step of one model on the CPU and then on the device."""

    def __init__(self, backend: SplitBackend, config: Config, weights: Weights) -> None:
        self.backend, self.config, self.weights = backend, config, weights
        self.programs: dict[Forward, _Programs] = {}
        self._recorded(decoder.forward)

    def logits(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.forward, batch, cache)

    def hidden(self, batch: Batch, cache: Cache | None = None) -> Array:
        return self._run(decoder.hidden, batch, cache)

    def cancel(self) -> None:
        """Ends a step before its part on the device, or between two of the device's submissions."""
        for programs in tuple(self.programs.values()):  # the engine's thread may add one
            programs.recorder.device.cancel()

    @property
    def work_bytes(self) -> Room:
        """Memory of activations, scratch space and a step's arrays so far."""
        return sum((programs.work_bytes for programs in self.programs.values()), Room())

    def planned_bytes(self, num_tokens: int, num_rows: int) -> Room:
        """The `work_bytes` after a first step of this size, with logits; weights may be shape-only."""
        programs = self._recorded(decoder.forward)
        check_largest(self.backend.gpu.handle, programs.recorder.device, num_tokens, num_rows)
        return programs.planned_bytes(num_tokens, num_rows)

    def _run(self, forward: Forward, batch: Batch, cache: Cache | None) -> Array:
        if cache is None or batch.page_table is None or batch.slots is None:
            batch, num_pages = packed_pages(batch)
            cache = self.backend.new_cache(self.config, num_pages, PAGE_SIZE, "f32")
        return self._recorded(forward).recorder.run(batch, cache)[0]

    def _recorded(self, forward: Forward) -> _Programs:
        if forward not in self.programs:
            gpu, split = self.backend.gpu, self.backend.split
            recorder = SplitRecorder(gpu.native.handle.program(), gpu.handle.program(gpu.native.handle),
                                     split.num_on_host)
            any_batch = Batch(NO_INTS, NO_INTS, NO_INTS, NO_INTS)
            try:
                recorder.finish([forward(recorder, self.config, self.weights, any_batch, None)])
            except ValueError as error:
                raise UnsupportedError(f"a layer on the GPU is refused: {error}", hint="take --device cpu") from None
            self.programs[forward] = _Programs(recorder, 4 * self.config.width * split.is_tied)
        return self.programs[forward]
