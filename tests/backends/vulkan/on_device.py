"""Models on the software device: placed, recorded and run as a backend does it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from brise import _native
from brise.backends.native.backend import NativeBackend, cache_sides
from brise.backends.native.recorder import NO_INTS, Recorder, matrix_handle
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import matrices
from brise.models.ops import CacheFormat
from brise.models.weights import Array, LowRank, Mixture, Placed, Weight, Weights, place
from tests.goldens.golden import Golden

PAGE_SIZE = 16
PAGES, OTHERS = (3, 1, 4), (7, 9, 2)  # for the 40 tokens of a golden
CHUNKS = ((0, 40), (0, 7, 23, *range(24, 41)), (0, 16, 18, 40))  # of them, by their ends


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


def in_chunks(step: Callable[[Batch], Array], golden: Golden, ends: tuple[int, ...],
              pages: tuple[int, ...] = PAGES) -> Array:
    """Logits of a golden's tokens, chunk by chunk."""
    return np.concatenate([step(parts((golden.tokens[a:b], a, pages))) for a, b in pairwise(ends)])


def random_adapter(config: Config) -> tuple[dict[str, LowRank], dict[str, Array]]:
    """An adapter of rank 3 for every matrix, and gains for the queries."""
    rng, shapes = np.random.default_rng(3), matrices(config)
    gains = {path: rng.uniform(0.8, 1.2, rows).astype(np.float32) for path, (rows, _) in shapes.items()
             if path.endswith("wq")}
    return {path: LowRank(rng.normal(0, 0.2, (3, cols)).astype(np.float32),
                          rng.normal(0, 0.2, (rows, 3)).astype(np.float32), 1.5, gains.get(path))
            for path, (rows, cols) in shapes.items()}, gains


def check_company(step: Callable[[Batch], Array], golden: Golden, tolerance: float) -> None:
    """Asserts that a token has the same bits alone, batched, in chunks and after a cached prefix."""
    whole = in_chunks(step, golden, CHUNKS[0])
    assert np.abs(whole - golden.logits).max() < tolerance
    for ends in CHUNKS[1:]:
        assert np.array_equal(in_chunks(step, golden, ends, OTHERS), whole)
    shared = (PAGES[0], 11, 12)  # the first page is the one that the whole prompt left
    both = step(parts((golden.tokens[16:], 16, shared), (golden.tokens[:5], 0, OTHERS)))
    assert np.array_equal(both, np.concatenate([whole[16:], whole[:5]]))
