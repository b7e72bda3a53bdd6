"""Models on the software device: placed, recorded and run as a backend does it."""

from __future__ import annotations

import numpy as np

from brise import _native
from brise.backends.native.backend import NativeBackend, cache_sides
from brise.backends.native.recorder import NO_INTS, Recorder, matrix_handle
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import CacheFormat
from brise.models.weights import Array, Mixture, Placed, Weight, Weights, place
from tests.goldens.golden import Golden

PAGE_SIZE = 16


class OnDevice:
    """A model on the Vulkan device, and a cache of it."""

    def __init__(self, device: _native.VulkanDevice, config: Config, weights: Weights, format: CacheFormat = "f32",
                 num_pages: int = 24) -> None:
        self.device, self.config, self.native = device, config, NativeBackend(1)
        self.weights = place(weights, self.place)
        self.recorder = record(device, config, self.weights)
        self.cache = _native.VulkanCache(device, config.num_layers, num_pages, PAGE_SIZE, config.cache_heads,
                                         config.cache_dim, format, cache_sides(config))

    @property
    def program(self) -> _native.VulkanProgram:
        program = self.recorder.program
        assert isinstance(program, _native.VulkanProgram)
        return program

    def place(self, name: str, weight: Weight) -> Weight:
        return on_device(self.device, self.native.place(name, weight))

    def logits(self, batch: Batch) -> Array:
        return self.recorder.run(batch, self.cache)[0]


def on_device(device: _native.VulkanDevice, weight: Weight) -> Placed:
    """The copy on the device of a weight that was placed in the host's memory."""
    assert isinstance(weight, Placed)
    if isinstance(weight.handle, tuple):
        return Placed(weight.shape, tuple(device.place(handle) for handle in weight.handle))
    return Placed(weight.shape, device.place(matrix_handle(weight)))


def record(device: _native.VulkanDevice, config: Config, weights: Weights) -> Recorder[_native.VulkanProgram]:
    """The program of a model's logits."""
    recorder = Recorder(device.program())
    any_batch = Batch(NO_INTS, NO_INTS, NO_INTS, NO_INTS)
    recorder.finish([decoder.forward(recorder, config, weights, any_batch, None)])
    return recorder


def one_expert(golden: Golden) -> int:
    """Bytes of the largest expert of a layer, packed."""
    native = NativeBackend(1)
    mixtures = [place(golden.weights, native.shape_only).layers[index].feed_forward
                for index, layer in enumerate(golden.weights.layers) if isinstance(layer.feed_forward, Mixture)]
    return max(sum(native.expert_bytes(stack) for stack in (mixture.w1, mixture.w2, mixture.w3))
               for mixture in mixtures if isinstance(mixture, Mixture))


def parts(*sequences: tuple[Array, int, tuple[int, ...]], adapters: list[int] | None = None) -> Batch:
    """A step of parts of sequences, each given by its tokens, the position of the first one and its pages."""
    positions = [first + np.arange(len(tokens)) for tokens, first, _ in sequences]
    slots = [np.array(pages)[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
             for at, (_, _, pages) in zip(positions, sequences, strict=True)]
    lengths = [len(tokens) for tokens, _, _ in sequences]
    table = np.zeros((len(sequences), max(len(pages) for _, _, pages in sequences)), np.int32)
    for row, (_, _, pages) in zip(table, sequences, strict=True):
        row[:len(pages)] = pages
    return Batch(np.concatenate([tokens for tokens, _, _ in sequences]).astype(np.int32),
                 np.concatenate(positions).astype(np.int32), np.cumsum([0, *lengths], dtype=np.int32),
                 np.arange(sum(lengths), dtype=np.int32), page_table=table,
                 slots=np.concatenate(slots).astype(np.int32),
                 adapters=None if adapters is None else np.array(adapters, np.int32))
