"""The backends that models run on, and the one place that chooses one. Only the chosen backend is imported."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Literal

from brise.models.ops import Backend, Packing, Planner

BackendName = Literal["native", "reference"]


def open_backend(name: BackendName = "native", threads: int | None = None, isa: str | None = None) -> Backend:
    """A backend to run models on: "native" (C++, on `threads` threads; `isa` forces an instruction set) or "reference"
    (NumPy, which the others are tested against)."""
    if name == "reference":
        reference: Backend = importlib.import_module("brise.backends.reference.ops").ReferenceBackend()
        return reference
    return open_planner(threads, isa)


def open_planner(threads: int | None = None, isa: str | None = None) -> Planner:
    """The backend for this machine's processor, which also plans memory. It has `threads` threads, or one per core."""
    native = importlib.import_module("brise.backends.native.backend")
    planner: Planner = native.NativeBackend(threads or num_cores(), isa)
    return planner


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
