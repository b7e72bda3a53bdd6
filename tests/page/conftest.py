"""A browser for all tests of the page, servers over stores that are made once, and pages that are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from brise.page.endpoint import PageOptions
from brise.page.routes import page
from brise.serve.serving import ServeSettings
from tests.page import browser as chromium
from tests.page.browser import Watched
from tests.serve.live import Live, live

Watch = Callable[..., Watched]


@pytest.fixture(scope="module")  # while playwright is open, its event loop runs here: other files need their own
def browser() -> Iterator[Browser]:
    with chromium.launched() as opened:
        yield opened


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of all stores of these tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(home))


Paged = Callable[..., Live]


@pytest.fixture(scope="module")
def paged(home: Path) -> Iterator[Paged]:
    """Starts a server with a stub model and a page over a store of its own: paged(stores.evidence)."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRISE_HOME", str(home))

        def start(fill: Callable[[Path], None] | None = None, **settings: Any) -> Live:
            place = home / f"{len(list(home.glob('*.sqlite')))}.sqlite"
            if fill is not None:
                fill(place)
            made = ServeSettings(page=page(PageOptions(place)), **settings)
            return stack.enter_context(live(settings=made))

        yield start


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Opens a page at a server: watch(server, color_scheme="dark")."""
    with ExitStack() as stack:
        yield lambda server, **options: stack.enter_context(chromium.watched(browser, server.url, **options))
