"""wkv_b becomes the stacks of the absorbed form: the same numbers, whatever format the file has them in."""

from __future__ import annotations

import numpy as np
import pytest

from brise.backends.reference.ops import numbers
from brise.checkpoint.split_latent import split
from brise.errors import CheckpointError
from brise.models.weights import Array, Dense, Quant, Stack, Stored
from tests.backends.inputs import weight

HEADS, NOPE, VALUE, RANK = 3, 8, 12, 64
ROWS = HEADS * (NOPE + VALUE)


def as_stored(kind: Dense | Quant) -> Stored:
    return Stored(kind.format, kind.shape, lambda a, b: kind.data[a:b])


def drawn(format: str) -> Dense | Quant:
    made = weight(np.random.default_rng(0), format, ROWS, RANK)
    assert isinstance(made, Dense | Quant)
    return made


def values(stack: Stack) -> Array:
    return np.stack([numbers(matrix, np.float32) for matrix in stack.matrices])


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_heads_hold_the_rows_of_the_file(format: str, stored: bool) -> None:
    whole = drawn(format)
    expected = numbers(whole, np.float32).reshape(HEADS, NOPE + VALUE, RANK)
    wk_b, wv_b = split(as_stored(whole) if stored else whole, HEADS, NOPE, VALUE)
    assert (wk_b.shape, wv_b.shape) == ((HEADS, RANK, NOPE), (HEADS, VALUE, RANK))
    assert {matrix.format for matrix in wv_b.matrices} == {format}
    np.testing.assert_array_equal(values(wv_b), expected[:, NOPE:])
    rounding = 2.0**-11 if format.startswith("Q") else 0.0
    np.testing.assert_allclose(values(wk_b), expected[:, :NOPE].swapaxes(1, 2), rtol=rounding, atol=rounding * 1e-3)


def test_keys_may_be_read_in_pieces_and_again() -> None:
    wk_b, _ = split(drawn("F32"), HEADS, NOPE, VALUE)
    matrix = wk_b.matrices[1]
    assert isinstance(matrix, Stored)
    pieces = np.concatenate([matrix.rows(first, min(first + 24, RANK)) for first in range(0, RANK, 24)])
    np.testing.assert_array_equal(pieces, matrix.rows(0, RANK))


def test_rows_that_are_not_the_heads_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rows of wkv_b is 60, allowed is 4 heads of 8"):
        split(drawn("F32"), 4, NOPE, VALUE)
