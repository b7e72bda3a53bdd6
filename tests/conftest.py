"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from brise import settings
from brise.checkpoint.store import Store
from brise.errors import StoreError


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2 GGUF: BRISE_TEST_SMOLLM2, or the model store, which scripts/test fills. Else: skip."""
    given = os.environ.get("BRISE_TEST_SMOLLM2")
    if given:
        return Path(given)
    store = Store(settings.read().home)
    try:
        return store.path(store.get("smollm2"))
    except StoreError:
        pytest.skip("needs the real model: brise pull smollm2, or set BRISE_TEST_SMOLLM2")
