"""The backends that a test runs on, one for each instruction set that this machine has."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from brise.engine.model import LoadedModel, load
from brise.models.ops import Backend, Ops
from tests.backends.vulkan.driver import require_driver

NAMES = ("reference", "native-avx512", "native-avx2", "native-neon", "native-scalar", "vulkan")


@dataclass(frozen=True)
class UnderTest:
    """A backend, and the same as eager ops on numpy arrays."""

    name: str
    backend: Backend
    ops: Ops

    @property
    def is_native(self) -> bool:
        return self.name.startswith("native")

    @property
    def is_quantized(self) -> bool:
        """Whether activations of a quantized linear are int8."""
        return self.name != "reference"


def load_on(name: str, path: Path, threads: int = 1) -> LoadedModel:
    """A model on the backend of this name: "reference", "native" or "vulkan"; skips the test where it is not here."""
    if name != "reference":
        pytest.importorskip("brise._native")
    if name != "vulkan":
        return load(path, backend="reference" if name == "reference" else "native", threads=threads)
    require_driver()
    return load(path, threads=threads, device="vulkan")


def open_backend(name: str) -> UnderTest:
    """Skips the test where the backend is not built, or the machine lacks the instruction set."""
    if name == "reference":
        return UnderTest(name, ReferenceBackend(), ReferenceOps())
    native = pytest.importorskip("brise.backends.native.backend")
    if name == "vulkan":
        require_driver()
        vulkan = importlib.import_module("brise.backends.vulkan.backend")
        gpu = vulkan.VulkanBackend("", native.NativeBackend(threads=2))
        return UnderTest(name, gpu, gpu.ops())
    isa = name.removeprefix("native-")
    if isa not in native.NativeBackend.available_isas():
        pytest.skip(f"this machine has no {isa}")
    backend = native.NativeBackend(threads=2, isa=isa)
    return UnderTest(name, backend, backend.ops())
