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

from brise.errors import UnsupportedError
from brise.models.weights import Array, Dense, Lora, Placed, Quant, Stack, Stored, Weight
from brise.quant.dequantize import dequantize
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


def parts_of(handle: Handle, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The matrix in blocks of rows: a tensor as one block; a Packed dequantized, one block in memory at a time."""
    if isinstance(handle, Tensor):
        yield slice(0, len(handle)), handle.to(dtype)
        return
    for first, last in _row_blocks(len(handle.data), handle.cols):
        yield slice(first, last), decode(handle.format, handle.cols, handle.data[first:last], dtype)


def numbers_of(handle: Handle, dtype: torch.dtype) -> Tensor:
    """The whole matrix as plain numbers."""
    return torch.cat([part for _, part in parts_of(handle, dtype)]) if isinstance(handle, Packed) else handle.to(dtype)


def tensor_of(weight: Weight) -> Tensor:
    """The tensor of a weight that was placed as one."""
    handle = handle_of(weight)
    assert isinstance(handle, Tensor), "a weight in blocks is not a tensor"
    return handle


def row_norms(weight: Weight) -> Tensor:
    """The length of each row of a placed matrix, in float32 at least."""
    parts = [torch.linalg.vector_norm(part.to(_wide(part.dtype)), dim=1)
             for _, part in parts_of(handle_of(weight), torch.float32)]
    return torch.cat(parts)


def stack_of(weight: Weight) -> tuple[Handle, ...]:
    """The matrices of a placed stack."""
    assert isinstance(weight, Placed) and isinstance(weight.handle, tuple), "an op on a stack got another weight"
    return weight.handle


def rows_of(table: Weight, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a table; if it is in blocks, only these are dequantized."""
    handle = handle_of(table)
    if isinstance(handle, Tensor):
        return handle[tokens].to(dtype)
    wanted, places = torch.unique(tokens, return_inverse=True)
    return decode(handle.format, handle.cols, handle.data[wanted.long()], dtype)[places]


def decode(format: str, cols: int, data: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers (rows, cols) of `data` (rows, bytes of a row) on its device; the host decodes blocks of a GPU."""
    match format:
        case "F32" | "F16" | "BF16":
            plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[format]
            return data.view(plain).to(dtype)
    if not len(data):
        return torch.empty(0, cols, dtype=dtype, device=data.device)
    blocks, native = data.cpu().contiguous(), _native()
    # blocks.numpy() would pin the storage, which FSDP frees and refills.
    shared = np.asarray(np.from_dlpack(blocks), np.uint8)
    if native is None:
        return torch.from_numpy(dequantize(format, shared, cols)).to(device=data.device, dtype=dtype)
    kind = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    numbers = torch.empty(len(blocks), cols, dtype=kind)
    native.decode(format, shared, cols, kind == torch.bfloat16, torch.get_num_threads(),
                  numbers.view(torch.uint8).numpy())
    return numbers.to(device=data.device, dtype=dtype)


def _native() -> ModuleType | None:
    """The compiled module; None if it is not built."""
    try:
        return importlib.import_module("brise._native")
    except ImportError:
        return None
