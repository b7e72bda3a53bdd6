"""What a user is told of a GPU that is not there, not full enough or lost: a typed error with the numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brise import _native
from brise.errors import DeviceError, DeviceLostError, DeviceMemoryError

from .driver import require_driver


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    require_driver()
    there = str(_native.vulkan_devices()[0]["name"])
    for selector in ("99", "no such card"):
        with pytest.raises(DeviceError, match=selector) as caught:
            _native.VulkanDevice(selector)
        assert f"vulkan:0 is {there}" in str(caught.value) and "by its number" in str(caught.value.hint)


def test_a_loader_that_cannot_be_opened_is_an_error_with_its_package(tmp_path: Path) -> None:
    (tmp_path / "libvulkan.so.1").write_bytes(b"no library")
    said = _error_of("VulkanDevice()", LD_LIBRARY_PATH=str(tmp_path))
    assert "DeviceError: Vulkan's loader can't be opened" in said and "libvulkan1" in said


def test_a_loader_without_a_driver_has_no_devices(tmp_path: Path) -> None:
    require_driver()
    without = {"VK_ICD_FILENAMES": str(tmp_path / "none.json"), "VK_DRIVER_FILES": str(tmp_path / "none.json")}
    assert "no driver of any device" in _error_of("VulkanDevice()", **without)
    assert _error_of("vulkan_devices()", **without) == ""


def test_more_than_is_free_is_refused_with_the_numbers() -> None:
    require_driver()
    device = _native.VulkanDevice()
    free, budget = device.budget()
    with pytest.raises(DeviceMemoryError, match="asked for") as caught:
        device.allocate(free + (1 << 30))
    error = caught.value
    assert error.asked >= free + (1 << 30) and error.free <= error.budget == budget
    assert device.allocated == 0


def test_a_lost_device_says_so_from_then_on() -> None:
    require_driver()
    device = _native.VulkanDevice()
    device.lose()
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="was lost"):
            device.dispatch("double", [np.zeros(4, np.uint8)] * 2, bytes(4), (1, 1, 1), [1])


def _error_of(call: str, **environment: str) -> str:
    """What a process of its own writes to stderr: the loader reads its environment once."""
    run = subprocess.run([sys.executable, "-c", f"from brise import _native\n_native.{call}"], text=True,
                         capture_output=True, env={**os.environ, **environment}, timeout=60)
    return run.stderr
