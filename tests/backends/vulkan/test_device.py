"""A Vulkan device: chosen by number or name, memory counted to the byte, a shader run, sizes that are refused."""

import struct

import numpy as np
import pytest

from brise import _native

from .driver import require_driver


@pytest.fixture(scope="module")
def device() -> _native.VulkanDevice:
    require_driver()
    return _native.VulkanDevice()


def test_a_shader_runs_over_its_buffers(device: _native.VulkanDevice) -> None:
    x = np.arange(1000, dtype=np.int32)
    for local_size in (16, 64):
        given, doubled = _double(device, x, local_size)
        assert (given == x).all() and (doubled == 2 * x).all()


def test_more_than_the_staging_ring_goes_up_and_comes_back(device: _native.VulkanDevice) -> None:
    x = np.arange(device.staging_bytes // 4 * 2 + 77, dtype=np.int32)
    given, doubled = _double(device, x, 512)
    assert (given == x).all() and (doubled == 2 * x).all()


def test_the_whole_of_a_buffer_is_read_for_its_bandwidth(device: _native.VulkanDevice) -> None:
    x = np.random.default_rng(5).integers(0, 1 << 32, 4096, dtype=np.uint32)
    for groups in (1, 3, 64):
        _, read = device.dispatch("read_all", [x.view(np.uint8), np.zeros(4 * 64 * groups, np.uint8)],
                                  struct.pack("I", len(x) // 4), (groups, 1, 1), [64])
        assert np.bitwise_xor.reduce(read.view(np.uint32)) == np.bitwise_xor.reduce(x)
    assert all(seconds > 0 for seconds in device.read_seconds(1 << 20, 3))


def test_what_was_allocated_is_given_back(device: _native.VulkanDevice) -> None:
    before = device.allocated
    _double(device, np.zeros(1 << 18, np.int32), 64)
    assert device.allocated in (before, before + device.staging_bytes)


def test_a_device_is_chosen_by_number_and_by_a_part_of_its_name(device: _native.VulkanDevice) -> None:
    for facts in _native.vulkan_devices():
        if not facts["missing"]:
            assert _native.VulkanDevice(str(facts["number"])).facts() == facts
    facts = device.facts()
    assert _native.VulkanDevice(str(facts["name"])[:5].upper()).facts()["name"] == facts["name"]


def test_sizes_that_do_not_hold_are_refused(device: _native.VulkanDevice) -> None:
    x = np.zeros(64, np.uint8)
    for shader, num_buffers, push_bytes, num_groups in (("none", 1, 0, 1), ("double", 1, 4, 1), ("double", 2, 132, 1),
                                                        ("double", 2, 4, 1 << 31)):
        with pytest.raises(ValueError):
            device.dispatch(shader, [x] * num_buffers, bytes(push_bytes), (num_groups, 1, 1), [64])


def test_the_budget_is_what_is_left_of_the_devices_memory(device: _native.VulkanDevice) -> None:
    free, total = device.budget()
    assert 0 < free <= total <= int(device.facts()["memory"])
    assert device.allocation_bytes(1 << 20) >= 1 << 20


def _double(device: _native.VulkanDevice, x: np.ndarray, local_size: int) -> tuple[np.ndarray, np.ndarray]:
    groups = (-(-len(x) // local_size), 1, 1)
    given, doubled = device.dispatch("double", [x.view(np.uint8), np.zeros(x.nbytes, np.uint8)],
                                     struct.pack("I", len(x)), groups, [local_size])
    return given.view(np.int32), doubled.view(np.int32)
