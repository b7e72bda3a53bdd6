"""Shaders of the ops that are neither linears nor attention on the software device, by the rows of the case table."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from brise.backends.rows import mean_patches, merged_patches, windows_of_rows
from tests.backends.cases import table
from tests.backends.inputs import BLOCKS, normal, weight
from tests.backends.rows import Row
from tests.backends.vulkan.device_ops import UNTOUCHED, DeviceBackend, DeviceOps
from tests.backends.vulkan.lavapipe import Lavapipe

OPS = ("take_rows", "put_rows", "bias", "add", "scale", "scale_queries", "rms_norm", "layer_norm", "rope", "silu_mul",
       "gelu_mul", "gelu", "gelu_tanh", "columns", "concat", "route")
TABLE = table()


def wrong(lavapipe: Lavapipe, row: Row) -> str | None:
    """What is wrong with the answer to one row, if anything is."""
    expected = row.run(ReferenceOps(precision=np.float64), ReferenceBackend(), np.float64)
    actual = row.run(DeviceOps(lavapipe), DeviceBackend(), np.float32)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected)
    return None if (error <= row.allowed(expected)).all() else f"{row}: off by {error.max()}"


@pytest.mark.parametrize("op", OPS)
def test_an_op_agrees_with_the_reference(lavapipe: Lavapipe, op: str) -> None:
    failures = [failure for row in TABLE[op] if (failure := wrong(lavapipe, row))]
    assert not failures, "\n".join(failures[:12])


@pytest.mark.parametrize("format", [*BLOCKS, "F32", "F16", "BF16"])
def test_embed_agrees_with_the_reference(lavapipe: Lavapipe, format: str) -> None:
    rows = TABLE[f"embed {format}"]
    failures = [failure for row in (rows[1], rows[7], *rows[-3:]) if (failure := wrong(lavapipe, row))]
    assert not failures, "\n".join(failures)


def test_a_table_may_lie_in_several_ranges(lavapipe: Lavapipe) -> None:
    """Each dispatch writes the tokens of its own rows, and leaves the others alone."""
    rng = np.random.default_rng(0)
    placed = DeviceBackend().place("table", weight(rng, "Q4_K", 48, 512))
    tokens = np.array([47, 0, 31, 16, 15, 32], np.int32)
    whole = DeviceOps(lavapipe).embed(placed, tokens)
    tiles = np.asarray(placed.handle.bytes())
    tile_words = len(tiles) // 3 // 4
    push = struct.pack("5i", 0, 16, 32, 512, tile_words)
    out = np.full((6, 512), UNTOUCHED, np.float32)
    part = lavapipe.dispatch("embed_q4_k", [tiles, tokens, out], push, (1, 6, 1))[2]
    is_in = tokens >= 16
    assert (part[is_in] == whole[is_in]).all() and (part[~is_in] == UNTOUCHED).all()


def test_a_row_does_not_depend_on_its_company(lavapipe: Lavapipe) -> None:
    rng = np.random.default_rng(1)
    x, w = normal(rng, (5, 577), np.float32), normal(rng, (577,), np.float32)
    push = struct.pack("2if", 577, 1, 1e-5)
    together = lavapipe.dispatch("rms_norm", [x, w, x], push, (1, 5, 1))[2]
    alone = lavapipe.dispatch("rms_norm", [x[3:4], w, x[3:4]], push, (1, 1, 1))[2]
    assert alone.tobytes() == together[3:4].tobytes()


def test_neighbours_of_patches_come_together(lavapipe: Lavapipe) -> None:
    """Of several images; merging only moves numbers, and a mean is of a few."""
    for size, grids in ((2, ((4, 6), (2, 2))), (3, ((3, 9),)), (1, ((2, 3),))):
        x = normal(np.random.default_rng(size), (sum(rows * columns for rows, columns in grids), 130), np.float32)
        ops = DeviceOps(lavapipe)
        assert (ops.merge_patches(x, grids, size) == merged_patches(x, grids, size)).all()
        allowed = size**2 * 2.0**-24 * merged_patches(np.abs(x), grids, size).reshape(-1, 130, size**2).sum(-1)
        mean = mean_patches(x.astype(np.float64), grids, size)
        assert (np.abs(ops.mean_patches(x, grids, size) - mean) <= allowed).all()


def test_windows_are_those_of_a_convolution(lavapipe: Lavapipe) -> None:
    for rows, width, size, stride in ((1, 1, 3, 1), (9, 80, 3, 1), (10, 33, 3, 2), (7, 5, 5, 3)):
        x = normal(np.random.default_rng(rows), (rows, width), np.float32)
        assert (DeviceOps(lavapipe).windows(x, size, stride) == windows_of_rows(x, size, stride)).all()

