"""What tests of the GPU backend need of the machine: a lack skips them, but in continuous integration it fails them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

# Asks the loader itself, not brise: a fault of ours must never look like a missing driver. In a process of its own, as
# lavapipe reads LP_NATIVE_VECTOR_WIDTH once in a process.
_COUNT_DEVICES = """
import ctypes, struct
loader = ctypes.CDLL("libvulkan.so.1")
# VkApplicationInfo and VkInstanceCreateInfo for 64 bits: sType, pNext, ..., apiVersion 1.2
application = ctypes.create_string_buffer(struct.pack("@iPPIPIIi", 0, 0, 0, 0, 0, 0, 0x402000, 0))
create = ctypes.create_string_buffer(struct.pack("@iPIPIPIP", 1, 0, 0, ctypes.addressof(application), 0, 0, 0, 0))
instance, count = ctypes.c_void_p(), ctypes.c_uint32()
if loader.vkCreateInstance(create, None, ctypes.byref(instance)) == 0:
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
print(count.value)
"""
_COMPILER = "shaderc 2023.2-1"
_LAYER = "VkLayer_khronos_validation.json"
_LAYER_FOLDERS = ("/usr/share/vulkan/explicit_layer.d", "/usr/local/share/vulkan/explicit_layer.d",
                  "/etc/vulkan/explicit_layer.d")


def require_driver() -> None:
    """Skips the test, or fails it in continuous integration, where no Vulkan device can be found."""
    if not _num_devices():
        _lack("a Vulkan driver", "libvulkan1 mesa-vulkan-drivers")


def require_program(name: str, package: str) -> str:
    """The path of a program, such as glslc."""
    path = shutil.which(name)
    if path is None:
        _lack(name, package)
    assert path is not None
    return path


def require_compiler() -> str:
    """The path of glslc in the version that made the committed SPIR-V: another one writes other bytes."""
    path = require_program("glslc", "glslc")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    if version != _COMPILER:
        _lack(f"{_COMPILER}, not {version}", "glslc")
    return path


def require_amd_driver() -> str:
    """The file that names Mesa's driver for AMD's devices, whose compiler needs no device."""
    files = sorted(Path("/usr/share/vulkan/icd.d").glob("radeon_icd*.json"))
    if not files:
        _lack("Mesa's driver for AMD", "mesa-vulkan-drivers")
    return str(files[0])


def require_validation() -> None:
    """The validation layers of Khronos, and a driver below them."""
    require_driver()
    if not any((Path(folder) / _LAYER).exists() for folder in _LAYER_FOLDERS):
        _lack("the validation layers", "vulkan-validationlayers")


@cache
def _num_devices() -> int:
    run = subprocess.run([sys.executable, "-c", _COUNT_DEVICES], capture_output=True, text=True, timeout=60)
    return int(run.stdout) if run.returncode == 0 else 0


def _lack(what: str, packages: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"no {what.removeprefix('a ')}: scripts/test installs {packages}, and the GPU must be tested here")
    pytest.skip(f"needs {what}: apt-get install {packages}")
