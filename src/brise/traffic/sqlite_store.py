"""SQLite under a store: one file that the user owns, written ahead in FILE-wal, with a second file for the keys.

With `synchronous=FULL` a commit in WAL mode returns when the log is on the disk, so what is acknowledged survives a
SIGKILL and a power cut. NORMAL would survive the SIGKILL only (the log is then in the system's cache) and save one
fsync a transaction; the gateway writes many rows in one, on a thread of its own, so it pays that.
Readers have a connection of their own: in WAL mode they wait for no writer.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from brise.errors import StoreError
from brise.files.atomic import private_folder
from brise.traffic.schema import VERSION, DatabaseSchema, Row, accepted

DAMAGED = "the file is damaged, or is none of brise; put back a copy, or name another file with --store"
RETRY_S = 0.01
BUSY_S = 5.0  # how long to wait for another process's transaction; ours take milliseconds
SETTINGS = ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL", "secure_delete = ON",
            "trusted_schema = OFF")
NEW_COLUMN = re.compile(r"ALTER TABLE (\w+) ADD COLUMN IF NOT EXISTS (\w+) (.+)")
FREED_PAGES = 20_000  # returned to the disk after a deletion: 80 MB at most, so that no writer waits for long


class SqliteDatabase:
    """One file, brought to `layout`."""

    def __init__(self, path: Path, layout: DatabaseSchema, busy_s: float = BUSY_S) -> None:
        self.place = str(path)
        self._busy_s = busy_s
        self._reading, self._writing = threading.Lock(), threading.Lock()
        with self._errors(), ExitStack() as opened:
            _make_private(path)
            self._writer = opened.enter_context(closing(self._connect(path)))
            self._reader = opened.enter_context(closing(self._connect(path)))
            self._prepare(layout)
            opened.pop_all()  # no error: they stay open

    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        with self._errors(), self._reading:
            return list(self._reader.execute(sql, accepted(values)))

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[SqliteTransaction]:
        """Every transaction is alone here: IMMEDIATE takes the write lock when it begins."""
        with self._writing:
            with self._errors():
                self._writer.execute("BEGIN IMMEDIATE")
            try:
                with self._errors():
                    yield SqliteTransaction(self._writer)
                    self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # some errors, such as a full disk, have ended it already
                    self._writer.execute("ROLLBACK")
                raise

    def now_s(self) -> float:
        return time.time()  # all that share a file are on one machine

    def lead(self) -> bool:
        return True  # servers share a store by PostgreSQL; who opens the same file here does everything by itself

    def purge(self, table: str) -> None:
        """Deleted content was overwritten (`secure_delete`); this truncates the log with older pages, and the file."""
        with self._errors(), self._writing:
            # `execute` would step once, and each step frees one page.
            self._writer.executescript(f"PRAGMA incremental_vacuum({FREED_PAGES})")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            for setting in SETTINGS:
                self._set(connection, setting)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set(self, connection: sqlite3.Connection, setting: str) -> None:
        """Several that make the file at once: SQLite does not wait by itself where another one turns WAL on."""
        until = time.monotonic() + self._busy_s
        while True:
            try:
                connection.execute(f"PRAGMA {setting}").fetchall()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(RETRY_S)

    def _prepare(self, layout: DatabaseSchema) -> None:
        version = self._reader.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise StoreError(f"{self.place!r} was written by a newer brise: its layout is {version}, "
                             f"this one knows up to {VERSION}", hint="update brise")
        if version == VERSION:
            return
        with self.transaction() as transaction:
            version = int(transaction.rows("PRAGMA user_version")[0][0])  # another process may have been faster
            for statement in layout.steps_from(version):
                _step(transaction, statement)
            transaction.run(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of SQLite and of the disk, as a StoreError that says what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError):
                raise
            raise StoreError(f"the store {self.place!r} fails: {error}", hint=_hint(error)) from error
        except UnicodeDecodeError:  # SQLite says what is damaged in the file's own words
            raise StoreError(f"the store {self.place!r} fails: its layout is no text", hint=DAMAGED) from None
        except OSError as error:
            raise StoreError(f"cannot open or make the store {self.place!r}: {error.strerror}") from error


class SqliteTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, sql: str, values: Row = ()) -> int:
        return self._connection.execute(sql, accepted(values)).rowcount

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        self._connection.executemany(sql, map(accepted, rows))

    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        return list(self._connection.execute(sql, accepted(values)))


def _step(transaction: SqliteTransaction, statement: str) -> None:
    """A statement that changes the layout. SQLite cannot add a column only if it is missing."""
    added = NEW_COLUMN.fullmatch(statement)
    if added is None:
        transaction.run(statement)
    elif not transaction.rows("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", (added[1], added[2])):
        transaction.run(f"ALTER TABLE {added[1]} ADD COLUMN {added[2]} {added[3]}")


def _make_private(path: Path) -> None:
    """Makes the file before SQLite does, for its owner only; SQLite gives its companions the same mode.

    One that is there is not opened: closing it would drop the locks of this process's other connections (POSIX).
    """
    private_folder(path.parent)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _hint(error: sqlite3.DatabaseError) -> str | None:
    match error.sqlite_errorcode & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "another program keeps it locked; close it"
        case sqlite3.SQLITE_FULL:
            return "make room on the disk, or delete old traffic: brise log expire --older-than 30d"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return DAMAGED
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
            return "it must be writable, and its folder too"
        case _:
            return None
