"""The table of op cases: every backend and instruction set answers all of them (tests/ops/test_ops.py).

N = 16 floats is the widest vector, so that lengths run from 0 (or 1) to 2 N + 1: every remainder, twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from brise.models.rope import Layout
from brise.ops.contract import CacheFormat
from tests.ops.attend_rows import Attend
from tests.ops.inputs import BLOCKS
from tests.ops.rows import (
    Add,
    Bias,
    Embed,
    Heads,
    Linear,
    Linears,
    RmsNorm,
    Rope,
    RopeTable,
    Row,
    ScaleQueries,
    SiluMul,
    TakeRows,
)

LENGTHS = range(34)
WIDTHS = (*range(1, 34), 64, 100, 577)
HEAD_DIMS = (16, 32, 64, 80, 96, 128)
PLAIN = ("F32", "F16", "BF16")
LINEAR_TOKENS = (*range(1, 21), 33, 64)
LINEAR_OUTPUTS = (1, 15, 16, 17, 33, 64, 100)


def table() -> dict[str, list[Row]]:
    """All rows, in groups that are one test each."""
    groups: dict[str, list[Row]] = {
        "take_rows": [*(TakeRows(40, rows, 33) for rows in LENGTHS), *(TakeRows(5, 3, d) for d in WIDTHS)],
        "bias": [*(Bias(t, 33) for t in LENGTHS), *(Bias(3, d) for d in WIDTHS)],
        "add": [*(Add(t, 33) for t in LENGTHS), *(Add(3, d) for d in WIDTHS)],
        "rms_norm": list(_norms()),
        "heads": [Heads(t, h, e) for t, h, e in product((0, 1, 7), (1, 3), HEAD_DIMS)],
        "rope_table": list(_rope_tables()),
        "rope": list(_ropes()),
        "scale_queries": [ScaleQueries(t, 3, e, first, 8) for t, e, first in
                          product((0, 1, 9, 40), (2, 15, 16, 17, 80), (0, 7, 262140))],
        "silu_mul": [*(SiluMul(t, 33) for t in LENGTHS), *(SiluMul(3, d) for d in WIDTHS),
                     *(SiluMul(5, 577, size) for size in (1e-30, 1e-3, 20.0, 100.0, 1e4))],
        "linears": list(_several_linears()),
        "attend": list(_attends(None)),
    }
    for format in (*BLOCKS, *PLAIN):
        groups[f"embed {format}"] = list(_embeds(format))
        groups[f"linear {format}"] = list(_linears(format))
    formats: tuple[CacheFormat, ...] = ("f32", "f16", "q8")
    for cache_format in formats:
        groups[f"attend {cache_format}"] = list(_attends(cache_format))
    return groups


def _norms() -> Iterator[Row]:
    for tokens in LENGTHS:
        yield RmsNorm(tokens, 33)
    for width in WIDTHS:
        yield RmsNorm(3, width)
        yield RmsNorm(3, width, heads=3, eps=1e-6)
    for size in (1e-6, 1e-2, 1e4):
        yield RmsNorm(3, 577, size=size)


def _rope_tables() -> Iterator[Row]:
    for tokens in LENGTHS:
        yield RopeTable(tuple(range(tokens)), 16)
    for dim in (*range(2, 35, 2), *HEAD_DIMS):
        yield RopeTable((0, 1, 2, 100, 8191, 131071, 262143), dim, 1.415888)


def _ropes() -> Iterator[Row]:
    layouts: tuple[Layout, ...] = ("interleaved", "half")
    for layout in layouts:
        for tokens in LENGTHS:
            yield Rope(layout, tokens, 3, 16, 16)
        for head_dim in (*range(2, 35, 2), *HEAD_DIMS):
            yield Rope(layout, 3, 3, head_dim, head_dim)
        for head_dim, dim in ((64, 32), (80, 64), (128, 2), (17, 16), (33, 6)):
            yield Rope(layout, 5, 2, head_dim, dim)


def _widths(format: str) -> tuple[int, ...]:
    if format in PLAIN:
        return WIDTHS
    block = BLOCKS[format][0]
    return tuple(block * count for count in ((1, 2, 3, 5, 9) if block == 32 else (1, 2, 3)))


def _embeds(format: str) -> Iterator[Row]:
    widths = _widths(format)
    for tokens in LENGTHS:
        yield Embed(format, tokens, widths[tokens % len(widths)])


def _linears(format: str) -> Iterator[Row]:
    """Every T with an odd height, every height with few tokens, every width."""
    widths = _widths(format)
    for tokens in LINEAR_TOKENS:
        yield Linear(format, tokens, widths[-1], 33)
    for tokens, outputs in product((1, 3, 8), LINEAR_OUTPUTS):
        yield Linear(format, tokens, widths[outputs % len(widths)], outputs)
    for width in widths:
        yield Linear(format, 5, width, 17)
    for tokens in (1, 13):
        yield Linear(format, tokens, widths[-1], 16, extreme=True)


def _several_linears() -> Iterator[Row]:
    for tokens in (1, 2, 7, 33):
        yield Linears(("Q4_1", "Q4_1", "Q8_0"), tokens, 96, (48, 16, 16))
        yield Linears(("Q4_K", "Q6_K", "Q5_0"), tokens, 512, (33, 17, 1))
        yield Linears(("F32", "F16"), tokens, 64, (15, 40))
        yield Linears(("Q4_0", "F32", "BF16"), tokens, 64, (15, 40, 16))


def _attends(format: CacheFormat | None) -> Iterator[Row]:
    for new in range(1, 34):
        yield Attend(((0, new),), 2, 1, 16, format)
    for head_dim, (heads, kv_heads) in product(HEAD_DIMS, ((1, 1), (3, 3), (6, 3), (9, 3), (4, 1), (8, 1))):
        yield Attend(((0, 5), (0, 18)), heads, kv_heads, head_dim, format)
    for window in (1, 2, 7, 16, 17, 40):
        yield Attend(((0, 35), (0, 3)), 4, 2, 32, format, window)
    yield Attend(((0, 600),), 2, 1, 16, format)
    yield Attend(((0, 40),), 2, 2, 64, format, size=30.0)
    if format is not None:
        yield from _attends_with_past(format)


def _attends_with_past(format: CacheFormat) -> Iterator[Row]:
    for past in (1, 14, 15, 16, 17, 31, 32, 33, 47, 48, 49):
        yield Attend(((past, 1),), 3, 1, 64, format)
        yield Attend(((past, 2), (0, 3), (5, 1), (16, 16)), 8, 2, 32, format)
        yield Attend(((past, 1), (past + 1, 1), (3, 1)), 4, 4, 80, format, window=16)
        yield Attend(((past, 20),), 6, 2, 16, format, window=33, page_size=32)
    yield Attend(tuple((length, 1) for length in range(1, 34)), 2, 1, 32, format)
    yield Attend(((511, 2), (512, 1), (700, 3)), 4, 2, 16, format, window=None, page_size=64)
    yield Attend(((700, 3),), 4, 2, 16, format, window=100)
