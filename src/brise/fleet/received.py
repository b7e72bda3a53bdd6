"""What the hub keeps of its devices: their records as they came, sealed, and what each said of its update last.

    records    labels, audits, alarms, escalations that wait, samples; opened only when the operator asks
    moves      beginnings and ends of updates that are not in the ledger yet
    devices    (enrolment.py) the newest state of each device, and the id of the newest record of it

A batch is kept in one transaction, and its records up to the device's mark are skipped: sent twice, kept once. Records
are bounded for each device and for all; the oldest go first, and those of the devices that have most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brise.files.digests import DIGEST, NAME
from brise.fleet import enrolment
from brise.fleet.rollout import MOST_REASON
from brise.fleet.sealed_records import BatchError, OpenedRecord, Record, RecordBatch, open_record
from brise.traffic.schema import Database, DatabaseSchema, Transaction

STATE_KIND = "device-state"
FAILED_STATES = ("gate-failed", "rolled-back")
STATES = ("fetched", "verified", "staged", "gate-passed", "trial", "committed", *FAILED_STATES)
TAKEN_BACK = re.compile(r"the roll-out was (halted|taken back)")  # a device's reason that says nothing of the bundle
ROW_BYTES = 200
MOVES_AT_ONCE = 500

SCHEMA = DatabaseSchema((
    *enrolment.TABLES,
    """CREATE TABLE IF NOT EXISTS records (
        device TEXT NOT NULL, id TEXT NOT NULL, received_s DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, subject TEXT,
        size BIGINT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (device, id))""",
    "CREATE INDEX IF NOT EXISTS records_received ON records (received_s)",
    "CREATE INDEX IF NOT EXISTS records_subject ON records (subject)",
    "CREATE INDEX IF NOT EXISTS records_kind ON records (kind, received_s)",
    "CREATE TABLE IF NOT EXISTS held (device TEXT PRIMARY KEY, bytes BIGINT NOT NULL)",
    """CREATE TRIGGER IF NOT EXISTS record_added AFTER INSERT ON records BEGIN
        INSERT INTO held (device, bytes) VALUES (new.device, new.size)
        ON CONFLICT (device) DO UPDATE SET bytes = held.bytes + excluded.bytes; END""",
    """CREATE TRIGGER IF NOT EXISTS record_gone AFTER DELETE ON records BEGIN
        UPDATE held SET bytes = bytes - old.size WHERE device = old.device; END""",
    """CREATE TABLE IF NOT EXISTS moves (
        number INTEGER PRIMARY KEY, rollout TEXT NOT NULL, device TEXT NOT NULL, bundle TEXT NOT NULL,
        state TEXT NOT NULL, reason TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"))


@dataclass(frozen=True)
class StateRecord:
    """What a device says of its update."""

    rollout: str
    bundle: str
    state: str
    reason: str
    at_s: float


@dataclass(frozen=True)
class ReceivedBatch:
    """A batch whose signature held, with the device states that were in it. `ignored` records could not be read."""

    batch: RecordBatch
    states: Sequence[tuple[str, StateRecord]]  # with the record's id
    ignored: int = 0


@dataclass(frozen=True)
class DeviceMove:
    """A device's step that is due in the ledger."""

    number: int
    rollout: str
    device: str
    bundle: str
    state: str
    reason: str


class ReceivedRecords:
    """The records of one hub. Its methods may be called from any thread."""

    def __init__(self, database: Database, now: Callable[[], float], most_bytes: int, most_device_bytes: int,
                 keep_s: float) -> None:
        self._database, self._now = database, now
        self._most, self._most_device, self._keep_s = most_bytes, most_device_bytes, keep_s

    def keep(self, batches: Iterable[ReceivedBatch]) -> list[str]:
        """Keeps these batches in one transaction. For each of them, the id up to which the hub has its records."""
        marks, now_s = list[str](), self._now()
        with self._database.transaction() as transaction:
            for received in batches:
                marks.append(self._keep(transaction, received, now_s))
        return marks

    def _keep(self, transaction: Transaction, received: ReceivedBatch, now_s: float) -> str:
        batch = received.batch
        mark = str(transaction.rows("SELECT mark FROM devices WHERE name = ?", (batch.device,))[0][0])
        new = [one for one in batch.records if one.id > mark]
        kept = [(batch.device, one.id, now_s, one.kind, one.subject, len(one.body) + ROW_BYTES, one.body)
                for one in new if one.kind != STATE_KIND]
        if kept:
            transaction.run_many("INSERT INTO records (device, id, received_s, kind, subject, size, body) VALUES "
                                 "(?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", kept)
            self._bound(transaction, batch.device)
        for id, state in received.states:
            if id > mark:
                self._take(transaction, batch.device, state)
        mark = max(mark, new[-1].id) if new else mark
        transaction.run("UPDATE devices SET seen_s = ?, mark = ?, dropped = ? WHERE name = ?",
                        (now_s, mark, json.dumps(dict(batch.dropped), sort_keys=True), batch.device))
        return mark

    def _take(self, transaction: Transaction, device: str, state: StateRecord) -> None:
        running = (", running = ?", (state.bundle,)) if state.state == "committed" else ("", ())
        transaction.run(f"UPDATE devices SET rollout = ?, bundle = ?, state = ?, reason = ?, state_s = ?{running[0]} "
                        "WHERE name = ?", (state.rollout, state.bundle, state.state, state.reason, state.at_s,
                                           *running[1], device))
        transaction.run("INSERT INTO moves (rollout, device, bundle, state, reason) VALUES (?, ?, ?, ?, ?)",
                        (state.rollout, device, state.bundle, state.state, state.reason))

    def _bound(self, transaction: Transaction, device: str) -> None:
        """A device that sends more than its share loses its own oldest records."""
        held = int(transaction.rows("SELECT bytes FROM held WHERE device = ?", (device,))[0][0])
        while held > self._most_device:
            ((id, size),) = transaction.rows("SELECT id, size FROM records WHERE device = ? ORDER BY id LIMIT 1",
                                             (device,))
            transaction.run("DELETE FROM records WHERE device = ? AND id = ?", (device, id))
            held -= size

    def expire(self) -> int:
        """Deletes records that are too old, and the oldest of the devices that have most while all are too many."""
        with self._database.transaction() as transaction:
            gone = transaction.run("DELETE FROM records WHERE received_s < ?", (self._now() - self._keep_s,))
            held = int(transaction.rows("SELECT coalesce(sum(bytes), 0) FROM held")[0][0])
            while held > self._most:
                ((device,),) = transaction.rows("SELECT device FROM held ORDER BY bytes DESC LIMIT 1")
                rows = transaction.rows("SELECT id, size FROM records WHERE device = ? ORDER BY id LIMIT 100",
                                        (device,))
                transaction.run("DELETE FROM records WHERE device = ? AND id <= ?", (device, rows[-1][0]))
                held, gone = held - sum(row[1] for row in rows), gone + len(rows)
        if gone:
            self._database.purge("records")
        return gone

    def forget(self, digest: str) -> int:
        """Destroys the records about a subject."""
        with self._database.transaction() as transaction:
            gone = transaction.run("DELETE FROM records WHERE subject = ?", (digest,))
        if gone:
            self._database.purge("records")
        return gone

    def moves(self) -> list[DeviceMove]:
        """The oldest steps that are not in the ledger yet."""
        return [DeviceMove(*row) for row in self._database.rows(
            "SELECT number, rollout, device, bundle, state, reason FROM moves ORDER BY number LIMIT ?",
            (MOVES_AT_ONCE,))]

    def settle(self, upto: int) -> None:
        """These steps are in the ledger."""
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM moves WHERE number <= ?", (upto,))

    def records(self, kind: str | None, after: tuple[str, str], limit: int) -> list[tuple[str, Record]]:
        """Records in the order of device and id, as they came."""
        condition, values = ("", ()) if kind is None else (" AND kind = ?", (kind,))
        return [(row[0], Record(row[1], row[2], row[3], bytes(row[4]), row[5])) for row in self._database.rows(
            "SELECT device, id, received_s, kind, body, subject FROM records WHERE (device, id) > (?, ?)"
            f"{condition} ORDER BY device, id LIMIT ?", (*after, *values, limit))]

    def numbers(self) -> tuple[int, int]:
        """How many records there are, and their bytes."""
        count, size = self._database.rows("SELECT count(*), coalesce(sum(size), 0) FROM records")[0]
        return int(count), int(size)


def opened_batch(batch: RecordBatch, private: bytes, fleet: str) -> ReceivedBatch:
    """The batch with its device states opened. One that cannot be read is counted, and blocks none behind it."""
    states, ignored = list[tuple[str, StateRecord]](), 0
    for record in batch.records:
        if record.kind == STATE_KIND:
            try:
                states.append((record.id, state_of(open_record(private, fleet, batch.device, record))))
            except BatchError:
                ignored += 1
    return ReceivedBatch(batch, states, ignored)


def state_of(record: OpenedRecord) -> StateRecord:
    """The state in a record of a device; BatchError if it says something else."""
    body: Mapping[str, Any] = record.body
    rollout, bundle, state, reason = (body.get(name, "") for name in ("rollout", "bundle", "state", "reason"))
    if not (isinstance(rollout, str) and NAME.fullmatch(rollout) and isinstance(bundle, str)
            and DIGEST.fullmatch(bundle) and state in STATES and isinstance(reason, str)):
        raise BatchError(f"the record {record.id} is no state of an update")
    said = "".join(char if char.isprintable() else " " for char in reason[:MOST_REASON])
    return StateRecord(rollout, bundle, state, said, record.at_s)
