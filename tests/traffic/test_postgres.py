"""What is particular to a store on a server: it may be away, and its URL holds a password."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from brise.errors import MissingExtraError, StoreError
from brise.traffic import stores
from brise.traffic.capture import Capture
from brise.traffic.postgres_store import PostgresDatabase, without_password
from brise.traffic.schema import ALL
from brise.traffic.stores import open_store
from tests.traffic import postgres
from tests.traffic.records import exchange
from tests.waiting import wait_until

needs_server = pytest.mark.skipif(not postgres.is_possible(), reason="PostgreSQL is not installed")


@needs_server
def test_connections_that_broke_are_made_again(postgres_url: Callable[[], str], tmp_path: Path) -> None:
    url = postgres_url()
    store = open_store(url, tmp_path)
    store.add([exchange("a")])
    capture = Capture(store)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    capture.record(exchange("b"))
    assert capture.flush() and capture.drain().dropped == {}
    assert [found.id for found in store.exchanges()] == ["a", "b"]
    store.close()


@needs_server
def test_who_comes_after_the_end_opens_no_connection(postgres_url: Callable[[], str], tmp_path: Path) -> None:
    url = postgres_url()
    store, database = open_store(url, tmp_path), PostgresDatabase(url, ALL)
    for each in (store, database):
        each.close()
    for late in (store.count, lambda: store.append("back", {}), lambda: store.forget("eva"), database.lead):
        with pytest.raises(StoreError, match="is closed"):
            late()
    with psycopg.connect(url, autocommit=True) as admin:
        wait_until(lambda: admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchone() == (1,))


@needs_server
def test_a_newer_layout_is_refused(postgres_url: Callable[[], str], tmp_path: Path) -> None:
    url = postgres_url()
    open_store(url, tmp_path).close()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE meta SET value = '99'")
    with pytest.raises(StoreError, match="its layout is 99"):
        open_store(url, tmp_path)


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"postgresql://eva@127.0.0.1:1/x' fails.*") as caught:
        open_store("postgresql://eva:geheim@127.0.0.1:1/x", tmp_path)
    assert "geheim" not in str(caught.value) and "hint: is the server there" in str(caught.value)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brise.traffic.postgres_store", None)
    with pytest.raises(ModuleNotFoundError):  # ours is missing, which no extra would bring
        open_store("postgresql://host/x", tmp_path)
    monkeypatch.delitem(sys.modules, "brise.traffic.postgres_store")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'brise\[postgres\]'"):
        stores.open_store("postgresql://host/x", tmp_path)


@pytest.mark.parametrize(("url", "shown"), [
    ("postgresql://eva:p%40ss@db.example:5432/x?sslmode=require", "postgresql://eva@db.example:5432/x?sslmode=require"),
    ("postgresql:///x?host=/run&user=eva&password=geheim", "postgresql:///x?host=/run&user=eva&password=..."),
    ("postgresql://db/x", "postgresql://db/x")])
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
