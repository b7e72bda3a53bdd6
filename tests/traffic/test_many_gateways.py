"""Several gateways on one store: one ledger without gaps, one key for each subject, one thread of conversations."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from brise.errors import StoreError
from brise.traffic import ledger
from brise.traffic.keys import Key
from brise.traffic.schema import EXCHANGE_COLUMNS, KEYS, TRAFFIC, exchange_row, insert, packed
from brise.traffic.seal import derived, load_or_create_master_key, new_key, seal
from brise.traffic.sql_store import SqlStore
from brise.traffic.sqlite_store import SqliteDatabase
from brise.traffic.stores import open_store, open_threads
from tests.store_fixtures import Opener
from tests.traffic.records import answer, exchange

T = TypeVar("T")


def at_once(stores: Sequence[T], act: Callable[[int, T], None]) -> None:
    start, failed = threading.Barrier(len(stores)), list[BaseException]()

    def run(number: int, store: T) -> None:
        start.wait()
        try:
            act(number, store)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def test_all_may_start_at_once(place: str, tmp_path: Path) -> None:
    opened: list[SqlStore] = []

    def start(number: int, _: None) -> None:
        opened.append(open_store(place, tmp_path))
        opened[-1].add([exchange(str(number))])

    at_once([None] * 6, start)
    assert [store.count() for store in opened] == [6] * 6
    assert all(found.request is not None for found in opened[0].exchanges())
    for store in opened:
        store.close()


def test_all_append_to_one_ledger_without_gaps(opener: Opener) -> None:
    stores = [opener() for _ in range(4)]
    at_once(stores, lambda number, store: [store.append("line", {"by": number, "at": at}) for at in range(10)]
            and None)
    entries = list(stores[0].ledger())
    assert [entry.number for entry in entries] == list(range(1, 41)) and ledger.check_chain(entries) is None
    for number in range(4):
        assert [entry.body["at"] for entry in entries if entry.body["by"] == number] == list(range(10))


def test_all_read_what_one_sealed(opener: Opener) -> None:
    stores = [opener() for _ in range(3)]
    at_once(stores, lambda number, store: store.add([exchange(f"{number}{at}", subject="anna") for at in range(10)]))
    for store in stores:
        assert store.count() == 30 and all(found.request is not None for found in store.exchanges())
    assert stores[0].forget("anna") == 30
    assert all(found.request is None for found in stores[1].exchanges())


def test_one_forgets_while_another_writes(opener: Opener) -> None:
    """What the other writes later gets a new key: it can be read, and nothing older can."""
    first, second = opener(), opener()
    first.add([exchange("a", subject="anna")])
    second.forget("anna")
    first.add([exchange("b", subject="anna")])
    assert [found.request is None for found in second.exchanges()] == [True, False]


def test_a_conversation_may_go_from_one_gateway_to_another(opener: Opener, tmp_path: Path) -> None:
    first, second = opener(), opener()
    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "A"}
    placed, threads = open_threads(first, tmp_path).place(exchange(
        "1", conversation="", request={"messages": [user]}, response={"choices": [{"message": said}]}))
    first.add([placed], threads=threads)
    found, _ = open_threads(second, tmp_path).place(exchange("2", conversation="", request={
        "messages": [user, said, user]}))
    assert (found.parent, found.conversation) == ("1", "1")


def test_without_the_same_master_key_bodies_do_not_open(place: str, opener: Opener, tmp_path: Path) -> None:
    opener().add([exchange("a")])
    if place.startswith("postgresql"):
        other = open_store(place, tmp_path / "elsewhere")
    else:
        load_or_create_master_key(tmp_path / "elsewhere" / "gateway" / "keys")
        for name in ("subjects.sqlite", "subjects.sqlite-wal"):
            source = tmp_path / "gateway" / "keys" / name
            (tmp_path / "elsewhere" / "gateway" / "keys" / name).write_bytes(source.read_bytes())
        other = open_store(place, tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="another master key"):
        list(other.exchanges())
    assert other.count() == 1
    other.close()


def test_a_copy_of_the_rows_forgets_with_the_key(opener: Opener, place: str, tmp_path: Path) -> None:
    if place.startswith("postgresql"):
        pytest.skip("there keys and rows are in one database")
    store = opener()
    store.add([exchange("a", subject="anna"), exchange("b", 2.0, subject="eva")])
    store.close()
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(Path(place).read_bytes())
    opener().forget("anna")
    copied = open_store(copy, tmp_path)
    assert [found.request is None for found in copied.exchanges()] == [True, False]
    copied.close()


def test_a_store_forgets_for_itself_alone(opener: Opener, tmp_path: Path) -> None:
    main = opener()
    main.add([exchange("a", subject="anna")])
    with closing(open_store(tmp_path / "sample.sqlite", tmp_path)) as sample:
        sample.add([exchange("a", subject="anna")])
        assert sample.forget("anna") == 1
        assert [found.request for found in sample.exchanges()] == [None]
    assert [found.request is None for found in main.exchanges()] == [False]


def test_a_store_names_the_others_that_hold_a_subject(tmp_path: Path) -> None:
    with closing(open_store(None, tmp_path)) as main, closing(open_store(tmp_path / "s.sqlite", tmp_path)) as sample:
        for store in (main, sample):
            store.add([exchange("a", subject="anna")])
        assert sample.holders("anna") == [str(tmp_path / "gateway" / "traffic.sqlite")] and not sample.holders("eva")
        sample.forget("anna")
        assert not main.holders("anna") and len(sample.holders("anna")) == 1
        assert sample.forget("anna", everywhere=True) == 0
        assert [found.request for found in main.exchanges()] == [None]


def shared_key(home: Path, subject: str) -> Key:
    """A subject's key as layout 2 had it, for all stores of this home."""
    master = load_or_create_master_key(home / "gateway" / "keys")
    key = Key("0123456789abcdef", new_key())
    with closing(SqliteDatabase(home / "gateway" / "keys" / "subjects.sqlite", KEYS)) as keys:
        with keys.transaction() as transaction:
            transaction.run("INSERT INTO keys (id, owner, wrapped) VALUES (?, ?, ?)", (
                key.id, derived(master, f"subject:{subject}").hex(), seal(master, f"keys:{key.id}", key.secret)))
    return key


def written_with(key: Key, store: SqlStore, place: Path) -> None:
    """A row whose body is sealed under a key that its store did not make."""
    made = exchange("old", subject="anna")
    body = seal(key.secret, "exchanges:old", packed({"request": made.request, "response": made.response}))
    with closing(SqliteDatabase(place, TRAFFIC)) as database, database.transaction() as transaction:
        transaction.run_many(insert("exchanges", EXCHANGE_COLUMNS), [exchange_row(made, key.id, body)])
    assert [found.request for found in store.exchanges()] == [made.request]


def test_a_key_that_stores_share_is_given_up_by_the_one_that_forgets(tmp_path: Path) -> None:
    key = shared_key(tmp_path, "anna")
    with closing(open_store(tmp_path / "a.sqlite", tmp_path)) as one, closing(
            open_store(tmp_path / "b.sqlite", tmp_path)) as other:
        for name, store in (("a", one), ("b", other)):
            written_with(key, store, tmp_path / f"{name}.sqlite")
        one.add(answers=[answer("late", "old")])
        with closing(sqlite3.connect(tmp_path / "a.sqlite")) as source:
            source.execute("VACUUM INTO ?", (str(tmp_path / "copy.sqlite"),))
        assert one.forget("anna") == 1 and one.shares_key("anna") and not one.shares_key("eva")
        assert [found.request is None for store in (one, other) for found in store.exchanges()] == [True, False]
        with closing(open_store(tmp_path / "copy.sqlite", tmp_path)) as copy:
            assert [found.request for found in copy.exchanges()] == [None]
        assert one.forget("anna", everywhere=True) == 0 and not one.shares_key("anna")
        assert [found.request for found in other.exchanges()] == [None]
