"""Rows of weights as weights of their own."""

from __future__ import annotations

import numpy as np
import pytest

from brise.errors import UnsupportedError
from brise.models.weights import Dense, Quant, Stack, Stored, Weight, part
from brise.quant.rows import float_rows, quantize

ROWS = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
BLOCKS = quantize("Q8_0", ROWS)


@pytest.mark.parametrize("weight", [
    Dense("F32", (40, 64), ROWS), Quant("Q8_0", (40, 64), BLOCKS),
    Stored("F32", (40, 64), lambda first, last: ROWS[first:last]),
    Stored("Q8_0", (40, 64), lambda first, last: BLOCKS[first:last])])
def test_a_part_has_the_numbers_of_its_rows(weight: Weight) -> None:
    own = part(weight, 16, 33)
    assert own.shape == (17, 64)
    assert (float_rows(own, 0, 17) == float_rows(weight, 16, 33)).all()
    assert (float_rows(part(own, 3, 9), 1, 5) == float_rows(weight, 20, 24)).all()


@pytest.mark.parametrize("weight", [Dense("F32", (64,), ROWS[0]), Stack((Dense("F32", (40, 64), ROWS),))])
def test_only_matrices_have_parts(weight: Weight) -> None:
    with pytest.raises(UnsupportedError, match="has no rows of its own"):
        part(weight, 0, 1)
