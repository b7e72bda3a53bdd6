"""Rows of any weight as float32, and float32 rows in any format, for quantising and exporting.

A weight is seen as a matrix: a vector is one row, a stack is its matrices one below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from brise import _native
from brise.errors import CheckpointError, UnsupportedError
from brise.models.weights import Array, Dense, Lora, Placed, Quant, Stack, Stored, Weight
from brise.quant.dequantize import dequantize
from brise.quant.formats import FORMATS, QUANTISED

Floats = NDArray[np.float32]


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns): all but the last dimension are rows."""
    rows = 1
    for length in shape[:-1]:
        rows *= length
    return rows, shape[-1]


def format_of(weight: Weight) -> str:
    """The format of a weight; a stack has that of its matrices."""
    match weight:
        case Dense() | Quant() | Stored():
            return weight.format
        case Stack():
            formats = {matrix.format for matrix in weight.matrices}
            if len(formats) > 1:
                raise UnsupportedError(f"the matrices of a stack have the formats {', '.join(sorted(formats))}; "
                                       "one is allowed")
            return formats.pop()
        case Lora():
            return format_of(weight.base)
        case Placed():
            raise UnsupportedError("a weight has been placed in a backend; its numbers cannot be read back")


def raw_rows(weight: Weight, first: int, last: int) -> Array:
    """Rows first to last as bytes in the weight's own format, uint8 (rows, bytes of a row)."""
    match weight:
        case Dense() | Quant():
            rows, _ = matrix_shape(weight.shape)
            return _bytes(np.asarray(weight.data).reshape(rows, -1)[first:last])
        case Stored(shape=(_,)):
            return _bytes(np.asarray(weight.rows(0, weight.shape[0])).reshape(1, -1))[first:last]
        case Stored():
            return _bytes(np.asarray(weight.rows(first, last)))
        case Stack():
            height = weight.shape[1]
            parts = [raw_rows(weight.matrices[index], max(first - index * height, 0),
                              min(last - index * height, height))
                     for index in range(first // height, -(-last // height))]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        case Lora():
            raise UnsupportedError("a weight has adapters; merged, it has rows")
        case Placed():
            raise UnsupportedError("a weight has been placed in a backend; its numbers cannot be read back")


def float_rows(weight: Weight, first: int, last: int) -> Floats:
    """Rows first to last as float32 (rows, columns)."""
    return dequantize(format_of(weight), raw_rows(weight, first, last), weight.shape[-1])


def joined(parts: Sequence[Weight]) -> Weight:
    """The rows of all these matrices, one below the other: in their format, or in F32 if they have several."""
    if len(parts) == 1:
        return parts[0]
    formats = {format_of(part) for part in parts}
    rows: Callable[[Weight, int, int], Array]
    format, rows = (formats.pop(), raw_rows) if len(formats) == 1 else ("F32", float_rows)
    starts = [0, *accumulate(part.shape[0] for part in parts)]

    def read(first: int, last: int) -> Array:
        return np.concatenate([rows(part, max(first - start, 0), min(last - start, part.shape[0]))
                               for part, start in zip(parts, starts, strict=False)
                               if first < start + part.shape[0] and last > start])

    return Stored(format, (starts[-1], parts[0].shape[-1]), read)


def take_rows(weight: Weight, rows: Array) -> Floats:
    """These rows as float32, in the given order: an embedding without its whole table."""
    wanted, places = np.unique(np.asarray(rows), return_inverse=True)
    if not len(wanted):
        return np.zeros((0, weight.shape[-1]), np.float32)
    raw = np.concatenate([raw_rows(weight, int(row), int(row) + 1) for row in wanted])
    return dequantize(format_of(weight), raw, weight.shape[-1])[places]


def encode_rows(name: str, format: str, rows: Floats, importance: Array | None = None, threads: int = 1) -> Array:
    """float32 rows as bytes of `format`; CheckpointError for numbers that are not finite or too large for it."""
    if not np.isfinite(rows).all():
        raise CheckpointError(f"{name} has a number that is not finite", field=name,
                              value=float(rows[~np.isfinite(rows)][0]), limit="finite numbers",
                              hint="the source is damaged, or was made by a training that diverged")
    match format:
        case "F32":
            return _bytes(rows)
        case "F16":
            _refuse_large(name, rows)
            return _bytes(rows.astype(np.float16))
        case "BF16":
            return _bytes(bfloat16(rows))
        case _:
            _refuse_large(name, rows)
            return quantize(format, rows, importance, threads)


def bfloat16(rows: Floats) -> NDArray[np.uint16]:
    """Finite float32 rounded to BF16, halves to even, as uint16."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def row_bytes(format: str, cols: int) -> int:
    """Bytes of a row of `cols` numbers."""
    return FORMATS[format].row_bytes(cols)


def _refuse_large(name: str, rows: Floats) -> None:
    """F16 holds numbers up to 65504, and so do the scales of blocks."""
    largest = max(float(rows.max(initial=0)), -float(rows.min(initial=0)))
    if largest > LARGEST:
        raise CheckpointError(f"{name} has the number {largest:g}, F16 and blocks hold up to {LARGEST:g}", field=name,
                              value=largest, limit=LARGEST, hint="take BF16 or F32")


def _bytes(rows: Array) -> Array:
    """uint8 (rows, bytes of a row)."""
    contiguous = np.ascontiguousarray(rows)
    return contiguous.view(np.uint8).reshape(len(contiguous), -1)


LARGEST = 65504.0  # of float16, in which the formats keep scales

_NO_IMPORTANCE = np.zeros(0, np.float32)


def quantize(format: str, x: Array, importance: Array | None = None, threads: int = 1) -> NDArray[np.uint8]:
    """Rows x float32 (rows, cols) as blocks: uint8 (rows, bytes of a row).

    Minimises the sum of importance[c] * (x[r, c] - decoded[r, c])^2, where `importance` (cols,) is the mean square of
    a column's input. Without importance, Q4_0 to Q8_0 are rounded in the usual way. ValueError for numbers that no
    block can hold.
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
    """Shares of the largest, at least 1e-6: a column without input still needs a value."""
    values = np.asarray(importance, np.float64)
    if values.shape != (cols,) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"importance of shape {values.shape} for {cols} columns; "
                         f"allowed are {cols} finite numbers >= 0")
    largest = float(values.max())
    return np.maximum(values / largest if largest else np.ones(cols), 1e-6).astype(np.float32)
