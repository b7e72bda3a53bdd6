"""float32 rows as GGUF blocks, by the native kernels (native/quantize.cpp); the same bytes on every processor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brise.models.weights import Array
from brise.ops import _native
from brise.quant.formats import FORMATS

QUANTISED = tuple(format.name for format in FORMATS.values() if not format.is_plain)
LARGEST = 65504.0  # of float16, in which the formats keep scales

_NO_IMPORTANCE = np.zeros(0, np.float32)


def quantize(format: str, x: Array, importance: Array | None = None, threads: int = 1) -> NDArray[np.uint8]:
    """Rows x float32 (rows, cols) as blocks: uint8 (rows, bytes of a row).

    Minimises the sum of importance[c] * (x[r, c] - what is read back)^2, where `importance` (cols,) says how much a
    column matters: the mean square of what it is multiplied with. Q4_0 to Q8_0 without importance are rounded as
    everybody rounds them. ValueError for numbers that no block holds.
    """
    if format not in QUANTISED:
        raise ValueError(f"format {format!r} has no blocks, allowed are {', '.join(QUANTISED)}")
    rows = np.ascontiguousarray(x, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"rows to quantise have {rows.ndim} dimensions, allowed are 2")
    largest = float(np.abs(rows).max(initial=0.0))
    if not largest <= LARGEST:
        raise ValueError(f"a number to quantise is {largest:g}, allowed are finite ones up to {LARGEST:g}")
    out = np.empty((len(rows), FORMATS[format].row_bytes(rows.shape[1])), np.uint8)
    if rows.size:
        weights = _NO_IMPORTANCE if importance is None else _relative(importance, rows.shape[1])
        _native.Backend(min(threads, len(rows)), "").quantize(format, rows, weights, out)
    return out


def _relative(importance: Array, cols: int) -> NDArray[np.float32]:
    """Shares of the largest, none of them 0: a column that was never used still has to be something."""
    values = np.asarray(importance, np.float64)
    if values.shape != (cols,) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"importance of shape {values.shape} for {cols} columns; "
                         f"allowed are {cols} finite numbers >= 0")
    largest = float(values.max())
    return np.maximum(values / largest if largest else np.ones(cols), 1e-6).astype(np.float32)
