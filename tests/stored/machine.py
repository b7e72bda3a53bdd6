"""What of this machine decides the last bits of a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import threadpoolctl


def numpy_kind() -> dict[str, str]:
    """Version and BLAS of NumPy, by which the order of its sums differs."""
    kinds = [f"{each['internal_api']} {each['version']} {each['architecture']}"
             for each in threadpoolctl.threadpool_info() if "numpy" in each["filepath"]]
    return {"numpy": np.__version__, "blas": ", ".join(kinds)}


def processor_vendor() -> str:
    """Who made the processor, by which MKL takes its kernels; "" where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
