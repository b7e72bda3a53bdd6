"""The backends that a test runs on, one for each instruction set that this machine has."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from brise.models.ops import Backend, Ops

NAMES = ("reference", "native-avx512", "native-avx2", "native-neon", "native-scalar")


@dataclass(frozen=True)
class UnderTest:
    """A backend, and the same as eager ops on numpy arrays."""

    name: str
    backend: Backend
    ops: Ops

    @property
    def is_native(self) -> bool:
        return self.name.startswith("native")


def open_backend(name: str) -> UnderTest:
    """Skips the test where the backend is not built, or the machine lacks the instruction set."""
    if name == "reference":
        return UnderTest(name, ReferenceBackend(), ReferenceOps())
    native = pytest.importorskip("brise.backends.native.backend")
    isa = name.removeprefix("native-")
    if isa not in native.NativeBackend.available_isas():
        pytest.skip(f"this machine has no {isa}")
    backend = native.NativeBackend(threads=2, isa=isa)
    return UnderTest(name, backend, backend.ops())
