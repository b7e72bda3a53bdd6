"""Numbers, weights and batches for the rows of the case table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from brise.models.batch import Batch
from brise.models.weights import Array, Dense, Quant, Weight

Precision = type[np.floating[Any]]

# Numbers and bytes of a block, and the offsets of its float16 fields; all other bytes are arbitrary.
BLOCKS: Mapping[str, tuple[int, int, tuple[int, ...]]] = MappingProxyType({
    "Q4_0": (32, 18, (0,)), "Q4_1": (32, 20, (0, 2)), "Q5_0": (32, 22, (0,)), "Q5_1": (32, 24, (0, 2)),
    "Q8_0": (32, 34, (0,)), "Q2_K": (256, 84, (80, 82)), "Q3_K": (256, 110, (108,)),
    "Q4_K": (256, 144, (0, 2)), "Q5_K": (256, 176, (0, 2)), "Q6_K": (256, 210, (208,)),
    "IQ4_NL": (32, 18, (0,)), "IQ4_XS": (256, 136, (0,)), "MXFP4": (32, 17, ())})


def normal(rng: np.random.Generator, shape: tuple[int, ...], precision: Precision,
           deviation: float = 1.0) -> Array:
    """Normal float32 numbers; as float32 they begin 4 bytes after an aligned address."""
    size = int(np.prod(shape))
    padded = np.empty(size + 1, np.float32)
    padded[1:] = rng.normal(0, deviation, size)
    return padded[1:].reshape(shape).astype(precision, copy=False)


def off_ties(rng: np.random.Generator, shape: tuple[int, ...], group: int) -> Array:
    """Like `normal`, but x / (max|x| / 127) of each group of the last axis is never near a half.

    So rounding to int8 has one answer whatever the order of the divisions. Some groups are zero.
    """
    x = rng.standard_normal((int(np.prod(shape)) // group, group))
    largest = np.abs(x).argmax(axis=1)[:, None] if len(x) else np.zeros((0, 1), int)
    step = np.take_along_axis(np.abs(x), largest, 1) / 127
    apart = (np.clip(np.rint(x / step), -126, 126) + rng.uniform(-0.45, 0.45, x.shape)) * step
    np.put_along_axis(apart, largest, np.take_along_axis(x, largest, 1), 1)
    apart[rng.random(len(x)) < 0.02] = 0
    return apart.reshape(shape).astype(np.float32)


def weight(rng: np.random.Generator, format: str, rows: int, cols: int, extreme: bool = False) -> Weight:
    """Random numbers of a plain format, or random valid blocks."""
    if format not in BLOCKS:
        return Dense(format, (rows, cols), _plain(normal(rng, (rows, cols), np.float32), format))
    block, size, fields = BLOCKS[format]
    shape = (rows, cols // block, size)
    if extreme:
        data = rng.choice(np.array([0x00, 0x7F, 0x80, 0xFF], np.uint8), shape)
    else:
        data = rng.integers(0, 256, shape).astype(np.uint8)
    for offset in fields:
        scales = rng.normal(0, 0.02, (*shape[:2], 1)).astype(np.float16)
        data[..., offset:offset + 2] = scales.view(np.uint8)
    if format == "MXFP4":
        data[..., 0] = rng.integers(116, 123, shape[:2])  # exponents: scales of 2^-12 to 2^-6
    return Quant(format, (rows, cols), data.reshape(rows, -1))


def _plain(x: Array, format: str) -> Array:
    match format:
        case "F16":
            return x.astype(np.float16)
        case "BF16":
            return (x.view(np.uint32) >> 16).astype(np.uint16)
        case _:
            return x


def packed_batch(sequences: Sequence[tuple[int, int]], pages: Sequence[Sequence[int]] | None,
                 page_size: int = 16) -> Batch:
    """A batch of sequences (first position, new tokens); `pages` lists each one's pages, None: no cache."""
    positions = np.concatenate([np.arange(first, first + new) for first, new in sequences])
    starts = np.cumsum([0] + [new for _, new in sequences])
    table, slots = None, None
    if pages is not None:
        table = np.zeros((len(pages), max(len(own) for own in pages)), np.int32)
        for row, own in zip(table, pages, strict=True):
            row[:len(own)] = own
        owner = np.repeat(np.arange(len(sequences)), [new for _, new in sequences])
        slots = (table[owner, positions // page_size] * page_size + positions % page_size).astype(np.int32)
    return Batch(tokens=np.zeros(len(positions), np.int32), positions=positions.astype(np.int32),
                 query_starts=starts.astype(np.int32), rows=np.zeros(0, np.int32),
                 page_table=table, slots=slots)
