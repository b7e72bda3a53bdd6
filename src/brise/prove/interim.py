"""Looks of `brise cascade`: each is a line of the ledger, and all that use the same data share one delta.

The k-th look at data that are not fresh has delta x 6 / (pi k)^2. At any one request the looks that use it have numbers
of at least 1, 2, 3, ... in their order, so that together they break their promises with probability delta at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from brise.errors import EvidenceError
from brise.prove.calibration_rows import CalibrationRows
from brise.stats import thresholds
from brise.stats.thresholds import RiskClaim
from brise.traffic.ledger import canonical
from brise.traffic.records import LedgerEntry
from brise.traffic.store import TrafficStore

LOOK, RULE = "certification", "cascade"  # lines of the ledger
REFUSED = "refused"  # nothing was certified or found impossible, so it costs nothing


@dataclass(frozen=True)
class InterimAnalysis:
    """`test` is the digest of all that the result hangs on: the data with their labels, and what was asked of them.

    `promise` is what the user stated, of which the `number`-th look has a part.
    """

    task: str
    candidate: str
    test: str
    promise: RiskClaim
    since_s: float
    until_s: float
    number: int = 1

    @property
    def share(self) -> RiskClaim:
        """The promise with this look's part of delta."""
        return thresholds.of_look(self.promise, self.number)


def look(store: TrafficStore, rows: CalibrationRows, task: str, promise: RiskClaim, scorer: str,
         signals: Sequence[str] | None) -> InterimAnalysis:
    """Which look this is."""
    asked = {"candidate": rows.candidate, "rung": rows.rung, "scorer": scorer, "risk": promise.risk,
             "delta": promise.delta, "signals": signals, "rows": [
                 [row.exchange, row.unit, row.at_s, dict(row.signals), bool(row.differs), bool(row.wrong)]
                 for row in rows.rows]}
    test = hashlib.sha256(canonical(asked).encode()).hexdigest()
    found = InterimAnalysis(task, rows.candidate, test, promise, rows.rows[0].at_s, rows.rows[-1].at_s)
    return replace(found, number=number(store.ledger(), found))


def number(entries: Iterable[LedgerEntry], this: InterimAnalysis) -> int:
    """Other looks of the task before the first one of this test, but those whose data ended before these, and one."""
    others, written = set[str](), set[str]()
    for entry in entries:
        body = entry.body
        if entry.kind not in (LOOK, RULE) or body.get("task") != this.task or body.get("result") == REFUSED:
            continue
        if entry.kind == LOOK:
            if body["test"] == this.test:
                break
            written.add(str(body["rule"]))
        elif body.get("digest") in written:
            continue  # what the look before it found
        if float(body["until_s"]) >= this.since_s:
            others.add(str(body["test"] if entry.kind == LOOK else body.get("digest")))
    return len(others) + 1


def record(store: TrafficStore, this: InterimAnalysis, result: str, *, rule: str | None = None,
           why: str = "") -> LedgerEntry:
    """The look's line, written before anybody is told what it found.

    EvidenceError if another look came between: then this one has another number, and its result is not to be told.
    """
    entry = store.append(LOOK, {
        "task": this.task, "candidate": this.candidate, "test": this.test, "number": this.number,
        "risk": this.promise.risk, "delta": this.share.delta, "delta_of_all": this.promise.delta,
        "since_s": this.since_s, "until_s": this.until_s, "result": result, "rule": rule, "reason": why})
    now = number((line for line in store.ledger() if line.number <= entry.number), this)
    if result != REFUSED and now != this.number:
        raise EvidenceError(f"another look was written meanwhile, this one is look {now} at these data",
                            hint="the same command again gives it its part of delta")
    return entry
