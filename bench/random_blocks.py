"""Random valid blocks of GGUF formats, for speed measurements: the values are about N(0, std).

The integers of a block are drawn from a bell curve by table, which is as fast as drawing bytes; the scales
are set so that the values come out right. Layouts as in ggml's block structs, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
# (values of a block, bytes of a block)
SIZES: Mapping[str, tuple[int, int]] = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210)}


def fill(random: np.random.Generator, format: str, rows: int, cols: int, std: float = 0.02) -> Bytes:
    """A whole matrix (rows, bytes of a row), drawn in pieces so that little more than itself is held."""
    block_size, block_bytes = SIZES[format]
    if cols % block_size:
        raise ValueError(f"{cols} columns are no multiple of {format}'s block of {block_size}")
    row_bytes = cols // block_size * block_bytes
    out = np.empty((rows, row_bytes), dtype=np.uint8)
    piece = max(1, (4 << 20) // cols)
    for start in range(0, rows, piece):
        part = out[start:start + piece]
        part[:] = _blocks(random, format, part.size // block_bytes, std).reshape(part.shape)
    return out


def _blocks(random: np.random.Generator, format: str, count: int, std: float) -> Bytes:
    match format:
        case "Q4_0":
            return _q4_simple(random, count, std, with_minimum=False)
        case "Q4_1":
            return _q4_simple(random, count, std, with_minimum=True)
        case "Q8_0":
            return _q8_0(random, count, std)
        case "Q4_K":
            return _q4_k(random, count, std)
        case "Q5_K":
            return _q5_k(random, count, std)
        case "Q6_K":
            return _q6_k(random, count, std)
    raise ValueError(f"no random blocks of format {format!r}; there are {', '.join(SIZES)}")


def _q4_simple(random: np.random.Generator, count: int, std: float, *, with_minimum: bool) -> Bytes:
    """Q4_0: d f16, 16 bytes of nibbles, value d * (q - 8). Q4_1: d, m f16, nibbles, value d * q + m."""
    table, spread = _bell(16, 7.5 if with_minimum else 8.0)
    q = table[random.integers(0, 256, (count, 2, 16), dtype=np.uint8)]
    d = std / spread * random.uniform(0.8, 1.2, count)
    scales = [d, -7.5 * d] if with_minimum else [d]
    return np.concatenate([*(_half(s) for s in scales), q[:, 0] | q[:, 1] << 4], axis=1)


def _q8_0(random: np.random.Generator, count: int, std: float) -> Bytes:
    """d f16, 32 signed bytes, value d * q."""
    table, spread = _bell(256, 128.0)
    q = table[random.integers(0, 256, (count, 32), dtype=np.uint8)] ^ 0x80  # 0..255 to two's complement
    return np.concatenate([_half(std / spread * random.uniform(0.8, 1.2, count)), q], axis=1)


def _q4_k(random: np.random.Generator, count: int, std: float) -> Bytes:
    """d, dmin f16, 8 pairs of 6-bit scale and minimum in 12 bytes, 128 bytes of nibbles.

    Value d * scale * q - dmin * minimum, for 8 groups of 32.
    """
    table, spread = _bell(16, 7.5)
    q = table[random.integers(0, 256, (count, 4, 2, 32), dtype=np.uint8)]
    nibbles = (q[:, :, 0] | q[:, :, 1] << 4).reshape(count, 128)
    return np.concatenate([*_scales_and_minima(random, count, std / spread, 7.5), nibbles], axis=1)


def _q5_k(random: np.random.Generator, count: int, std: float) -> Bytes:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles: bits 2 g and 2 g + 1 of byte i are those of value i of
    the groups 2 g and 2 g + 1."""
    table, spread = _bell(32, 15.5)
    q = table[random.integers(0, 256, (count, 4, 2, 32), dtype=np.uint8)]
    fifth = np.zeros((count, 32), np.uint8)
    for group in range(8):
        fifth |= (q[:, group // 2, group % 2] >> 4) << group
    nibbles = ((q[:, :, 0] & 15) | (q[:, :, 1] & 15) << 4).reshape(count, 128)
    return np.concatenate([*_scales_and_minima(random, count, std / spread, 15.5), fifth, nibbles], axis=1)


def _scales_and_minima(random: np.random.Generator, count: int, unit: float, middle: float) -> list[Bytes]:
    """d, dmin and 12 bytes with 8 scales and minima, which are the same: the mean is 0 with dmin = `middle` d."""
    scale = random.integers(32, 64, (count, 8), dtype=np.uint8)
    low, high = scale[:, :4], scale[:, 4:]
    first = low | (high >> 4) << 6
    d = unit / 48 * random.uniform(0.8, 1.2, count)
    return [_half(d), _half(middle * d), first, first, (high & 15) | (high & 15) << 4]


def _q6_k(random: np.random.Generator, count: int, std: float) -> Bytes:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d f16; value d * scale * (q - 32).

    Each half of 128 values is four runs of 32: the runs 0 and 2 share low bytes 0..31, 1 and 3 share 32..63.
    """
    table, spread = _bell(64, 32.0)
    q = table[random.integers(0, 256, (count, 2, 4, 32), dtype=np.uint8)]
    low, high = q & 15, q >> 4
    nibbles = low[:, :, :2] | low[:, :, 2:] << 4
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    scale = random.integers(16, 32, (count, 16), dtype=np.uint8)
    d = std / spread / 24 * random.uniform(0.8, 1.2, count)
    return np.concatenate([nibbles.reshape(count, 128), pairs.reshape(count, 64), scale, _half(d)], axis=1)


def _bell(levels: int, zero: float) -> tuple[Bytes, float]:
    """A table of 256 integers 0..levels - 1 with a bell's frequencies around `zero`, and their spread."""
    bell = NormalDist(zero, levels / 6)
    values = np.array([bell.inv_cdf((i + 0.5) / 256) for i in range(256)])
    table = np.clip(np.rint(values), 0, levels - 1).astype(np.uint8)
    return table, float(table.std())


def _half(values: NDArray[np.float64]) -> Bytes:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)
