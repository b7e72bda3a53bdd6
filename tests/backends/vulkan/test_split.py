"""A model split between the CPU and a GPU: right numbers, the same in every company, exact memory, and a typed end."""

from __future__ import annotations

import numpy as np
import pytest

from brise.backends import split_planner
from brise.backends.native.backend import NativeBackend
from brise.backends.vulkan.backend import VulkanBackend
from brise.backends.vulkan.split import SplitBackend, SplitRunner
from brise.backends.vulkan.split_recorder import SplitCache
from brise.engine.experts import put_on_demand
from brise.errors import DeviceLostError, UnsupportedError
from brise.models.batch import Batch
from brise.models.ops import CacheFormat, LayerSplit, StepCancelledError
from brise.models.weights import Array, LowRank, Weights, place
from tests import tolerances
from tests.backends.vulkan.driver import require_driver
from tests.backends.vulkan.on_device import (
    CHUNKS,
    OTHERS,
    PAGES,
    check_company,
    in_chunks,
    one_expert,
    parts,
    random_adapter,
)
from tests.goldens.golden import Golden, read
from tests.models.test_goldens import FORMAT_TOLERANCES

FAMILIES = ("llama3_tied", "llama3_untied", "mistral_window", "ministral3_yarn1_tied", "qwen2", "qwen3", "gemma3",
            "granite", "smollm3", "large3", "mixtral")


class Split:
    """A golden model with its last layers on the device, and a cache of it; with `room`, its experts are in the file
    and so many bytes of them are kept."""

    def __init__(self, golden: Golden, num_on_device: int, format: CacheFormat = "f32",
                 room: int | None = None) -> None:
        self.golden, config = golden, golden.config
        is_tied = golden.weights.output is golden.weights.tok_embeddings
        backend = split_planner(VulkanBackend("", NativeBackend(1)),
                                LayerSplit(config.num_layers, num_on_device, is_tied))
        assert isinstance(backend, SplitBackend)
        self.backend = backend
        put = backend.place if room is None else put_on_demand(golden.weights, backend, room, lambda matrix: None)
        self.weights: Weights = place(golden.weights, put)
        self.runner: SplitRunner = backend.runner(config, self.weights, 64)
        cache = backend.new_cache(config, 24, 16, format)
        assert isinstance(cache, SplitCache)
        self.cache = cache

    def logits(self, ends: tuple[int, ...], pages: tuple[int, ...] = PAGES) -> Array:
        return in_chunks(self.step, self.golden, ends, pages)

    def step(self, batch: Batch) -> Array:
        return self.runner.logits(batch, self.cache)


@pytest.fixture(autouse=True)
def driver() -> None:
    require_driver()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_the_goldens_at_every_split(name: str) -> None:
    golden = read(name, "interleaved")
    assert golden.config.num_layers > 1
    for num_on_device in range(1, golden.config.num_layers):
        model = Split(golden, num_on_device)
        whole = model.logits(CHUNKS[0])
        assert np.abs(whole - golden.logits).max() < tolerances.GOLDEN_LOGITS
        assert np.array_equal(model.logits(CHUNKS[1], OTHERS), whole)


@pytest.mark.parametrize("name", ["mixtral", "large3"])
def test_experts_in_the_file_give_the_goldens_at_every_split(name: str) -> None:
    golden = read(name, "interleaved")
    for num_on_device in range(1, golden.config.num_layers):
        model = Split(golden, num_on_device, room=one_expert(golden))
        whole = model.logits(CHUNKS[0])
        assert np.abs(whole - golden.logits).max() < tolerances.GOLDEN_LOGITS
        assert np.array_equal(model.logits(CHUNKS[1], OTHERS), whole)
        assert model.runner.work_bytes == model.runner.planned_bytes(40, 40)


@pytest.mark.parametrize(("format", "tolerance"), FORMAT_TOLERANCES)
def test_a_token_has_the_same_bits_alone_batched_chunked_and_after_a_cached_prefix(format: CacheFormat,
                                                                                   tolerance: float) -> None:
    golden = read("mistral_window", "interleaved")
    model = Split(golden, 1, format)
    check_company(model.step, golden, tolerance)


@pytest.mark.parametrize("name", ["llama3_tied", "llama3_untied"])
def test_adapters_of_both_sides_give_the_cpu_s_numbers_and_change_no_other_token(name: str) -> None:
    golden = read(name, "interleaved")
    model, tokens = Split(golden, 1), golden.tokens[:12]
    plain = model.logits((0, 12))
    config, (low_ranks, gains) = golden.config, random_adapter(golden.config)
    table = model.backend.adapters(config, model.weights, 2, 4)
    prepared = table.prepare(low_ranks, gains)
    assert prepared.host.nbytes and prepared.device.nbytes and table.nbytes(prepared) >= prepared.host.nbytes
    table.put(1, prepared)
    runner = model.backend.runner(config, model.weights, 64, table)
    step = parts((tokens, 0, (1,)), (tokens, 0, (2,)), (tokens, 0, (3,)), adapters=[-1] * 12 + [1] * 24)
    beside, behind, again = np.split(runner.logits(step, model.cache), 3)
    assert np.array_equal(beside, plain) and np.array_equal(behind, again)
    expected = on_the_cpu(golden, low_ranks, gains)
    assert np.abs(behind - expected).max() < tolerances.GOLDEN_LOGITS < 0.1 * np.abs(behind - plain).max()
    assert np.allclose(table.rows("output", 2, 4), np.asarray(golden.weights.output.data)[2:4])  # type: ignore[union-attr]
    table.put(1, None)
    with pytest.raises(ValueError, match="1"):
        runner.logits(step, model.cache)


def on_the_cpu(golden: Golden, low_ranks: dict[str, LowRank], gains: dict[str, Array]) -> Array:
    native = NativeBackend(1)
    weights = place(golden.weights, native.place)
    table = native.adapters(golden.config, weights, 2, 4)
    table.put(1, table.prepare(low_ranks, gains))
    return native.runner(golden.config, weights, 64, table).logits(
        parts((golden.tokens[:12], 0, (1,)), adapters=[1] * 12), native.new_cache(golden.config, 8, 16, "f32"))


def test_hidden_states_and_steps_without_a_cache_are_those_of_the_cpu() -> None:
    golden = read("qwen3", "interleaved")
    model, native = Split(golden, 1), NativeBackend(1)
    cpu = native.runner(golden.config, place(golden.weights, native.place), 64)
    batch = parts((golden.tokens, 0, PAGES))
    assert np.abs(model.runner.hidden(batch) - cpu.hidden(batch)).max() < tolerances.GOLDEN_LOGITS


def test_a_step_takes_the_memory_that_was_planned_on_both_sides() -> None:
    golden = read("llama3_untied", "interleaved")
    model = Split(golden, 1, "q8")
    device = model.backend.gpu.handle
    before = device.allocated - device.allocated_for_host
    model.logits((0, 40))
    planned = model.runner.planned_bytes(40, 40)
    assert model.runner.work_bytes == planned
    assert device.allocated - device.allocated_for_host - before == planned.device
    room = model.backend.cache_bytes(golden.config, 24, 16, "q8")
    assert (model.cache.host.nbytes, model.cache.device.nbytes) == (room.host, room.device)


def test_a_cancelled_step_ends_and_the_next_one_runs() -> None:
    model = Split(read("qwen2", "interleaved"), 1)
    whole = model.logits((0, 40))
    model.runner.cancel()
    with pytest.raises(StepCancelledError):
        model.logits((0, 40))
    assert np.array_equal(model.logits((0, 40)), whole)


def test_a_lost_device_ends_the_step_by_a_typed_error() -> None:
    model = Split(read("qwen2", "interleaved"), 1)
    model.logits((0, 40))
    model.backend.gpu.handle.lose()
    with pytest.raises(DeviceLostError):
        model.logits((0, 40))


def test_a_split_of_a_model_on_the_cpu_or_of_all_its_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="the model runs on the CPU"):
        split_planner(NativeBackend(1), LayerSplit(2, 1, False))
    with pytest.raises(UnsupportedError, match="2 layers are asked for on the GPU, allowed are 1 to 1"):
        split_planner(VulkanBackend("", NativeBackend(1)), LayerSplit(2, 2, False))
