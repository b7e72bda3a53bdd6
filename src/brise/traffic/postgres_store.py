"""PostgreSQL under a store, for several gateways that share one store and one ledger.

Two connections, one for reading and one for writing, are made when they are needed and made again when they broke; a
write that broke with its connection is rolled back by the server, and its caller tries again (capture.py does).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg

from brise.errors import StoreError
from brise.traffic.schema import VERSION, DatabaseSchema, Row, accepted

CONNECT_S = 10
LOCK_MS = 5000  # how long to wait for another transaction, as with SQLite
ALONE = 0x6272697365  # "brise": the advisory lock of transactions that must be alone
LEADER = ALONE + 1  # the one that the leader holds as long as its connection lives


class PostgresDatabase:
    """One database, brought to `layout`."""

    def __init__(self, url: str, layout: DatabaseSchema) -> None:
        self.place = without_password(url)
        self._url = url
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._leading = threading.Lock()
        self._leader: psycopg.Connection[tuple[object, ...]] | None = None  # holds the lock if `_leads`
        self._leads = False
        self._reader: psycopg.Connection[tuple[object, ...]] | None = None
        self._writer: psycopg.Connection[tuple[object, ...]] | None = None
        self._is_closed = False
        try:
            self._prepare(layout)
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        with self._reading, self._errors():
            if self._reader is None or self._reader.closed:
                self._reader = self._connect()
            return list(self._reader.execute(_statement(sql), accepted(values)).fetchall())

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[PostgresTransaction]:
        with self._writing, self._errors():
            if self._writer is None or self._writer.closed:
                self._writer = self._connect()
            with self._writer.transaction():
                if alone:
                    self._writer.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))
                yield PostgresTransaction(self._writer)

    def now_s(self) -> float:
        return float(self.rows("SELECT extract(epoch FROM clock_timestamp())::double precision")[0][0])

    def lead(self) -> bool:
        with self._leading, self._errors():
            if self._leader is None or self._leader.closed:
                self._leader, self._leads = self._connect(), False
            if self._leads:
                self._leader.execute("SELECT 1")  # the lock went with the connection, if that broke
            else:
                asked = self._leader.execute("SELECT pg_try_advisory_lock(%s)", (LEADER,)).fetchone()
                self._leads = asked == (True,)
            return self._leads

    def purge(self, table: str) -> None:
        """Deleted rows stay in their pages until they are vacuumed; the server's own log and backups are not ours."""
        with self._writing, self._errors():
            if self._writer is None or self._writer.closed:
                self._writer = self._connect()
            self._writer.execute(_statement(f"VACUUM {table}"))

    def close(self) -> None:
        """Ends the connections. A thread that comes later gets a StoreError, and no new one that nobody would end."""
        with self._reading, self._writing, self._leading:
            self._is_closed = True
            for connection in (self._reader, self._writer, self._leader):
                if connection is not None:
                    connection.close()

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._is_closed:
            raise StoreError(f"the store {self.place!r} is closed")
        # synchronous_commit: what is acknowledged is on the server's disk, whatever its default.
        return psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_S, options=(
            f"-c lock_timeout={LOCK_MS} -c synchronous_commit=on -c client_encoding=UTF8"))

    def _prepare(self, layout: DatabaseSchema) -> None:
        with self.transaction(alone=True) as transaction:
            transaction.run("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            versions = transaction.rows("SELECT value FROM meta WHERE name = 'version'")
            version = int(versions[0][0]) if versions else 0
            if version > VERSION:
                raise StoreError(f"{self.place!r} was written by a newer brise: its layout is {version}, this one "
                                 f"knows up to {VERSION}", hint="update brise")
            if version < VERSION:
                for statement in layout.steps_from(version):
                    transaction.run(statement)
                transaction.run("INSERT INTO meta (name, value) VALUES ('version', ?) ON CONFLICT (name) "
                                "DO UPDATE SET value = excluded.value", (str(VERSION),))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the server or of the connection, as a StoreError."""
        try:
            yield
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
            hint = "is the server there, and may this user write to the database?"
            raise StoreError(f"the store {self.place!r} fails: {str(error).strip()}", hint=hint) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise StoreError(f"the store {self.place!r} refuses: {str(error).strip()}") from error


class PostgresTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self._connection = connection

    def run(self, sql: str, values: Row = ()) -> int:
        return self._connection.execute(_statement(sql), accepted(values)).rowcount

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_statement(sql), map(accepted, rows))

    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        return list(self._connection.execute(_statement(sql), accepted(values)).fetchall())


def without_password(url: str) -> str:
    """A URL that can be shown."""
    without = re.sub(r"(://[^/?#:]*):[^/?#]*@", r"\1@", url)
    return re.sub(r"(?i)([?&](?:ssl)?password=)[^&#]*", r"\1...", without)


def _statement(sql: str) -> str:
    """The statement for PostgreSQL. Texts compare byte by byte, as in SQLite, whatever the server's locale."""
    if sql.startswith("CREATE TABLE"):
        sql = re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', sql).replace(" BLOB", " BYTEA")
    return sql.replace("%", "%%").replace("?", "%s")
