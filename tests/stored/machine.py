"""What of this machine decides the last bits of a number."""

from __future__ import annotations

import numpy as np
import threadpoolctl


def numpy_kind() -> dict[str, str]:
    """Version and BLAS of NumPy, by which the order of its sums differs."""
    kinds = [f"{each['internal_api']} {each['version']} {each['architecture']}"
             for each in threadpoolctl.threadpool_info() if "numpy" in each["filepath"]]
    return {"numpy": np.__version__, "blas": ", ".join(kinds)}
