"""A store of each kind, empty. PostgreSQL is left out where its programs are not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.traffic import postgres

KINDS = ("sqlite", pytest.param("postgres", marks=(pytest.mark.slow, pytest.mark.skipif(
    not postgres.is_possible(), reason="PostgreSQL is not installed"))))
Opener = Callable[[], SqlStore]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[Callable[[], str]]:
    """Starts the server when it is first needed, empties its database and gives the URL."""
    with ExitStack() as stack:
        urls: list[str] = []

        def emptied() -> str:
            if not urls:
                urls.append(stack.enter_context(postgres.server()))
            with psycopg.connect(urls[0], autocommit=True) as connection:
                connection.execute("DROP SCHEMA public CASCADE")
                connection.execute("CREATE SCHEMA public")
            return urls[0]

        yield emptied


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is to lie: a path or a URL."""
    if request.param == "sqlite":
        return str(tmp_path / "traffic.sqlite")
    return str(request.getfixturevalue("postgres_url")())


@pytest.fixture
def opener(place: str, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same store again and again, as several gateways do."""
    opened: list[SqlStore] = []

    def open_() -> SqlStore:
        opened.append(open_store(place, tmp_path))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Opener) -> SqlStore:
    return opener()
