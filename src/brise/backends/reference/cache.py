"""The paged key/value cache of the reference backend, in float32, float16, 8 or 4 bits.

Slot s = page * page_size + offset holds one token of one layer: K heads of E numbers, keys and values separately.
q8: int8, one float32 scale = max|x| / 127 for each token, key/value head and side (key or value).
q4: codes 0 to 15 with a float16 scale and minimum for each token, head, side and group of 32 numbers of the head.
"""

from __future__ import annotations

import numpy as np

from brise.models.ops import CacheFormat
from brise.models.weights import Array

GROUP = 32  # numbers of a head that share a scale and a minimum in q4

_STORED_AS = (("f32", np.float32), ("f16", np.float16), ("q8", np.int8), ("q4", np.uint8))
_LARGEST_F16 = np.float32(65504)


class ReferenceCache:
    """Keys and values of all layers in pages, initially zero. With one side (latents), the values are the keys."""

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int, num_pages: int, page_size: int,
                 format: CacheFormat, num_sides: int = 2) -> None:
        self.num_pages, self.page_size, self.format = num_pages, page_size, format
        self.num_sides = num_sides
        # Axis 1 is the side: 0 keys, 1 values.
        shape = (num_layers, num_sides, num_pages * page_size, num_kv_heads)
        self._data = np.zeros((*shape, head_dim), dict(_STORED_AS)[format])
        self._scales = np.zeros(shape if format == "q8" else (0,), np.float32)
        groups = -(-head_dim // GROUP)
        self._lines = np.zeros((*shape, groups, 2) if format == "q4" else (0,), np.float16)

    @property
    def nbytes(self) -> int:
        return self._data.nbytes + self._scales.nbytes + self._lines.nbytes

    def write(self, layer: int, slots: Array, k_TKE: Array, v_TKE: Array) -> None:
        """Stores the keys and values of T tokens, rounded to the cache's format."""
        for side, x_TKE in enumerate((k_TKE, v_TKE)[:self.num_sides]):
            if self.format == "q8":
                self._data[layer, side, slots], self._scales[layer, side, slots] = quantize_heads(x_TKE)
            elif self.format == "q4":
                self._data[layer, side, slots], self._lines[layer, side, slots] = quantize_groups(x_TKE)
            else:
                self._data[layer, side, slots] = x_TKE

    def read(self, layer: int, slots: Array) -> tuple[Array, Array]:
        """Keys and values (C, K, E) of C slots as float32."""
        sides = self._data[layer][:, slots].astype(np.float32)
        if self.format == "q8":
            sides *= self._scales[layer][:, slots, :, None]
        if self.format == "q4":
            lines = np.repeat(self._lines[layer][:, slots].astype(np.float32), GROUP, axis=-2)[..., :sides.shape[-1], :]
            sides = lines[..., 0] * sides + lines[..., 1]
        return sides[0], sides[-1]


def quantize_heads(x: Array) -> tuple[Array, Array]:
    """int8 (..., E) and float32 scales (...): max|x| becomes 127, halves round to even; zeros get scale 0."""
    scales = (np.abs(x).max(axis=-1) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)
    return np.rint(x / divisors[..., None]).astype(np.int8), scales


def quantize_groups(x: Array) -> tuple[Array, Array]:
    """Codes uint8 (..., E), and float16 (..., G, 2): scale and minimum of each group of 32; the last may be shorter.

    All in float32: scale = (max - min) / 15 and min are rounded to float16 (within its range), then a number's code
    is (x - min) / scale with halves to even, from 0 to 15; 0 where the scale is 0.
    """
    x = np.asarray(x, np.float32)
    numbers = x.shape[-1]
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -numbers % GROUP)]
    grouped = np.pad(x, padding, mode="edge").reshape(*x.shape[:-1], -1, GROUP)
    lows = grouped.min(axis=-1)
    steps = (grouped.max(axis=-1) - lows) / np.float32(15)
    lines = np.stack([np.clip(line, -_LARGEST_F16, _LARGEST_F16).astype(np.float16) for line in (steps, lows)], axis=-1)
    scales, minima = lines[..., :1].astype(np.float32), lines[..., 1:].astype(np.float32)
    codes = np.rint((grouped - minima) / np.where(scales == 0, np.float32(1), scales)).clip(0, 15)
    codes = np.where(scales == 0, 0, codes).astype(np.uint8)
    return codes.reshape(*x.shape[:-1], -1)[..., :numbers], lines
