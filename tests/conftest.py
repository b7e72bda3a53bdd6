"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from brise import settings
from brise.errors import StoreError
from brise.hub.store import ModelStore
from tests import profiles
from tests.store_fixtures import opener, place, postgres_url, store  # noqa: F401  (fixtures)

profiles.register()
os.environ["BRISE_OTHER_STORES"] = "no"  # what Ollama or the Hugging Face library keep on this machine is no test's
os.environ["BRISE_PACKED_CACHE"] = "no"  # nor is what earlier runs have packed

# What --quick leaves out: tests that use one of these fixtures, have this marker, or lie in one of these places.
QUICK_SKIPS_FIXTURES = ("smollm2_path", "postgres_url", "repetitions")  # the real model, a server, simulations
QUICK_SKIPS_MARKER = "slow"
QUICK_SKIPS_PLACES = (
    # training, and judges that need torch
    "tests/tune/", "tests/api/test_tuning.py", "tests/cli/test_parity.py", "tests/cli/test_tune",
    "tests/cli/test_log_to_tune.py", "tests/backends/test_torch", "tests/checkpoint/test_adapters.py",
    "tests/checkpoint/test_merge.py",
    # processes of their own
    "tests/cli/test_bench.py", "tests/cli/test_serve", "tests/hub/test_hugging_face.py", "tests/memory/",
    "tests/serve/test_process.py", "tests/doctor/test_airgap.py", "tests/page/test_browser",
    # compilers, the whole path, every example
    "tests/native/", "tests/demo/", "tests/docs/", "tests/test_docs.py", "tests/test_examples.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("brise")
    group.addoption("--slow", action="store_true", help="run simulations and property tests in full")
    group.addoption("--quick", action="store_true", help="leave out what takes long (tests/conftest.py has the list)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes seconds; --quick leaves it out")
    if config.getoption("slow"):
        hypothesis_settings.load_profile("slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --quick, what lies in these places is not even imported: torch alone takes seconds."""
    name = collection_path.relative_to(config.rootpath).as_posix() + "/" * collection_path.is_dir()
    return True if config.getoption("quick") and name.startswith(QUICK_SKIPS_PLACES) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if is_slow(item)])
        items[:] = [item for item in items if not is_slow(item)]


def is_slow(item: pytest.Item) -> bool:
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
    return (item.get_closest_marker(QUICK_SKIPS_MARKER) is not None
            or any(name in QUICK_SKIPS_FIXTURES for name in fixtures))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are numbered: their text may hold a time (gzip's header has one), and the workers must agree on names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def repetitions(pytestconfig: pytest.Config) -> Callable[[int], int]:
    """How often a simulation is repeated: all of the given number with --slow, else a tenth, but 50 times at least."""
    whole = bool(pytestconfig.getoption("slow"))
    return lambda number: number if whole else min(number, max(number // 10, 50))


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
