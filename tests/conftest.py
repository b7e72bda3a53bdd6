"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from brise import settings
from brise.errors import StoreError
from brise.hub.store import ModelStore
from tests.store_fixtures import opener, place, postgres_url, store  # noqa: F401  (fixtures)

# The same examples in every run, so that nobody's change fails on what another one brought: new ones are looked for
# with `--hypothesis-profile explore`. No deadlines: machines are shared.
hypothesis.settings.register_profile("brise", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("brise")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2 GGUF: BRISE_TEST_SMOLLM2, or the model store, which scripts/test fills. Else: skip."""
    given = os.environ.get("BRISE_TEST_SMOLLM2")
    if given:
        return Path(given)
    models = ModelStore(settings.read().home)
    try:
        return models.path(models.get("smollm2"))
    except StoreError:
        pytest.skip("needs the real model: brise pull smollm2, or set BRISE_TEST_SMOLLM2")
