"""The software device of the shader tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backends.vulkan.driver import require_driver
from tests.backends.vulkan.lavapipe import Lavapipe


@pytest.fixture(scope="session")
def lavapipe() -> Iterator[Lavapipe]:
    require_driver()
    device = Lavapipe()
    yield device
    device.close()
