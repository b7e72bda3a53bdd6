"""Weights of the torch backend: plain tensors, or blocks that are dequantised whenever they are needed.

A placed weight's handle is a tensor (its numbers) or a Packed. A Lora keeps tensors in its LowRanks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from brise.errors import UnsupportedError
from brise.models.weights import Dense, Lora, LowRank, Placed, Quant, Stored, Weight
from brise.quant.rows import float_rows, matrix_shape

Tensor = torch.Tensor


def place(name: str, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
    """The weight as a tensor: vectors in float32, matrices in `dtype`."""
    match weight:
        case Dense() | Quant() | Stored():
            rows, _ = matrix_shape(weight.shape)
            numbers = torch.from_numpy(float_rows(weight, 0, rows)).reshape(weight.shape)
            kind = torch.float32 if len(weight.shape) == 1 else dtype
            return Placed(weight.shape, numbers.to(device=device, dtype=kind))
    raise UnsupportedError(f"{name} is a {type(weight).__name__}, which the torch backend does not train")


def tensor_of(weight: Weight) -> Tensor:
    """The numbers of a placed weight."""
    assert isinstance(weight, Placed), type(weight)
    handle: Tensor = weight.handle
    return handle


def vector(weight: Weight) -> Tensor:
    """A norm's or a bias' numbers."""
    return tensor_of(weight)


def rows_of(table: Weight, tokens: Tensor) -> Tensor:
    """Rows of a table."""
    return tensor_of(table)[tokens]


def linear(x: Tensor, weight: Weight, dropout: Callable[[Tensor], Tensor] | None) -> Tensor:
    """x W^T, and what the first adapter adds to it."""
    if not isinstance(weight, Lora):
        return x @ tensor_of(weight).t()
    y = x @ tensor_of(weight.base).t()
    adapter = weight.adapters[0]
    return y if adapter is None else y + low_rank(x if dropout is None else dropout(x), adapter)


def low_rank(x: Tensor, adapter: LowRank) -> Tensor:
    """scale * B (A x)."""
    return (x @ adapter.a.to(x.dtype).t()) @ (adapter.b.to(x.dtype) * adapter.scale).t()


@dataclass(frozen=True)
class Packed:
    """Blocks of a GGUF format as bytes (rows, bytes of a row)."""

    format: str
    data: Tensor
