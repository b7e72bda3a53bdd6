"""Weights that are read in blocks of rows: the same numbers as in one piece, and little memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.backends.native.backend import NativeBackend
from brise.errors import UnsupportedError
from brise.models.weights import Array, Dense, Quant, Stack, Stored
from tests.backends.inputs import weight

BACKEND = NativeBackend(threads=2)
OPS = BACKEND.ops()


def recorded(data: Array, asked: list[tuple[int, int]]) -> Callable[[int, int], Array]:
    """Rows of `data`; requests are recorded."""
    def rows(first: int, last: int) -> Array:
        asked.append((first, last))
        return data[first:last]
    return rows


@pytest.mark.parametrize(("format", "rows", "cols"), [
    ("F32", 33, 70), ("BF16", 4099, 512), ("F16", 1, 3), ("Q4_0", 2000, 1024), ("Q6_K", 17, 512)])
def test_a_streamed_weight_is_the_same_as_one_in_one_piece(format: str, rows: int, cols: int) -> None:
    rng = np.random.default_rng(rows)
    whole = weight(rng, format, rows, cols)
    assert isinstance(whole, Dense | Quant)
    asked: list[tuple[int, int]] = []
    stored = Stored(format, (rows, cols), recorded(whole.data, asked))
    x = rng.standard_normal((5, cols)).astype(np.float32)
    in_parts, in_one = (OPS.linear(x, BACKEND.place("w", w)) for w in (stored, whole))
    assert (in_parts == in_one).all()
    assert [first for first, _ in asked] == [0, *(last for _, last in asked[:-1])] and asked[-1][1] == rows
    assert all((last - first) * cols <= 1 << 20 for first, last in asked)


def test_a_streamed_vector_is_one() -> None:
    data = np.array([0x3F80, 0x4000, 0xC000], np.uint16)  # 1, 2, -2
    placed = BACKEND.place("norm", Stored("BF16", (3,), lambda first, last: data[first:last]))
    assert (OPS.bias(np.zeros((1, 3), np.float32), placed) == [1, 2, -2]).all()


def test_a_stack_may_have_streamed_matrices() -> None:
    matrices = np.random.default_rng(0).standard_normal((3, 20, 16)).astype(np.float32)
    stack = Stack(tuple(Stored("F32", (20, 16), recorded(matrix, [])) for matrix in matrices))
    whole = Stack(tuple(Dense("F32", (20, 16), matrix) for matrix in matrices))
    x = np.ones((4, 3, 16), np.float32)
    results = [OPS.heads_linear(x, BACKEND.place("wk_b", weights)) for weights in (stack, whole)]
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize(("format", "cols"), [("IQ2_XS", 256), ("Q4_0", 33), ("Q4_K", 32)])
def test_what_no_kernel_takes_is_refused_before_a_row_is_read(format: str, cols: int) -> None:
    asked: list[tuple[int, int]] = []
    with pytest.raises(UnsupportedError, match="layers.0.wq: "):
        BACKEND.place("layers.0.wq", Stored(format, (16, cols), recorded(np.zeros((16, 1), np.uint8), asked)))
    assert not asked
