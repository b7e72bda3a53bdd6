"""A gateway with its large model, for the tests of a whole file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.rig import Rig, rig


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    """A gateway and its large model, started once for a file's tests."""
    with rig() as made:
        yield made


@pytest.fixture
def made(module_rig: Rig) -> Rig:
    """The same, with nothing left of the tests before."""
    module_rig.live.wait_idle()
    module_rig.fake.received.clear()
    module_rig.captured.clear()
    return module_rig
