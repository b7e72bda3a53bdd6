"""Shaders of linears on the software device: against NumPy in float64, and the same bits however the work is shared."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from brise.backends.native.backend import NativeBackend
from brise.backends.reference.ops import numbers
from brise.models.weights import Array, Dense, Placed, Quant, Weight
from tests import tolerances
from tests.backends import emulate
from tests.backends.inputs import BLOCKS, normal, off_ties, weight
from tests.backends.vulkan.lavapipe import Lavapipe

PLAIN = ("F16", "BF16", "F32")
UNTOUCHED = np.float32(-12345.0)
QBLOCK = np.dtype([("q", "i1", 32), ("scale", "f4"), ("sum", "f4"), ("count", "i4"), ("half", "i4", 2),
                   ("half_sum", "f4", 2), ("unused", "i4")])


@dataclass(frozen=True)
class Split:
    """How a dispatch shares the work: the specialization constants of shaders/README.md."""

    size: int
    slots: int
    tokens: int

    def groups(self, tokens: int, rows: int) -> tuple[int, int, int]:
        return -(-tokens // self.tokens), -(-rows // (self.size // self.slots)), 1

    @property
    def constants(self) -> list[int]:
        return [self.size, self.slots, self.tokens]


# One invocation for 16 tokens of a row; eight for one token; two for four, in more than one pass from 9 chunks on.
MANY, ONE, FEW = SPLITS = Split(128, 1, 16), Split(128, 8, 1), Split(32, 2, 4)


def quantize(lavapipe: Lavapipe, x: Array) -> Array:
    """x (T, D) as QBlocks (T, D / 32)."""
    tokens, cols = x.shape
    blocks = np.zeros((tokens, cols // 32), QBLOCK)
    push = struct.pack("5I", cols, tokens, 0, cols, 0)
    return lavapipe.dispatch("quantize", [x, blocks.view(np.uint8)], push, (-(-cols // 256), tokens, 1))[1].view(QBLOCK)


def tiles(w: Weight) -> Array:
    placed = NativeBackend().place("w", w)
    assert isinstance(placed, Placed)
    return np.asarray(placed.handle.bytes())


def linear(lavapipe: Lavapipe, w: Weight, x: Array, split: Split) -> Array:
    """x (T, D) times w (O, D) transposed, by the shaders; nothing else is written."""
    (rows, cols), tokens = w.shape, len(x)
    out = np.full((tokens + 1, rows + 3), UNTOUCHED, np.float32)
    name = f"linear_{w.format.lower()}"
    if isinstance(w, Dense):
        inputs, offsets = x, (0, cols)
    else:
        inputs, offsets = quantize(lavapipe, x).view(np.uint8), (0,)
    push = struct.pack(f"{6 + len(offsets)}I", rows, cols, tokens, 0, *offsets, 2, rows + 3)
    after = lavapipe.dispatch(name, [tiles(w), inputs, out], push, split.groups(tokens, rows), split.constants)[2]
    inside = np.zeros(out.shape, bool)
    inside[:tokens, 2:2 + rows] = True
    assert (after[~inside] == UNTOUCHED).all()
    return after[:tokens, 2:2 + rows]


def shapes(format: str) -> Sequence[tuple[int, int, int]]:
    """Tokens, columns, rows: parts of tiles, of chunks and of tokens taken together; one and several passes."""
    if format in BLOCKS and BLOCKS[format][0] == 256:
        return (1, 256, 1), (2, 768, 33), (17, 512, 150), (3, 2816, 16)
    if format in BLOCKS:
        return (1, 32, 1), (2, 576, 33), (17, 320, 150), (3, 2592, 16)
    return (1, 1, 1), (2, 577, 33), (17, 33, 150), (3, 2561, 16)


@pytest.mark.parametrize("format", [*BLOCKS, *PLAIN])
def test_a_linear_is_near_numpy_and_has_one_order_of_sums(lavapipe: Lavapipe, format: str) -> None:
    for tokens, cols, rows in shapes(format):
        rng = np.random.default_rng((tokens, cols, rows))
        w = weight(rng, format, rows, cols)
        x = normal(rng, (tokens, cols), np.float32) if format in PLAIN else off_ties(rng, (tokens, cols), emulate.GROUP)
        y = linear(lavapipe, w, x, MANY)
        near_numpy(w, x, y)
        for split in (ONE, FEW):
            assert linear(lavapipe, w, x, split).tobytes() == y.tobytes(), (split, tokens, cols, rows)


def near_numpy(w: Weight, x: Array, y: Array) -> None:
    """Within the tolerances of NumPy's float64, and of the CPU's kernels within as much again."""
    plain = numbers(w, np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(plain).T
    if isinstance(w, Dense):
        allowed, expected = tolerances.float_linear(x.shape[1]) * size, x.astype(np.float64) @ plain.T
    else:
        allowed, expected = tolerances.QUANTISED_LINEAR * size, emulate.quantized_linear(x, w)
    assert (np.abs(y - expected) <= allowed).all(), float((np.abs(y - expected) / np.maximum(size, 1e-30)).max())
    backend = NativeBackend()
    assert (np.abs(y - backend.ops().linear(x, backend.place("w", w))) <= 2 * allowed).all()


@pytest.mark.parametrize("format", BLOCKS)
def test_nothing_saturates_at_the_ends_of_the_ranges(lavapipe: Lavapipe, format: str) -> None:
    rng, cols = np.random.default_rng(0), 9 * BLOCKS[format][0]
    w = weight(rng, format, 16, cols, extreme=True)
    x = rng.choice(np.array([-2.0, 2.0], np.float32), (3, cols))
    near_numpy(w, x, linear(lavapipe, w, x, ONE))


def test_exponents_of_mxfp4_reach_from_end_to_end(lavapipe: Lavapipe) -> None:
    w = weight(np.random.default_rng(0), "MXFP4", 16, 8 * 32)
    assert isinstance(w, Quant)
    w.data.reshape(16, 8, 17)[..., 0] = np.array([2, 3, 20, 100, 127, 128, 200, 240])
    x = np.zeros((8, 256), np.float32)
    for block in range(8):  # one block for each token, so that the largest exponent does not hide the others
        x[block, 32 * block:32 * block + 32] = np.arange(-16, 16)
    near_numpy(w, x, linear(lavapipe, w, x, MANY))


def test_parts_of_buffers_are_addressed(lavapipe: Lavapipe) -> None:
    """Rows from 16 on for tokens from 1 on give the bits of the whole."""
    rng = np.random.default_rng(5)
    w, x = weight(rng, "Q4_K", 40, 512), off_ties(rng, (4, 512), emulate.GROUP)
    whole = linear(lavapipe, w, x, MANY)
    packed, blocks, out = tiles(w), quantize(lavapipe, x), np.full((4, 40), UNTOUCHED, np.float32)
    push = struct.pack("7I", 24, 512, 3, packed.size // 3 // 4, 16, 40 + 16, 40)
    buffers = [packed, blocks.view(np.uint8), out]
    after = lavapipe.dispatch("linear_q4_k", buffers, push, ONE.groups(3, 24), ONE.constants)[2]
    assert (after[1:, 16:] == whole[1:, 16:]).all()
    assert (after[0] == UNTOUCHED).all() and (after[:, :16] == UNTOUCHED).all()


# ---- activations ----

def quantize_row(x: Array) -> Array:
    """QBlocks of rows of activations as native/rows.h makes them, in NumPy's float32."""
    grouped = x.reshape(len(x), -1, 32)
    top = np.abs(grouped).max(-1)
    out = np.zeros(top.shape, QBLOCK)
    out["scale"] = top / np.float32(127)
    has_inverse = out["scale"] >= np.finfo(np.float32).tiny
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=has_inverse)
    codes = np.rint(grouped * inverse[..., None]).astype(np.int32)
    out["q"], out["count"] = codes, codes.sum(-1)
    out["half"] = codes.reshape(*top.shape, 2, 16).sum(-1)
    counts, halves = (out[name].astype(np.float32) for name in ("count", "half"))
    out["sum"], out["half_sum"] = out["scale"] * counts, out["scale"][..., None] * halves
    return out


def test_activations_have_the_bits_of_the_cpu(lavapipe: Lavapipe) -> None:
    rng = np.random.default_rng(2)
    for tokens, cols in ((1, 32), (3, 576), (2, 2080)):
        x = normal(rng, (tokens, cols), np.float32) * np.exp(normal(rng, (tokens, 1), np.float32, 8))
        x[0, :32] = 0
        assert quantize(lavapipe, x).tobytes() == quantize_row(x).tobytes()


def test_quotients_are_rounded_to_nearest_even(lavapipe: Lavapipe) -> None:
    """Any size from the smallest with a scale to one whose sum is finite: scale and inverse are divisions."""
    bits = np.random.default_rng(3).integers(0x03FE0000, 0x7F000000, 20480, np.uint32)
    x = np.zeros((len(bits) // 64, 64 * 32), np.float32)
    x[:, ::32] = bits.view(np.float32).reshape(-1, 64)
    x[:, 1::32] = x[:, ::32] / 3
    x[0, 0] = np.float32(127) * np.finfo(np.float32).tiny
    assert quantize(lavapipe, x).tobytes() == quantize_row(x).tobytes()


def test_tiny_activations_count_as_zero_and_lost_ones_spread(lavapipe: Lavapipe) -> None:
    x = np.zeros((3, 32), np.float32)
    x[0], x[1, 3], x[2, 31] = 1e-37, np.inf, np.nan
    blocks = quantize(lavapipe, x)
    assert not blocks["q"].any() and not blocks[0]["sum"].any()
    w = weight(np.random.default_rng(0), "Q8_0", 16, 32)
    y = linear(lavapipe, w, x, ONE)
    assert not y[0].any() and not np.isfinite(y[1:]).any()


# ---- adapters ----

@pytest.mark.parametrize("format", ["BF16", "F32"])
@pytest.mark.parametrize("rank", [1, 16, 23, 300])
def test_an_adapter_adds_its_part(lavapipe: Lavapipe, format: str, rank: int) -> None:
    rng, rows, tokens, scale = np.random.default_rng(rank), 79, 5, np.float32(0.7)
    b, h = weight(rng, format, rows, rank), normal(rng, (tokens, rank), np.float32)
    y, gain = normal(rng, (tokens, rows), np.float32), rng.uniform(0.5, 2, rows).astype(np.float32)
    plain = numbers(b, np.float64)
    exact = y + float(scale) * (h.astype(np.float64) @ plain.T)
    allowed = tolerances.low_rank(h.astype(np.float64), np.eye(rank), plain, float(scale), y.astype(np.float64))
    first = None
    for has_gain in (0, 1):
        push = struct.pack("8IfI", rows, rank, tokens, 0, 0, rank, 0, rows, scale, has_gain)
        results = [lavapipe.dispatch(f"low_rank_{format.lower()}", [tiles(b), h, y, gain], push,
                                     split.groups(tokens, rows), split.constants)[2]
                   for split in SPLITS]
        factor = gain if has_gain else np.float32(1)
        assert (np.abs(results[0] - exact * factor) <= allowed * factor).all()
        assert len({result.tobytes() for result in results}) == 1
        first = results[0] if first is None else first
    assert (results[0] == first * gain).all()
