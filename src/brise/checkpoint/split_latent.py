"""Splits wkv_b of latent attention, one matrix in most files, into the two stacks that the absorbed form reads.

Legend: H heads, C latent rank, N unrotated numbers of a query, V numbers of a value. Head h of wkv_b (H (N + V), C)
is N rows that make its key and then V rows that make its value from the latent.
"""

from __future__ import annotations

import numpy as np

from brise.errors import bad_value
from brise.models.weights import Array, Dense, Quant, Stack, Stored, part
from brise.quant.dequantize import dequantize
from brise.quant.formats import FORMATS

# What the transposed rows of block formats become: blocks lie along rows, so they cannot be transposed as they are.
# F16 keeps 11 bits, more than any block's scale times code that matters, in half the memory of F32.
TRANSPOSED_BLOCKS = "F16"


def split(wkv_b: Dense | Quant | Stored, num_heads: int, nope_dim: int, value_dim: int) -> tuple[Stack, Stack]:
    """wk_b (H, C, N) and wv_b (H, V, C). Values are rows of the file; keys are transposed, head by head, when read."""
    both = nope_dim + value_dim
    if wkv_b.shape[0] != num_heads * both:
        raise bad_value("rows of wkv_b", wkv_b.shape[0], f"{num_heads} heads of {nope_dim} + {value_dim}")
    keys = [_transposed(wkv_b, head * both, nope_dim) for head in range(num_heads)]
    values = [part(wkv_b, head * both + nope_dim, (head + 1) * both) for head in range(num_heads)]
    return Stack(tuple(keys)), Stack(tuple(values))


def _transposed(weight: Dense | Quant | Stored, first: int, count: int) -> Stored:
    """Rows `first` to first + count, transposed: (columns, count)."""
    format = weight.format if FORMATS[weight.format].is_plain else TRANSPOSED_BLOCKS
    return Stored(format, (weight.shape[1], count), _Transposed(part(weight, first, first + count)))


class _Transposed:
    """Columns of a small matrix as rows. It is decoded once for all of them, and freed with the last."""

    def __init__(self, weight: Dense | Quant | Stored) -> None:
        self._weight = weight
        self._transposed: Array | None = None

    def __call__(self, first: int, last: int) -> Array:
        transposed = np.ascontiguousarray(_plain(self._weight).T) if self._transposed is None else self._transposed
        self._transposed = None if last == len(transposed) else transposed
        return transposed[first:last]


def _plain(weight: Dense | Quant | Stored) -> Array:
    """All numbers in a plain format: the file's, or blocks decoded to TRANSPOSED_BLOCKS."""
    match weight:
        case Dense():
            return weight.data
        case Quant():
            return dequantize(weight.format, weight.data, weight.shape[1]).astype(np.float16)
        case Stored():
            data = weight.rows(0, weight.shape[0])
            if FORMATS[weight.format].is_plain:
                return data
            return dequantize(weight.format, data, weight.shape[1]).astype(np.float16)
