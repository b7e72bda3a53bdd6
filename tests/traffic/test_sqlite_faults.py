"""A store in a file: locks, full disks, damage and death cost no row that was acknowledged."""

from __future__ import annotations

import secrets
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brise.errors import StoreError
from brise.traffic import ledger
from brise.traffic.capture import Capture
from brise.traffic.schema import TRAFFIC
from brise.traffic.sqlite_store import BUSY_S, SqliteDatabase
from brise.traffic.stores import open_store
from tests.traffic.records import exchange

# Writes exchanges, answers and lines of the ledger, and says which are acknowledged, until it is killed.
WRITER = """
import sys
from pathlib import Path
from brise.traffic.stores import open_store
from tests.traffic.records import answer, exchange
folder, number = Path(sys.argv[1]), 0
store = open_store(folder / "t.sqlite", folder)
while True:
    ids = [f"{sys.argv[2]}-{number}-{place}" for place in range(3)]
    store.add([exchange(id, subject=f"s{number % 3}") for id in ids], [answer(f"a{id}", id) for id in ids])
    entry = store.append("line", {"number": number})
    print(number, entry.number, flush=True)
    number += 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    acknowledged: list[tuple[int, int, int]] = []
    for life in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(life)], stdout=subprocess.PIPE,
                                  text=True, cwd=Path(__file__).parents[2])
        assert writer.stdout is not None
        for _ in range(2 + (seed + life) % 4):
            number, line = writer.stdout.readline().split()
            acknowledged.append((life, int(number), int(line)))
        spin_until = time.perf_counter_ns() + (seed * 977 + life * 311) % 3000 * 1000
        while time.perf_counter_ns() < spin_until:  # at another place of a transaction each time; a sleep is too coarse
            pass
        writer.kill()
        rest = writer.stdout.read().splitlines()
        acknowledged += [(life, *map(int, line.split())) for line in rest if len(line.split()) == 2]
        writer.wait()
        writer.stdout.close()
    store = open_store(tmp_path / "t.sqlite", tmp_path)
    found = {each.id: each for each in store.exchanges()}
    answers = {each.id for each in store.answers(list(found))}
    for life, number, line in acknowledged:
        for place in range(3):
            kept = found[f"{life}-{number}-{place}"]
            assert kept.request is not None and f"a{kept.id}" in answers
        assert line <= len(list(store.ledger()))
    assert len(found) == len(answers) and len(found) % 3 == 0, "a transaction is there whole or not at all"
    assert ledger.check_chain(store.ledger()) is None
    store.add([exchange("after")])
    store.close()


def test_while_another_program_holds_the_lock_rows_wait_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    store = open_store(path, tmp_path)
    capture = Capture(store)
    capture.record(exchange("before"))
    assert capture.flush()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    for number in range(50):
        capture.record(exchange(f"{number:02d}", 2.0))
    assert time.monotonic() - start < BUSY_S and store.count() == 1  # readers see what was there
    holder.execute("ROLLBACK")
    holder.close()
    assert capture.flush() and store.count() == 51 and not capture.drain().dropped
    store.close()


def test_a_lock_that_stays_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    database = SqliteDatabase(path, TRAFFIC, busy_s=0.01)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"database is locked\nhint: another program"), database.transaction():
        pass
    holder.close()
    database.close()


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path / "t.sqlite", tmp_path)
    store.add([exchange("a")])
    database = store._database
    assert isinstance(database, SqliteDatabase)
    pages = database._writer.execute("PRAGMA page_count").fetchone()[0]
    database._writer.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    with pytest.raises(StoreError, match=r"disk is full\nhint: make room"):
        store.add([exchange(str(number), request={"x": str(number) * 5000}) for number in range(200)])
    assert [found.id for found in store.exchanges()] == ["a"]
    database._writer.execute("PRAGMA max_page_count = 100000").fetchall()
    store.add([exchange("b")])
    assert store.count() == 2
    store.close()


@pytest.mark.parametrize("content", [b"not a database, whatever its name says it is" * 20, b"SQLite format 3\0" * 40])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    open_store(tmp_path / "other.sqlite", tmp_path).close()  # so that the keys are there
    (tmp_path / "t.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=r"t.sqlite.*\nhint: the file is damaged"):
        open_store(tmp_path / "t.sqlite", tmp_path)
    assert (tmp_path / "t.sqlite").read_bytes() == content


def test_a_store_without_its_keys_is_not_taken_for_a_forgotten_one(tmp_path: Path) -> None:
    open_store(tmp_path / "t.sqlite", tmp_path).close()
    with pytest.raises(StoreError, match="but not the key to it"):
        open_store(tmp_path / "t.sqlite", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "t.sqlite", tmp_path).close()
    with sqlite3.connect(tmp_path / "t.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer brise: its layout is 99"):
        open_store(tmp_path / "t.sqlite", tmp_path)


def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    store = open_store(None, tmp_path / "home")
    store.add([exchange("a")])
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert len(files) >= 5 and all(path.stat().st_mode & 0o077 == 0 for path in files)
    store.close()


def test_what_was_deleted_is_gone_from_the_file(tmp_path: Path) -> None:
    store = open_store(tmp_path / "t.sqlite", tmp_path)
    store.add([exchange(f"{number:03d}", task="a-secret-task", request={"x": secrets.token_hex(2000)})
               for number in range(300)])
    store.expire(10.0)
    files = [path.read_bytes() for path in tmp_path.glob("t.sqlite*")]
    assert all(b"a-secret-task" not in content for content in files) and sum(map(len, files)) < 300_000
    store.close()


def test_a_store_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="mysql://.*allowed are a path and postgresql"):
        open_store("mysql://host/x", tmp_path)


def test_a_layout_that_is_no_text_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE broken_name (x)")
    made.close()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE broken_name", b"CREATE TABLX broken\xd5name"))
    with pytest.raises(StoreError, match="fails") as caught:
        SqliteDatabase(path, TRAFFIC)
    assert caught.value.hint is not None and "damaged" in caught.value.hint
