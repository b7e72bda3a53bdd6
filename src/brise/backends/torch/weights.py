"""Weights of the torch backend: plain tensors, or blocks that are dequantized whenever they are needed.

The handle of a placed weight is a tensor, a Packed, or for a stack a tuple of these. A Lora in the tree has a placed
base, and tensors in its LowRanks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
import torch

from brise.backends.torch import blocks
from brise.errors import UnsupportedError
from brise.models.weights import Array, Dense, Lora, Placed, Quant, Stack, Stored, Weight
from brise.quant.formats import FORMATS
from brise.quant.rows import matrix_shape, raw_rows

Tensor = torch.Tensor
Keep = Literal["dense", "packed"]

# Rows are read, or dequantized, in blocks of this many numbers: a few megabytes besides the placed weights.
BLOCK_NUMBERS = 1 << 21
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Packed:
    """Blocks of a GGUF format as bytes (rows, bytes of a row) of `cols` numbers."""

    format: str
    cols: int
    data: Tensor


Handle = Tensor | Packed


def place(name: str, weight: Weight, device: torch.device, dtype: torch.dtype, keep: Keep = "dense") -> Weight:
    """The weight as tensors: vectors in float32 (float64 if `dtype` is), matrices in `dtype`.

    With `keep` "packed", block formats stay as they are, and matrices in BF16 and F16 stay in 16 bits.
    """
    if dtype not in DTYPES:
        raise UnsupportedError(f"the dtype is {dtype}; the torch backend computes in float32 and bfloat16")
    match weight:
        case Dense() | Quant() | Stored():
            return Placed(weight.shape, _placed(name, weight, device, dtype, keep))
        case Stack():
            parts = tuple(_placed(f"{name}.{index}", matrix, device, dtype, keep)
                          for index, matrix in enumerate(weight.matrices))
            return Placed(weight.shape, parts)
        case Lora(base, adapters) if weight.tokens is None and len(adapters) == 1:
            placed = base if isinstance(base, Placed) else place(name, base, device, dtype, keep)
            assert isinstance(placed, Placed)
            return Lora(placed, adapters)
        case Lora():
            raise UnsupportedError(f"{name} has {len(weight.adapters)} adapters; the torch backend trains one")
    raise UnsupportedError(f"{name} has been placed in another backend already")


def _placed(name: str, weight: Dense | Quant | Stored, device: torch.device, dtype: torch.dtype,
            keep: Keep) -> Handle:
    if weight.format not in FORMATS:
        raise UnsupportedError(f"{name} has weight format {weight.format}; the torch backend reads "
                               f"{', '.join(FORMATS)}")
    rows, cols = matrix_shape(weight.shape)
    is_vector = len(weight.shape) == 1
    if keep == "packed" and not FORMATS[weight.format].is_plain:
        data = np.empty((rows, FORMATS[weight.format].row_bytes(cols)), np.uint8)
        for first, last in _row_blocks(rows, cols):
            data[first:last] = raw_rows(weight, first, last)
        return Packed(weight.format, cols, torch.from_numpy(data).to(device))
    kind = _wide(dtype) if is_vector else _plain_dtype(weight.format, dtype, keep)
    numbers = torch.empty(rows, cols, dtype=kind, device=device)
    for first, last in _row_blocks(rows, cols):
        numbers[first:last] = decode(weight.format, cols, _bytes(raw_rows(weight, first, last)), kind)
    return numbers.view(weight.shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plain_dtype(format: str, dtype: torch.dtype, keep: Keep) -> torch.dtype:
    """The type that a matrix is kept in: with `keep` "packed", 16 bits in the file stay 16 bits."""
    if keep == "packed" and format in ("BF16", "F16"):
        return torch.bfloat16 if format == "BF16" else torch.float16
    return dtype


def _row_blocks(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    step = max(BLOCK_NUMBERS // cols, 1)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _bytes(data: Array) -> Tensor:
    """A copy: a tensor cannot share read-only memory."""
    return torch.from_numpy(np.array(data))


def handle_of(weight: Weight) -> Handle:
    """The handle of a placed matrix or vector."""
    assert isinstance(weight, Placed), type(weight)
    handle: Handle = weight.handle
    return handle


def parts_of(handle: Handle, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """The matrix in blocks of rows on `device`: a tensor that lies there as one block; a Packed dequantized, and what
    lies on the host brought over, one block in memory at a time."""
    if isinstance(handle, Tensor) and handle.device.type == device.type:
        yield slice(0, len(handle)), handle.to(dtype)
        return
    rows, cols = (len(handle.data), handle.cols) if isinstance(handle, Packed) else handle.shape
    for first, last in _row_blocks(rows, cols):
        if isinstance(handle, Tensor):
            part = handle[first:last].to(device, non_blocking=True).to(dtype)
        else:
            part = decode(handle.format, cols, handle.data[first:last].to(device, non_blocking=True), dtype)
        yield slice(first, last), part


def numbers_of(handle: Handle, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The whole matrix as plain numbers on `device`."""
    parts = [part for _, part in parts_of(handle, dtype, device)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def is_whole_on(handle: Handle, device: torch.device) -> bool:
    """Whether the matrix is a tensor there; otherwise it comes in blocks of rows."""
    return isinstance(handle, Tensor) and handle.device.type == device.type


def tensor_of(weight: Weight) -> Tensor:
    """The tensor of a weight that was placed as one."""
    handle = handle_of(weight)
    assert isinstance(handle, Tensor), "a weight in blocks is not a tensor"
    return handle


def row_norms(weight: Weight) -> Tensor:
    """The length of each row of a placed matrix, in float32 at least."""
    handle = handle_of(weight)
    device = handle.data.device if isinstance(handle, Packed) else handle.device
    parts = [torch.linalg.vector_norm(part.to(_wide(part.dtype)), dim=1)
             for _, part in parts_of(handle, torch.float32, device)]
    return torch.cat(parts)


def stack_of(weight: Weight) -> tuple[Handle, ...]:
    """The matrices of a placed stack."""
    assert isinstance(weight, Placed) and isinstance(weight.handle, tuple), "an op on a stack got another weight"
    return weight.handle


def rows_of(table: Weight, tokens: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of a table on `device`; of one that is in blocks, or on the host, only these are read."""
    handle = handle_of(table)
    if isinstance(handle, Tensor):
        return handle[torch.as_tensor(tokens, device=handle.device)].to(device).to(dtype)
    wanted, places = np.unique(np.asarray(tokens), return_inverse=True)
    own = handle.data[torch.from_numpy(wanted.astype(np.int64)).to(handle.data.device)].to(device)
    return decode(handle.format, handle.cols, own, dtype)[torch.from_numpy(places.astype(np.int64)).to(device)]


def decode(format: str, cols: int, data: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers (rows, cols) of `data` (rows, bytes of a row) on its device; on a CPU the native module decodes."""
    match format:
        case "F32" | "F16" | "BF16":
            plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[format]
            return data.view(plain).to(dtype)
    if not len(data):
        return torch.empty(0, cols, dtype=dtype, device=data.device)
    native = _native() if data.device.type == "cpu" else None
    if native is None:
        return blocks.dequantize(format, data, cols).to(dtype)
    # numpy() would pin the storage, which FSDP frees and refills.
    shared = np.asarray(np.from_dlpack(data.contiguous()), np.uint8)
    kind = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    numbers = torch.empty(len(data), cols, dtype=kind)
    native.decode(format, shared, cols, kind == torch.bfloat16, torch.get_num_threads(),
                  numbers.view(torch.uint8).numpy())
    return numbers.to(dtype)


def _native() -> ModuleType | None:
    """The compiled module; None if it is not built."""
    try:
        return importlib.import_module("brise._native")
    except ImportError:
        return None
