"""Every op of the contract on every backend, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps, numbers
from brise.models.weights import Quant
from tests import tolerances
from tests.backends import emulate
from tests.backends.cases import table
from tests.backends.inputs import BLOCKS
from tests.backends.rows import Linear, Row
from tests.backends.under_test import UnderTest

TABLE = table()


@pytest.mark.parametrize("group", TABLE)
def test_op_agrees_with_the_reference(under_test: UnderTest, group: str,
                                      expected: Callable[[Row], np.ndarray]) -> None:
    failures = [failure for row in TABLE[group] if (failure := compare(under_test, row, expected(row)))]
    assert not failures, f"{len(failures)} of {len(TABLE[group])} rows:\n" + "\n".join(failures[:12])


@pytest.mark.parametrize("format", BLOCKS)
def test_a_quantized_linear_equals_the_emulation(under_test: UnderTest, format: str) -> None:
    if not under_test.is_quantized:
        pytest.skip("the reference keeps activations in float32")
    failures = []
    for row in TABLE[f"linear {format}"]:
        assert isinstance(row, Linear)
        x, w = row.inputs()
        assert isinstance(w, Quant)
        actual = row.run(under_test.ops, under_test.backend, np.float32)
        size = np.abs(x) @ np.abs(numbers(w, np.float64)).T
        error = np.abs(actual - emulate.quantized_linear(x, w))
        if not (error <= tolerances.QUANTISED_LINEAR * size).all():
            failures.append(f"{row}: {np.nanmax(error / np.maximum(size, 1e-30)):.3g} of sum |x w|")
    assert not failures, "\n".join(failures[:12])


def test_named_keeps_a_copy_when_tracing() -> None:
    trace: dict[str, np.ndarray] = {}
    ops = ReferenceOps(trace)
    x = np.ones((2, 3), np.float32)
    assert ops.named(x, "ones") is x
    x += 1
    assert (trace["ones"] == 1).all()


def compare(under_test: UnderTest, row: Row, expected: np.ndarray) -> str | None:
    """What is wrong with the backend's answer to one row, if anything is."""
    actual = row.run(under_test.ops, under_test.backend, np.float32)
    if actual.shape != expected.shape or actual.dtype != np.float32:
        return f"{row}: {actual.dtype} {actual.shape} in place of float32 {expected.shape}"
    error, allowed = np.abs(actual - expected), np.broadcast_to(row.allowed(expected), expected.shape)
    if (error <= allowed).all():  # false for NaN
        return None
    worst = np.unravel_index(np.nan_to_num(error - allowed, nan=np.inf).argmax(), error.shape)
    return f"{row}: {actual[worst]} in place of {expected[worst]} at {worst}, allowed {allowed[worst]:.3g}"
