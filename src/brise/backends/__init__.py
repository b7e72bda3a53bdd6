"""The backends that models run on, and the one place that chooses one. Only the chosen backend is imported."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from brise.errors import DeviceError, UnsupportedError
from brise.models.ops import Backend, LayerSplit, Planner
from brise.models.packing import Packing

BackendName = Literal["native", "reference"]
DEVICES = "cpu, vulkan, vulkan:N (a number, or a part of the name) and auto"


def open_backend(name: BackendName = "native", threads: int | None = None, isa: str | None = None,
                 device: str = "cpu") -> Backend:
    """A backend to run models on: "native" (C++, on `threads` threads, or on a device; `isa` forces an instruction set)
    or "reference" (NumPy, which the others are tested against)."""
    if name == "reference":
        reference: Backend = importlib.import_module("brise.backends.reference.ops").ReferenceBackend()
        return reference
    return open_planner(threads, isa, device)


def open_planner(threads: int | None = None, isa: str | None = None, device: str = "cpu") -> Planner:
    """The backend for a device, which also plans memory; the CPU's part of it has `threads` threads, or one per core.

    `device` is "cpu", "vulkan" (the best GPU), "vulkan:N" (by number or a part of its name), or "auto": a GPU if there
    is one that is no software, else the CPU. DeviceError if there is no such GPU, or it lacks something.
    """
    check_device(device)
    native: Planner = importlib.import_module("brise.backends.native.backend").NativeBackend(
        threads or num_cores(), isa)
    if device == "cpu":
        return native
    vulkan = importlib.import_module("brise.backends.vulkan.backend")
    try:
        gpu: Planner = vulkan.VulkanBackend("" if device == "auto" else device.partition(":")[2], native)
    except DeviceError:
        if device != "auto":
            raise
        return native
    return native if device == "auto" and gpu.facts()["type"] == "cpu" else gpu


def split_planner(planner: Planner, split: LayerSplit, forget: Callable[[], None] = lambda: None) -> Planner:
    """The backend of a model whose last layers lie on the GPU of `planner` and whose first on its host.

    `forget` is called after rows of a tied embedding were read from the model's file. UnsupportedError without a GPU.
    """
    if planner.device is None:
        raise UnsupportedError(f"{split.num_on_device} layers are asked for on a GPU, and the model runs on the CPU",
                               hint="take --device vulkan")
    if not 0 < split.num_on_device < split.num_layers:
        raise UnsupportedError(f"{split.num_on_device} layers are asked for on the GPU, allowed are 1 to "
                               f"{split.num_layers - 1}; a whole model needs no split")
    backend: Planner = importlib.import_module("brise.backends.vulkan.split").SplitBackend(planner, split, forget)
    return backend


def check_device(device: str) -> None:
    """UnsupportedError for a device that brise has no name for."""
    kind, colon, selector = device.partition(":")
    if device not in ("cpu", "auto", "vulkan") and not (kind == "vulkan" and colon and selector):
        raise UnsupportedError(f"device is {device!r}, allowed are {DEVICES}")


def packing_of(backend: Backend) -> Packing | None:
    """How the weights of this backend are kept in a file; None where they are not."""
    if backend.name != "native":
        return None
    packing: Packing = importlib.import_module("brise.backends.native.packing").NativePacking(backend)
    return packing


def num_cores() -> int:
    """The number of physical cores that this process may use: two threads on one core would wait for each other."""
    cpus = os.sched_getaffinity(0)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    if not all(path.is_file() for path in siblings):
        return len(cpus)
    return len({path.read_text() for path in siblings})
