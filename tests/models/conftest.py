"""Runs every model test that asks for it on every backend."""

from __future__ import annotations

import pytest

from tests.backends.under_test import NAMES, UnderTest, open_backend


@pytest.fixture(scope="session", params=NAMES)
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    return open_backend(request.param)
