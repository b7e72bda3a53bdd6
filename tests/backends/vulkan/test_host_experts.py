"""Experts that the CPU runs from a file beside the GPU: right numbers, the same in every company, exact memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brise.backends.native.backend import NativeBackend
from brise.backends.native.experts import expert_stack
from brise.backends.vulkan.backend import VulkanBackend, VulkanRunner
from brise.engine.experts import check_room, put_on_demand
from brise.errors import DeviceLostError
from brise.models.batch import Batch
from brise.models.ops import CacheFormat, StepCancelledError
from brise.models.weights import Array, Dense, Mixture, Weight, place
from tests import tolerances
from tests.backends.vulkan.driver import require_driver
from tests.backends.vulkan.on_device import CHUNKS, OTHERS, PAGES, check_company, in_chunks, one_expert, parts
from tests.goldens.golden import Golden, read
from tests.models.test_goldens import FORMAT_TOLERANCES


class Streamed:
    """A golden mixture on the device whose experts stay in the file; there is room for `room` experts of a layer."""

    def __init__(self, golden: Golden, room: int = 1, format: CacheFormat = "f32") -> None:
        self.golden, config = golden, golden.config
        self.backend, self.num_read = VulkanBackend("", NativeBackend(2)), 0
        self.expert_bytes = room * one_expert(golden)
        self.weights = place(golden.weights, put_on_demand(golden.weights, self.backend, self.expert_bytes, self.count))
        check_room(self.weights, self.backend, self.expert_bytes)
        self.runner: VulkanRunner = self.backend.runner(config, self.weights, 64)
        self.cache = self.backend.new_cache(config, 24, 16, format)

    def count(self, matrix: Weight) -> None:
        self.num_read += 1

    def logits(self, ends: tuple[int, ...], pages: tuple[int, ...] = PAGES) -> Array:
        return in_chunks(self.step, self.golden, ends, pages)

    def step(self, batch: Batch) -> Array:
        return self.runner.logits(batch, self.cache)


@pytest.fixture(autouse=True)
def driver() -> None:
    require_driver()


@pytest.mark.parametrize("name", ["mixtral", "mixtral_window", "large3", "large3_all_experts"])
def test_families_give_the_goldens_however_their_tokens_are_cut(name: str) -> None:
    model = Streamed(read(name, "interleaved"))
    whole = model.logits(CHUNKS[0])
    assert np.abs(whole - model.golden.logits).max() < tolerances.GOLDEN_LOGITS
    assert np.array_equal(model.logits(CHUNKS[1], OTHERS), whole)
    assert model.num_read


@pytest.mark.parametrize("name", ["mixtral", "large3"])
@pytest.mark.parametrize(("format", "tolerance"), FORMAT_TOLERANCES)
def test_a_token_has_the_same_bits_alone_batched_chunked_and_after_a_cached_prefix(format: CacheFormat, name: str,
                                                                                   tolerance: float) -> None:
    golden = read(name, "interleaved")
    model = Streamed(golden, 2, format)
    check_company(model.step, golden, tolerance)


@pytest.mark.parametrize("name", ["mixtral", "large3"])
def test_logits_do_not_depend_on_how_many_experts_are_in_memory(name: str) -> None:
    golden = read(name, "interleaved")
    least, most = Streamed(golden), Streamed(golden, 64)
    assert np.array_equal(least.logits(CHUNKS[0]), most.logits(CHUNKS[0]))
    read_once = most.num_read
    most.logits(CHUNKS[0])
    least.logits(CHUNKS[0])
    assert most.num_read == read_once < least.num_read


@pytest.mark.parametrize("name", ["mixtral", "large3"])
def test_a_step_takes_the_memory_that_was_planned_on_both_sides(name: str) -> None:
    golden = read(name, "interleaved")
    model = Streamed(golden, format="q8")
    device = model.backend.handle
    before = device.allocated - device.allocated_for_host
    model.logits((0, 40))
    planned = model.runner.planned_bytes(40, 40)
    assert model.runner.work_bytes == planned
    assert device.allocated - device.allocated_for_host - before == planned.device


def test_a_cancelled_step_ends_and_the_next_one_runs() -> None:
    model = Streamed(read("mixtral", "interleaved"))
    whole = model.logits((0, 40))
    model.runner.cancel()
    with pytest.raises(StepCancelledError):
        model.logits((0, 40))
    assert np.array_equal(model.logits((0, 40)), whole)


def test_an_expert_that_cannot_be_read_ends_the_step_and_the_next_one_runs() -> None:
    golden = read("large3", "interleaved")
    model = Streamed(golden)
    whole = model.logits((0, 40))

    def fail(matrix: Weight) -> None:
        raise OSError("the file is gone")

    weights = place(golden.weights, put_on_demand(golden.weights, model.backend, model.expert_bytes, fail))
    with pytest.raises(OSError, match="the file is gone"):
        model.backend.runner(golden.config, weights, 64).logits(parts((golden.tokens, 0, PAGES)), model.cache)
    assert np.array_equal(model.logits((0, 40)), whole)


@pytest.mark.parametrize("name", ["mixtral", "large3"])
def test_a_token_whose_numbers_are_none_changes_no_other(name: str) -> None:
    golden = read(name, "interleaved")
    table = golden.weights.tok_embeddings
    assert isinstance(table, Dense)
    rows = table.data.copy()
    rows[0] = np.nan
    own = golden.tokens[golden.tokens > 0][:20]
    model = Streamed(replace(golden, weights=replace(golden.weights, tok_embeddings=replace(table, data=rows))))
    alone = model.runner.logits(parts((own, 0, OTHERS)), model.cache)
    beside = model.runner.logits(parts((np.zeros(3, np.int32), 0, PAGES), (own, 0, OTHERS)), model.cache)
    assert np.isnan(beside[:3]).all() and np.array_equal(beside[3:], alone)


def test_a_lost_device_ends_the_step_by_a_typed_error() -> None:
    model = Streamed(read("large3", "interleaved"))
    model.logits((0, 40))
    model.backend.handle.lose()
    with pytest.raises(DeviceLostError):
        model.logits((0, 40))


def test_a_program_without_the_cpu_refuses_experts_in_a_file() -> None:
    model = Streamed(read("mixtral", "interleaved"))
    program, mixture = model.backend.handle.program(), model.weights.layers[0].feed_forward
    assert isinstance(mixture, Mixture)
    stacks = [expert_stack(stack) for stack in (mixture.w1, mixture.w2, mixture.w3)]
    x, gates = program.input(model.golden.config.width), program.input(mixture.w1.shape[0])
    y = program.experts(x, gates, *stacks)
    with pytest.raises(ValueError, match="experts that stay in a file"):
        program.finish([y])
