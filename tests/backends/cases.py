"""The table of op cases: every backend and instruction set answers all of them (tests/backends/test_ops.py).

N = 16 floats is the widest vector, so that lengths run from 0 (or 1) to 2 N + 1: every remainder, twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from brise.models.ops import CacheFormat
from brise.models.rope import Layout
from tests.backends.attend_rows import Attend
from tests.backends.expert_rows import Experts, Route
from tests.backends.image_rows import Gelu, LayerNorm, PutRows
from tests.backends.inputs import BLOCKS
from tests.backends.latent_rows import Columns, Concat, Flat, HeadsLinear
from tests.backends.rows import (
    Add,
    Bias,
    Embed,
    GeluMul,
    Heads,
    Linear,
    Linears,
    RmsNorm,
    Rope,
    RopeTable,
    Row,
    Scale,
    ScaleQueries,
    SiluMul,
    TakeRows,
)

LENGTHS = range(34)
WIDTHS = (*range(1, 34), 64, 100, 577)
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
PLAIN = ("F32", "F16", "BF16")
LINEAR_TOKENS = (*range(1, 21), 33, 64)
LINEAR_OUTPUTS = (1, 15, 16, 17, 33, 64, 100)


def table() -> dict[str, list[Row]]:
    """All rows, in groups that are one test each."""
    groups: dict[str, list[Row]] = {
        "take_rows": [*(TakeRows(40, rows, 33) for rows in LENGTHS), *(TakeRows(5, 3, d) for d in WIDTHS)],
        "bias": [*(Bias(t, 33) for t in LENGTHS), *(Bias(3, d) for d in WIDTHS)],
        "add": [*(Add(t, 33) for t in LENGTHS), *(Add(3, d) for d in WIDTHS)],
        "scale": [*(Scale(t, 33, 0.22) for t in LENGTHS), *(Scale(3, d, 12.0) for d in WIDTHS)],
        "rms_norm": list(_norms()),
        "layer_norm": [*(LayerNorm(t, 33) for t in LENGTHS), *(LayerNorm(3, d) for d in WIDTHS), LayerNorm(2, 1280),
                       *(LayerNorm(3, 577, mean, size) for mean in (0.0, 3.0) for size in (1e-6, 1e-2, 1e4))],
        "heads": [Heads(t, h, e) for t, h, e in product((0, 1, 7), (1, 3), HEAD_DIMS)],
        "rope_table": list(_rope_tables()),
        "rope": list(_ropes()),
        "scale_queries": [ScaleQueries(t, 3, e, first, 8) for t, e, first in
                          product((0, 1, 9, 40), (2, 15, 16, 17, 80), (0, 7, 262140))],
        "silu_mul": [*(SiluMul(t, 33) for t in LENGTHS), *(SiluMul(3, d) for d in WIDTHS),
                     *(SiluMul(5, 577, size) for size in (1e-30, 1e-3, 20.0, 100.0, 1e4))],
        "gelu_mul": [*(GeluMul(t, 33) for t in LENGTHS), *(GeluMul(3, d) for d in WIDTHS),
                     *(GeluMul(5, 577, size) for size in (1e-30, 1e-3, 20.0, 100.0, 1e4))],
        "put_rows": [*(PutRows(t, 5, 33) for t in LENGTHS), *(PutRows(7, 3, d) for d in WIDTHS), PutRows(9, 0, 33)],
        "gelu": [*(Gelu(t, 33) for t in LENGTHS), *(Gelu(3, d) for d in WIDTHS),
                 *(Gelu(5, 577, size) for size in (1e-30, 1e-3, 20.0, 1e4))],
        "gelu_tanh": [*(Gelu(t, 33, by_tanh=True) for t in LENGTHS), *(Gelu(3, d, by_tanh=True) for d in WIDTHS),
                      *(Gelu(5, 577, size, by_tanh=True) for size in (1e-30, 1e-3, 20.0, 1e4))],
        "flat": [Flat(t, h, e) for t, h, e in product((0, 1, 7), (1, 3), HEAD_DIMS)],
        "columns": list(_columns()),
        "concat": [Concat(*sizes) for sizes in product((0, 1, 5), (1, 3), (1, 16, 33), (1, 16, 33))],
        "linears": list(_several_linears()),
        "route": list(_routes()),
        "attend": list(_attends(None)),
        "attend_latent": list(_latents(None)),
    }
    for format in (*BLOCKS, *PLAIN):
        groups[f"embed {format}"] = list(_embeds(format))
        groups[f"linear {format}"] = list(_linears(format))
        groups[f"heads_linear {format}"] = list(_heads_linears(format))
    for format in PLAIN:
        groups[f"experts {format}"] = list(_experts(format))
    formats: tuple[CacheFormat, ...] = ("f32", "f16", "q8", "q4")
    for cache_format in formats:
        groups[f"attend {cache_format}"] = list(_attends(cache_format))
        groups[f"attend_latent {cache_format}"] = list(_latents(cache_format))
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


def _heads_linears(format: str) -> Iterator[Row]:
    """Every T with few heads, every height and width with some."""
    widths = _widths(format)
    for tokens in LINEAR_TOKENS:
        yield HeadsLinear(format, tokens, 3, widths[1], 17)
    for outputs in LINEAR_OUTPUTS:
        yield HeadsLinear(format, 5, 2, widths[0], outputs)
    for width in widths:
        yield HeadsLinear(format, 3, 5, width, 16)


def _columns() -> Iterator[Row]:
    for tokens, heads in product((0, 1, 5), (1, 3)):
        for first, last in ((0, 1), (0, 16), (3, 17), (16, 33), (32, 33), (0, 33)):
            yield Columns(tokens, heads, 33, first, last)


def _several_linears() -> Iterator[Row]:
    for tokens in (1, 2, 7, 33):
        yield Linears(("Q4_1", "Q4_1", "Q8_0"), tokens, 96, (48, 16, 16))
        yield Linears(("Q4_K", "Q6_K", "Q5_0"), tokens, 512, (33, 17, 1))
        yield Linears(("F32", "F16"), tokens, 64, (15, 40))
        yield Linears(("Q4_0", "F32", "BF16"), tokens, 64, (15, 40, 16))


def _routes() -> Iterator[Row]:
    for tokens in LENGTHS:
        yield Route(tokens, 6, 2)
    for experts, per_token in ((1, 1), (2, 1), (3, 3), (8, 2), (17, 16), (128, 4), (128, 128)):
        yield Route(5, experts, per_token)
        yield Route(5, experts, per_token, scale=2.5, ties=True)
    for size in (1e-6, 20.0, 1000.0):  # shares that are all alike, and shares that are 0
        yield Route(9, 16, 4, size=size)


def _experts(format: str) -> Iterator[Row]:
    for tokens in (*range(20), 33, 64):
        yield Experts(format, tokens, 3, 2, 33, 40)
    for experts, per_token in ((1, 1), (2, 1), (4, 3), (16, 4), (130, 4)):
        for tokens in (1, 2, 13, 50):
            yield Experts(format, tokens, experts, per_token, 17, 20)
    for width in (*range(1, 34, 4), 100):
        yield Experts(format, 5, 4, 2, width, 64)
        yield Experts(format, 5, 4, 2, 64, width)


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


def _latents(format: CacheFormat | None) -> Iterator[Row]:
    """Dimensions C + R and rank C; sixteen heads and more are several units of one token."""
    for new in range(1, 34):
        yield Attend(((0, new),), 2, 1, 24, format, rank=16)
    for (head_dim, rank), heads in product(((17, 1), (32, 32), (48, 33), (80, 64), (128, 112)), (1, 3, 5, 13, 32)):
        yield Attend(((0, 5), (0, 18)), heads, 1, head_dim, format, rank=rank)
    yield Attend(((0, 2),), 128, 1, 576, format, rank=512)  # Mistral Large 3
    yield Attend(((0, 600),), 2, 1, 24, format, rank=16)
    yield Attend(((0, 40),), 2, 1, 64, format, size=30.0, rank=48)
    for past in (1, 14, 15, 16, 17, 31, 32, 33) if format is not None else ():
        yield Attend(((past, 1),), 13, 1, 72, format, rank=64)
        yield Attend(((past, 2), (0, 3), (5, 1), (16, 16)), 8, 1, 32, format, rank=20)
    if format is not None:
        yield Attend(((511, 2), (512, 1), (700, 3)), 3, 1, 24, format, page_size=64, rank=16)


def _attends_with_past(format: CacheFormat) -> Iterator[Row]:
    for past in (1, 14, 15, 16, 17, 31, 32, 33, 47, 48, 49):
        yield Attend(((past, 1),), 3, 1, 64, format)
        yield Attend(((past, 2), (0, 3), (5, 1), (16, 16)), 8, 2, 32, format)
        yield Attend(((past, 1), (past + 1, 1), (3, 1)), 4, 4, 80, format, window=16)
        yield Attend(((past, 20),), 6, 2, 16, format, window=33, page_size=32)
    yield Attend(tuple((length, 1) for length in range(1, 34)), 2, 1, 32, format)
    yield Attend(((511, 2), (512, 1), (700, 3)), 4, 2, 16, format, window=None, page_size=64)
    yield Attend(((700, 3),), 4, 2, 16, format, window=100)
