"""What the tab Switch shows: how each task is switched, what audits found, and the ledger as a time line; the way back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from brise import settings
from brise.errors import RequestError, StoreError
from brise.page.endpoint import PageEndpoint, PageOptions, PageRequest
from brise.prove import analyses, certificates, cutover
from brise.prove.cutover import SwitchOptions
from brise.report import ledger
from brise.report.ledger import AuditOptions, LedgerAudit
from brise.report.summary import evidence
from brise.switch.history import Tenure
from brise.switch.state import SHARES
from brise.traffic.records import LedgerEntry
from brise.traffic.stores import open_store

MOST_POINTS = 300  # of the evidence of harm of one switch
PART = 10.0  # times what reading the ledger took, until it is read again
MOST_EVENTS = 500  # of the time line, the newest
_NOTHING: Mapping[str, Any] = MappingProxyType({
    "tasks": (), "lines": 0, "last_digest": None, "is_whole": True, "broken": None, "shares": SHARES, "harm": {},
    "upstreams": (), "events": (), "more_events": 0})


def endpoints(options: PageOptions) -> Sequence[PageEndpoint]:
    """The endpoints of the tab."""
    return (PageEndpoint("switches", Ledger(options).switches),
            PageEndpoint("switch/back", partial(_back, options), needs="operate", method="POST"))


@dataclass
class Ledger:
    """What the ledger says. It is read whole to be checked, so what was read is kept as long as no line is new."""

    options: PageOptions
    _read: tuple[int, float, float, Mapping[str, Any]] = (-1, 0.0, 0.0, _NOTHING)  # last line, when, how long, what

    def switches(self, request: PageRequest) -> object:
        """What `brise audit --json` prints, with the evidence of harm of each switch, and the other lines."""
        try:
            with closing(open_store(self.options.store, settings.read().home, must_exist=True)) as store:
                last = store.last_line()
        except StoreError:  # a server without captured traffic has a page, too
            return dict(_NOTHING)
        line, at_s, seconds, found = self._read
        started_s = time.monotonic()
        if line != last and started_s - at_s > PART * seconds:
            found = _document(ledger.audit(AuditOptions(store=self.options.place)))
            self._read = last, started_s, time.monotonic() - started_s, found
        return {**found, "upstreams": _upstreams(request)}


def _document(found: LedgerAudit) -> Mapping[str, Any]:
    document = found.to_json()
    events = [*document.pop("events"), *filter(None, map(_event, found.lines))]
    events.sort(key=lambda event: -event["number"])
    return {**document, "shares": list(SHARES), "harm": _harm(found), "events": events[:MOST_EVENTS],
            "more_events": max(len(events) - MOST_EVENTS, 0)}


def _harm(found: LedgerAudit) -> dict[str, list[dict[str, Any]]]:
    """By task, the evidence of harm after each audit; a list for each switch."""
    return {task: [_path(tenure) for tenure in found.tenures if tenure.state.task == task]
            for task in {tenure.state.task for tenure in found.tenures}}


def _path(tenure: Tenure) -> dict[str, Any]:
    step = -(-len(tenure.audits) // MOST_POINTS) or 1
    kept = tenure.audits[::-step][::-1]
    return {"line": tenure.state.number, "at": [audit.number for audit in kept],
            "evidence": [min(audit.evidence, 1e300) for audit in kept], "count": len(tenure.audits)}


def _event(entry: LedgerEntry) -> dict[str, Any] | None:
    """A line about evidence, which `brise audit` leaves to `brise report`."""
    body = entry.body
    if entry.kind == analyses.ANALYSIS:
        what = (f"{body.get('student')}: {body.get('verdict')}, K = {evidence(float(body.get('evidence') or 0))} after "
                f"{body.get('units')} clusters; {body.get('reason')}").strip("; ")
    elif entry.kind == certificates.KIND:
        what = f"{body.get('student')}: certificate {str(body.get('digest'))[:8]}, of {body.get('n')} clusters"
    else:
        return None
    return {"number": entry.number, "at_s": entry.at_s, "task": str(body.get("task")), "kind": entry.kind,
            "by": str(body.get("user") or ""), "what": what}


def _upstreams(request: PageRequest) -> list[dict[str, Any]]:
    """Whether the large models are being asked: an outage is told of where people look who answers."""
    gateway = request.serving.gateway
    return [] if gateway is None else [
        {"name": name or urlsplit(large.upstream.settings.url).netloc, "state": large.breaker.state}
        for name, large in gateway.large.each.items()]


def _back(options: PageOptions, request: PageRequest) -> object:
    """Lets the large model answer again. The answer has the ledger's line number from which on that holds."""
    task, typed = request.text("task"), request.text("typed")
    if typed != task:
        raise RequestError(f"the typed name is {typed[:64]!r}, the task is {task[:64]!r}", param="typed",
                           code="names_differ")
    reason = request.body.get("reason")
    why = reason.strip()[:500] if isinstance(reason, str) and reason.strip() else "by hand"
    result = cutover.run(SwitchOptions(task, back=True, reason=f"{why} ({request.sender})", store=options.place))
    return {"tasks": [ledger.state_json(state) for state in result.states]}
