"""Ledgers for tests: lines in memory, and a switch as a command would write it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from brise.dialects.bodies import Body
from brise.traffic import ledger
from brise.traffic.records import LedgerEntry


class Lines:
    """The ledger's part of a store, in memory, on a clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.now_s = 1000.0

    def append(self, kind: str, body: Body) -> LedgerEntry:
        last = (self.entries[-1].number, self.entries[-1].digest) if self.entries else None
        entry = ledger.next_entry(last, self.now_s, kind, body)
        self.entries.append(entry)
        return entry

    def ledger(self, after: int = 0) -> Iterator[LedgerEntry]:
        yield from self.entries[after:]


def switched(task: str = "calls", **changes: Any) -> dict[str, Any]:
    """The body of a `switch` line."""
    return {"task": task, "candidate": "small", "share": 1.0, "certificate": None, "rule": None, "forced": "a test",
            "user": "tester", "tolerance": 0.05, "audit": 0.05, "auto": False} | changes


def certified(**changes: Any) -> dict[str, Any]:
    """What such a line holds of a certificate."""
    return {"digest": "c" * 64, "expires_s": 2000.0, "teachers": [], "contexts": [], "dimensions": [],
            "proven": []} | changes


def audit(difference: float, task: str = "calls", probability: float = 0.05) -> dict[str, Any]:
    """The body of an `audit` line."""
    return {"task": task, "exchange": "e", "difference": difference, "probability": probability}
