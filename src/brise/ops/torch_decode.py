"""Rows of any weight format as numbers in a tensor: blocks by the native module where it is built, else in NumPy."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import torch

from brise.quant.dequantize import dequantize

Tensor = torch.Tensor


def decode(format: str, cols: int, data: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers (rows, cols) of `data` (rows, bytes of a row) on its device (a GPU's by the host)."""
    match format:
        case "F32" | "F16" | "BF16":
            plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[format]
            return data.view(plain).to(dtype)
    if not len(data):
        return torch.empty(0, cols, dtype=dtype, device=data.device)
    blocks, native = data.cpu().contiguous(), _native()
    # blocks.numpy() would pin the storage, which FSDP frees and fills again.
    shared = np.asarray(np.from_dlpack(blocks), np.uint8)
    if native is None:
        return torch.from_numpy(dequantize(format, shared, cols)).to(device=data.device, dtype=dtype)
    kind = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    numbers = torch.empty(len(blocks), cols, dtype=kind)
    native.decode(format, shared, cols, kind == torch.bfloat16, torch.get_num_threads(),
                  numbers.view(torch.uint8).numpy())
    return numbers.to(device=data.device, dtype=dtype)


def _native() -> ModuleType | None:
    """None where the module is not built."""
    try:
        return importlib.import_module("brise.ops._native")
    except ImportError:
        return None
