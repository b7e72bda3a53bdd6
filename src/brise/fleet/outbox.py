"""The device's outbox: records that wait for the hub, within a budget of bytes, sealed as soon as there is a hub's key.

What does not fit is dropped, the lowest grade first and of it the oldest, and counted by grade; a record of a higher
grade is never dropped for one of a lower grade. What `add` returned is durable. Records leave in the order of their ids
and stay until the hub has acknowledged them, so what is sent twice is the same twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from brise.errors import FleetError
from brise.files.digests import DIGEST
from brise.fleet.sealed_records import MOST_RECORD_BYTES, MOST_RECORDS, Record, batch_bytes, record_json, seal_record
from brise.traffic.schema import DatabaseSchema, Transaction
from brise.traffic.sqlite_store import SqliteDatabase

# From the highest: alarms, roll-backs and device states; audits and labels; escalations that wait; samples.
Grade = Literal["alarm", "evidence", "waiting", "sample"]
GRADES: tuple[Grade, ...] = get_args(Grade)
ROW_BYTES = 200  # of the columns beside the body, and of SQLite's own
LEAST_BYTES = 64 << 10
SEAL_BYTES = 48  # what sealing adds to a body

_SCHEMA = DatabaseSchema((
    """CREATE TABLE IF NOT EXISTS records (
        id TEXT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, grade BIGINT NOT NULL, subject TEXT,
        sealed BIGINT NOT NULL, size BIGINT NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS records_grade ON records (grade, id)",
    "CREATE INDEX IF NOT EXISTS records_subject ON records (subject)",
    # Totals, so that no record costs a look at all others.
    "CREATE TABLE IF NOT EXISTS held (grade BIGINT PRIMARY KEY, bytes BIGINT NOT NULL)",
    """CREATE TRIGGER IF NOT EXISTS record_added AFTER INSERT ON records BEGIN
        INSERT INTO held (grade, bytes) VALUES (new.grade, new.size)
        ON CONFLICT (grade) DO UPDATE SET bytes = held.bytes + excluded.bytes; END""",
    """CREATE TRIGGER IF NOT EXISTS record_gone AFTER DELETE ON records BEGIN
        UPDATE held SET bytes = bytes - old.size WHERE grade = old.grade; END""",
    "CREATE TABLE IF NOT EXISTS dropped (grade TEXT PRIMARY KEY, number BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS last (name TEXT PRIMARY KEY, id TEXT NOT NULL)"))


class Outbox:
    """One device's outbox in a file of its own. Its methods may be called from any thread.

    `fleet`, `device` and `hub_key` are what the device got when it enrolled. A device that has not enrolled keeps its
    records in the clear, in a file for its owner only; they are sealed once they are sent.
    """

    def __init__(self, path: Path, most_bytes: int, now: Callable[[], float] = time.time, *, fleet: str = "",
                 device: str = "", hub_key: bytes | None = None) -> None:
        if most_bytes < LEAST_BYTES:
            raise FleetError(f"the outbox may take {most_bytes} bytes, {LEAST_BYTES} are the least")
        self._most, self._now = most_bytes, now
        self._fleet, self._device, self._key = fleet, device, hub_key
        self._database = SqliteDatabase(path, _SCHEMA)

    def add(self, kind: str, body: Mapping[str, Any], grade: Grade, subject: str | None = None) -> str:
        """Keeps a record, durably, and returns its id. `subject` is the digest of whom it is about.

        FleetError if it is larger than a record may be. One for which higher grades leave no room is dropped and
        counted.
        """
        if subject is not None and DIGEST.fullmatch(subject) is None:
            raise FleetError(f"the subject {subject[:64]!r} is no digest (sealed_records.subject_digest)")
        at_s = float(self._now())
        plain = record_json(kind, at_s, body)
        if len(plain) + SEAL_BYTES > MOST_RECORD_BYTES:
            raise FleetError(f"a record of kind {kind!r} has {len(plain)} bytes, {MOST_RECORD_BYTES - SEAL_BYTES} are "
                             "allowed")
        with self._database.transaction() as transaction:
            id = self._next_id(transaction, at_s)
            record = self._sealed(Record(id, at_s, kind, plain, subject))
            size, level = len(record.body) + ROW_BYTES, GRADES.index(grade)
            if not self._has_room(transaction, level, size):
                _count(transaction, level)
            else:
                transaction.run("INSERT INTO records (id, at_s, kind, grade, subject, sealed, size, body) "
                                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                                (id, at_s, kind, level, subject, int(self._key is not None), size, record.body))
        return id

    def batch(self, most_bytes: int) -> list[Record]:
        """The oldest records that fit into so many bytes of a batch, in order; at least one if there is any."""
        out, total = list[Record](), 0
        rows = self._database.rows("SELECT id, at_s, kind, subject, sealed, size FROM records ORDER BY id LIMIT ?",
                                   (MOST_RECORDS,))
        for id, at_s, kind, subject, is_sealed, size in rows:
            total += batch_bytes(Record(id, at_s, kind, b"")) + (size + SEAL_BYTES) // 3 * 4
            if out and total > most_bytes:
                break
            body = self._database.rows("SELECT body FROM records WHERE id = ?", (id,))
            if body:  # else it was dropped meanwhile
                record = Record(id, at_s, kind, bytes(body[0][0]), subject)
                out.append(record if is_sealed else self._sealed(record))
        return out

    def acknowledge(self, upto: str) -> None:
        """Forgets the records up to this id: the hub has them."""
        with self._database.transaction() as transaction:
            gone = transaction.run("DELETE FROM records WHERE id <= ?", (upto,))
            # A copy of an older outbox gives no id a second time that the hub has seen.
            transaction.run("INSERT INTO last (name, id) VALUES ('last', ?) ON CONFLICT (name) DO UPDATE SET "
                            "id = max(last.id, excluded.id)", (upto,))
        if gone:
            self._database.purge("records")

    def forget(self, subjects: Collection[str]) -> int:
        """Destroys the records about these subjects (their digests), and returns how many there were."""
        with self._database.transaction() as transaction:
            gone = sum(transaction.run("DELETE FROM records WHERE subject = ?", (one,)) for one in sorted(subjects))
        if gone:
            self._database.purge("records")
        return gone

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many records of each grade were dropped since the outbox was made."""
        known = {grade: int(number) for grade, number in self._database.rows("SELECT grade, number FROM dropped")}
        return {grade: known.get(grade, 0) for grade in GRADES}

    @property
    def held_bytes(self) -> int:
        """How many bytes of the budget are taken."""
        return int(self._database.rows("SELECT coalesce(sum(bytes), 0) FROM held")[0][0])

    def __len__(self) -> int:
        return int(self._database.rows("SELECT count(*) FROM records")[0][0])

    def close(self) -> None:
        self._database.close()

    def _sealed(self, record: Record) -> Record:
        return record if self._key is None else seal_record(self._key, self._fleet, self._device, record)

    def _next_id(self, transaction: Transaction, at_s: float) -> str:
        """16 hexadecimal digits: milliseconds and a counter. It grows, too, where the clock goes back."""
        rows = transaction.rows("SELECT id FROM last WHERE name = 'last'")
        least = int(rows[0][0], 16) + 1 if rows else 0
        id = f"{min(max(least, int(max(at_s, 0.0) * 1000) << 16), 2**64 - 1):016x}"
        transaction.run("INSERT INTO last (name, id) VALUES ('last', ?) ON CONFLICT (name) DO UPDATE SET "
                        "id = excluded.id", (id,))
        return id

    def _has_room(self, transaction: Transaction, level: int, size: int) -> bool:
        """Whether a new record fits. Those of its grade and lower ones are dropped for it, the lowest and oldest first;
        none, if all of them would not be enough.
        """
        held = {int(grade): int(bytes_) for grade, bytes_ in transaction.rows("SELECT grade, bytes FROM held")}
        excess = sum(held.values()) + size - self._most
        if excess > sum(bytes_ for grade, bytes_ in held.items() if grade >= level):
            return False
        while excess > 0:
            ((id, grade, bytes_),) = transaction.rows(
                "SELECT id, grade, size FROM records WHERE grade = (SELECT max(grade) FROM records) ORDER BY id "
                "LIMIT 1")
            transaction.run("DELETE FROM records WHERE id = ?", (id,))
            _count(transaction, grade)
            excess -= bytes_
        return True


def _count(transaction: Transaction, level: int) -> None:
    transaction.run("INSERT INTO dropped (grade, number) VALUES (?, 1) ON CONFLICT (grade) DO UPDATE SET "
                    "number = dropped.number + 1", (GRADES[level],))
