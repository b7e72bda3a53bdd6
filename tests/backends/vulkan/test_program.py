"""A recorded model on the device: right numbers, the same in every company, exact memory, and a typed end."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from brise import _native
from brise.backends.native.backend import NativeBackend, cache_sides
from brise.backends.native.lora import Slots
from brise.backends.vulkan.backend import VulkanBackend
from brise.errors import DeviceLostError, UnsupportedError
from brise.models.lora import matrices, place_ends
from brise.models.ops import CacheFormat, Room, StepCancelledError
from brise.models.weights import Array, Dense, Placed, Stack, place
from tests import tolerances
from tests.backends.under_test import open_backend
from tests.backends.vulkan.driver import require_driver
from tests.backends.vulkan.on_device import (
    CHUNKS,
    OTHERS,
    PAGES,
    OnDevice,
    check_company,
    in_chunks,
    parts,
    random_adapter,
    record,
)
from tests.goldens.golden import Golden, read
from tests.models.test_goldens import FORMAT_TOLERANCES

FAMILIES = ("llama3_tied", "mistral_window", "ministral3_yarn1_tied", "qwen2", "qwen3", "smollm3", "gemma3", "granite",
            "phi4_long", "granite4", "mixtral_window", "large3", "large3_all_experts")


@pytest.fixture(scope="module")
def device() -> _native.VulkanDevice:
    require_driver()
    return _native.VulkanDevice("")


def logits(model: OnDevice, golden: Golden, ends: tuple[int, ...], pages: tuple[int, ...] = PAGES) -> Array:
    return in_chunks(model.logits, golden, ends, pages)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_the_goldens_however_their_tokens_are_cut(device: _native.VulkanDevice, name: str) -> None:
    golden = read(name, "interleaved")
    model = OnDevice(device, golden.config, golden.weights)
    whole = logits(model, golden, CHUNKS[0])
    assert np.abs(whole - golden.logits).max() < tolerances.GOLDEN_LOGITS
    assert np.array_equal(logits(model, golden, CHUNKS[1], OTHERS), whole)


@pytest.mark.parametrize("name", ["mistral_window", "mixtral", "large3"])
@pytest.mark.parametrize(("format", "tolerance"), FORMAT_TOLERANCES)
def test_a_token_has_the_same_bits_alone_batched_chunked_and_after_a_cached_prefix(
        device: _native.VulkanDevice, format: CacheFormat, tolerance: float, name: str) -> None:
    golden = read(name, "interleaved")
    model = OnDevice(device, golden.config, golden.weights, format)
    check_company(model.logits, golden, tolerance)


def test_a_token_beside_adapters_keeps_its_bits_and_one_behind_an_adapter_gets_the_cpu_s_numbers(
        device: _native.VulkanDevice) -> None:
    golden = read("llama3_tied", "interleaved")
    plain = logits(OnDevice(device, golden.config, golden.weights), golden, (0, 12))
    three, expected = adapted(device, golden)
    beside, behind, again = np.split(three, 3)
    assert np.array_equal(beside, plain) and np.array_equal(behind, again)
    assert np.abs(behind - expected).max() < tolerances.GOLDEN_LOGITS < 0.1 * np.abs(behind - plain).max()


def adapted(device: _native.VulkanDevice, golden: Golden) -> tuple[Array, Array]:
    """Twelve tokens three times in one step, without, with and with an adapter; and the CPU's with it."""
    config, (low_ranks, gains) = golden.config, random_adapter(golden.config)
    slots = Slots(matrices(config), 2, 4)
    adapter = slots.prepare(low_ranks, gains)
    before = device.allocated
    device.place_adapter(adapter)
    assert adapter.nbytes == device.allocated - before + sum(16 * -(-len(gain) // 16) * 4 for gain in gains.values())
    slots.put(1, adapter)
    model = OnDevice(device, config, golden.weights)
    model.recorder = record(device, config, place_ends(model.weights, slots.target))
    tokens = golden.tokens[:12]
    step = parts((tokens, 0, (1,)), (tokens, 0, (2,)), (tokens, 0, (3,)), adapters=[-1] * 12 + [1] * 24)
    native = open_backend("native-scalar").backend
    table = native.adapters(config, place(golden.weights, native.place), 2, 4)
    table.put(1, table.prepare(low_ranks, gains))
    runner = native.runner(config, place(golden.weights, native.place), 64, table)
    cache = native.new_cache(config, 8, 16, "f32")
    return model.logits(step), runner.logits(parts((tokens, 0, (1,)), adapters=[1] * 12), cache)


@pytest.mark.parametrize("name", ["qwen3", "large3"])
def test_a_step_takes_the_memory_that_was_planned(device: _native.VulkanDevice, name: str) -> None:
    golden = read(name, "interleaved")
    gc.collect()  # models of other tests
    before = device.allocated, device.allocated_for_host
    model = OnDevice(device, golden.config, golden.weights, "q8")
    ready = device.allocated, device.allocated_for_host
    model.logits(parts((golden.tokens, 0, PAGES)))
    planned, on_host = model.program.planned_bytes(40, 40)
    assert model.program.work_bytes == (planned, on_host)
    assert device.allocated_for_host - ready[1] in (on_host, on_host + device.staging_bytes)
    assert (device.allocated - device.allocated_for_host) - (ready[0] - ready[1]) == planned
    assert model.cache.nbytes == device.cache_bytes(golden.config.num_layers, 24, 16, golden.config.cache_heads,
                                                    golden.config.cache_dim, "q8", cache_sides(golden.config))
    del model
    gc.collect()
    assert device.allocated - device.allocated_for_host == before[0] - before[1]


def test_a_placed_matrix_is_read_back(device: _native.VulkanDevice) -> None:
    native = _native.Backend(1, "")
    data = np.random.default_rng(0).integers(0, 255, (37, 34), np.uint8)
    data[:, :2] = np.array([0.5], np.float16).view(np.uint8)
    host, placed = native.pack("Q8_0", data, 32), device.empty("Q8_0", 37, 32)
    device.fill(native, placed, 0, data[:32])
    device.fill(native, placed, 32, data[32:])
    assert np.array_equal(placed.bytes(), host.bytes()) and placed.shape == host.shape
    assert placed.nbytes == device.weight_bytes("Q8_0", 37, 32)
    rows, expected = np.empty((20, 32), np.float32), np.empty((20, 32), np.float32)
    placed.rows(15, rows)
    host.rows(15, expected)
    assert np.array_equal(rows, expected)


def test_a_stack_lies_in_as_few_buffers_as_the_device_binds(device: _native.VulkanDevice) -> None:
    backend, rng = VulkanBackend("", NativeBackend(1)), np.random.default_rng(0)
    data = rng.standard_normal((9, 33, 5)).astype(np.float32)
    stack = Stack(tuple(Dense("F32", matrix.shape, matrix) for matrix in data))
    before = backend.handle.allocated
    placed = backend.place("w", stack)
    assert isinstance(placed, Placed)
    assert backend.nbytes(placed) == backend.nbytes(backend.shape_only("w", stack)) == Room(
        device=backend.handle.stack_bytes("F32", 9, 33, 5)) == Room(device=backend.handle.allocated - before
                                                                    - backend.handle.staging_bytes)
    read = np.empty((33, 5), np.float32)
    for handle, matrix in zip(placed.handle, data, strict=True):
        handle.rows(0, read)
        assert np.array_equal(read, matrix)
    most = int(device.facts()["max_binding"])
    if most < 1 << 30:
        rows = most // 4 // 1024 // 4 // 16 * 16  # a little less than a quarter
        assert device.stack_bytes("F32", 9, rows, 1024) == (
            2 * device.stack_bytes("F32", 4, rows, 1024) + device.stack_bytes("F32", 1, rows, 1024))
        with pytest.raises(ValueError, match="a matrix of a stack has"):
            device.empty_stack("F32", 2, 5 * rows, 1024)


def test_what_has_no_shader_is_named_when_a_model_is_recorded(device: _native.VulkanDevice) -> None:
    program = device.program()
    latents = program.attend_latent(program.input(700), program.input(700), 0, 1, 1.0, 513)
    with pytest.raises(ValueError, match="no latent attention of rank 513, it takes up to 512: run this model on the"):
        program.finish([latents])
    program = device.program()
    with pytest.raises(ValueError, match="no router of 1025 experts, it takes up to 1024"):
        program.finish([program.route(program.input(1025), 2, 1.0)])


def test_a_step_with_a_buffer_that_the_device_does_not_bind_is_refused_when_it_is_planned() -> None:
    require_driver()
    golden, backend = read("large3", "interleaved"), VulkanBackend("", NativeBackend(1))
    runner = backend.runner(golden.config, place(golden.weights, backend.shape_only), 64)
    facts = backend.handle.facts()
    tokens = min(int(facts["max_binding"]), int(facts["max_allocation"])) // 4 // golden.config.vocab_size
    assert runner.planned_bytes(64, 64).device
    with pytest.raises(UnsupportedError, match="has a buffer of .* bytes, .* binds at most"):
        runner.planned_bytes(tokens + 1, tokens + 1)


def test_weights_in_the_host_s_memory_are_refused(device: _native.VulkanDevice) -> None:
    golden = read("qwen2", "interleaved")
    native = open_backend("native-scalar").backend
    with pytest.raises(ValueError, match="does not lie on the GPU"):
        record(device, golden.config, place(golden.weights, native.place))


def test_a_cancelled_step_ends_and_the_next_one_runs(device: _native.VulkanDevice) -> None:
    golden = read("qwen2", "interleaved")
    model = OnDevice(device, golden.config, golden.weights)
    whole = logits(model, golden, (0, 40))
    model.program.cancel()
    with pytest.raises(StepCancelledError):
        model.logits(parts((golden.tokens, 0, PAGES)))
    assert np.array_equal(logits(model, golden, (0, 40)), whole)


def test_a_runner_cancels_its_step_and_runs_the_next_one() -> None:
    require_driver()
    golden = read("qwen2", "interleaved")
    backend = VulkanBackend("", NativeBackend(1))
    runner = backend.runner(golden.config, place(golden.weights, backend.place), len(golden.tokens))
    batch = parts((golden.tokens, 0, PAGES))
    runner.cancel()
    with pytest.raises(StepCancelledError):
        runner.logits(batch)
    assert np.abs(runner.logits(batch) - golden.logits).max() < tolerances.GOLDEN_LOGITS


def test_a_lost_device_ends_the_step_by_a_typed_error() -> None:
    require_driver()
    device = _native.VulkanDevice("")
    golden = read("qwen2", "interleaved")
    model = OnDevice(device, golden.config, golden.weights)
    model.logits(parts((golden.tokens, 0, PAGES)))
    device.lose()
    with pytest.raises(DeviceLostError):
        model.logits(parts((golden.tokens, 0, PAGES)))
    with pytest.raises(DeviceLostError):
        model.logits(parts((golden.tokens[:4], 0, PAGES)))
