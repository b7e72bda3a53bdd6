"""A store of each kind, empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from brise.gateway.sql_store import SqlStore
from brise.gateway.stores import open_store


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(tmp_path / "traffic.sqlite", tmp_path)
    yield opened
    opened.close()
