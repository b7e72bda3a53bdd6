"""What a device has to tell its hub goes into its outbox: states of updates, alarms, audits, and requests that wait.

Lines of the ledger carry their number, states their event's id: after a kill one may come twice, and counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from brise.errors import FleetError
from brise.files.atomic import staged_file
from brise.fleet.install import Installation
from brise.fleet.install_state import InstalledBundle, StateReport
from brise.fleet.offers import Forgotten
from brise.fleet.outbox import Grade, Outbox
from brise.fleet.sealed_records import subject_digest
from brise.fleet.strict_json import canonical, read
from brise.traffic.records import LedgerEntry
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query

FILE = "reported.json"
MOST_WAITING = 100  # requests that are moved at a time
SUMMARY_S = 3600.0
GRADES: Mapping[str, Grade] = {"back": "alarm", "void": "alarm", "tighten": "alarm", "raise": "alarm",
                               "changed": "alarm", "audit": "evidence"}


@dataclass(frozen=True)
class ReportMark:
    """How far this device has come: the last line of the ledger, and when it summed up its traffic."""

    line: int = 0
    summary_s: float = 0.0


class DeviceReports:
    """Fills the outbox from the device's store and installation. One thread uses it."""

    def __init__(self, outbox: Outbox, store: SqlStore, installation: Installation, folder: Path,
                 now: Callable[[], float], *, fleet: str = "", moves_waiting: bool = True) -> None:
        self._outbox, self._store, self._installation = outbox, store, installation
        self._path, self._now, self._fleet, self._moves_waiting = folder / FILE, now, fleet, moves_waiting
        try:
            self._mark = read(ReportMark, self._path.read_bytes(), FILE, 1 << 12)
        except FileNotFoundError:
            self._mark = ReportMark()

    def collect(self) -> None:
        """Takes what is new."""
        self._installation.take_reports(self._keep_state)
        self._take_lines()
        if self._moves_waiting:
            self._take_waiting()
        self._sum_up()

    def alarm(self, kind: str, body: Mapping[str, Any]) -> None:
        """Something that the hub is to know soon."""
        self._outbox.add(kind, body, "alarm")

    def forget(self, forgotten: Forgotten, bundles: Sequence[tuple[InstalledBundle, Sequence[str]]]) -> None:
        """Destroys the keys of the named subjects in this device's store, and their records in the outbox; flags
        bundles that were trained on what was destroyed (their digests stand beside them). Reports both."""
        if forgotten.number <= self._installation.state.forgotten:
            return
        named = set(forgotten.digests)
        subjects = [one for one in self._store.subjects() if subject_digest(self._fleet, one) in named]
        exchanges = sum(self._store.forget(subject) for subject in subjects)
        records = self._outbox.forget(named)
        flagged = tuple(installed.bundle for installed, digests in bundles if named & set(digests))
        self._outbox.add("forgotten", {"number": forgotten.number, "subjects": len(subjects), "exchanges": exchanges,
                                       "records": records, "flagged": list(flagged)}, "evidence")
        self._installation.set_forgotten(forgotten.number, flagged)

    def _keep_state(self, report: StateReport) -> None:
        body = {name: value for name, value in asdict(report).items() if value != ""}
        self._outbox.add("device-state", body, "alarm")

    def _take_lines(self) -> None:
        line = self._mark.line
        for entry in self._store.ledger(line):
            grade = GRADES.get(entry.kind)
            if grade is not None and entry.body.get("by") != "node":
                self._outbox.add("audit" if grade == "evidence" else "alarm", _of_line(entry), grade)
            line = entry.number
        self._moved(replace(self._mark, line=line))

    def _take_waiting(self) -> None:
        """Requests that wait for a large model, on a device that has none: the hub's answer is the only one there can
        be, so they leave the store's own queue. One too large for a record stays there, without blocking others."""
        for pending in self._store.pending(MOST_WAITING):
            exchange = self._store.exchange(pending.exchange)
            if exchange is not None and exchange.request is not None:
                subject = None if exchange.subject is None else subject_digest(self._fleet, exchange.subject)
                body = {"exchange": exchange.id, "asked_s": exchange.at_s, "task": exchange.task,
                        "kind": exchange.kind, "mode": exchange.mode, "request": exchange.request,
                        "answer": exchange.response}
                try:
                    self._outbox.add("escalation", body, "waiting", subject)
                except FleetError:
                    self._outbox.add("escalation", {**body, "request": None, "answer": None, "too_large": True},
                                     "waiting", subject)
            self._store.settle(pending.exchange)

    def _sum_up(self) -> None:
        """Numbers of the last hour's requests by who answered: a sample, the first to go where room is short."""
        now_s = self._now()
        if now_s - self._mark.summary_s < SUMMARY_S:
            return
        since_s = max(self._mark.summary_s, now_s - 24 * SUMMARY_S)
        counts = {mode: number for mode in ("hosted", "small", "escalated", "degraded", "failed")
                  if (number := self._store.count(Query(modes=(mode,), since_s=since_s, until_s=now_s)))}
        if counts:
            self._outbox.add("summary", {"since_s": since_s, "until_s": now_s, "requests": counts}, "sample")
        self._moved(replace(self._mark, summary_s=now_s))

    def _moved(self, mark: ReportMark) -> None:
        if mark != self._mark:
            data = canonical(mark)
            with staged_file(self._path, len(data), mode=0o600, replaces=True) as file:
                file.write(data)
            self._mark = mark


def _of_line(entry: LedgerEntry) -> Mapping[str, Any]:
    """A line's number, kind and plain fields: names and numbers, and no text that a person wrote."""
    kept = {name: value for name, value in entry.body.items()
            if isinstance(value, int | float | str) and len(str(value)) <= 500 and name != "exchange"}
    exchange = entry.body.get("exchange")
    if isinstance(exchange, str):
        kept["exchange"] = hashlib.sha256(exchange.encode()).hexdigest()[:16]
    return {"line": entry.number, "kind": entry.kind, "at_s": entry.at_s, **kept}
