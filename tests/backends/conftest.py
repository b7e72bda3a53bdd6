"""Runs every op test on every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from tests.backends.rows import Row
from tests.backends.under_test import NAMES, UnderTest, open_backend


@pytest.fixture(scope="session", params=NAMES)
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    return open_backend(request.param)


@pytest.fixture(scope="package")
def expected() -> Callable[[Row], np.ndarray]:
    """What the reference in float64 answers to a row of the table: computed once for all backends, 60 MB in all."""
    known: dict[Row, np.ndarray] = {}

    def answer(row: Row) -> np.ndarray:
        if row not in known:
            known[row] = row.run(ReferenceOps(precision=np.float64), ReferenceBackend(), np.float64)
            known[row].flags.writeable = False
        return known[row]
    return answer
