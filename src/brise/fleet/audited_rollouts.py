"""What `brise audit` says of roll-outs: their state and evidence, computed again from the lines of the ledger.

A roll-out that was halted or let more devices in must have had the evidence for it at that line; where the lines do not
give it again, the audit says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from brise.fleet import rollout
from brise.fleet.rollout import FleetState, RolloutProgress
from brise.report import figures
from brise.report.document import Mark, Part, ReportTable
from brise.report.ledger import when
from brise.traffic.records import LedgerEntry

EVENTS = ("rollout-begin", "rollout-share", "rollout-pause", "rollout-resume", "rollout-halt", "rollout-complete",
          "rollout-back", "fleet-forget")


@dataclass(frozen=True)
class RolloutEvent:
    """A line that changed something; `wrong` says what the lines before it do not give again."""

    number: int
    at_s: float
    rollout: str
    kind: str
    by: str
    what: str
    wrong: str = ""


def replay(lines: Iterable[LedgerEntry]) -> tuple[FleetState, list[RolloutEvent]]:
    """Folds the lines, and compares the evidence that they state with that of the lines before them."""
    state, events = FleetState(), list[RolloutEvent]()
    for line in lines:
        if line.kind in EVENTS:
            events.append(_event(line, state.rollouts.get(str(line.body.get("rollout")))))
        state = rollout.next_state(state, line)
    return state, events


def audited(lines: Iterable[LedgerEntry]) -> Sequence[Part]:
    """Two tables, or nothing where there never was a roll-out."""
    state, events = replay(lines)
    if not events:
        return ()
    rows = [(one.terms.rollout, one.terms.label, one.state, figures.count(one.count("committed")),
             figures.count(one.count("failed")), figures.count(one.count(None)), f"{one.evidence.harm:.3g}",
             f"{one.evidence.safety:.3g}") for one in state.rollouts.values()]
    return (ReportTable(("roll-out", "bundle", "state", "committed", "failed", "under way", "harm", "safety"), rows),
            ReportTable(("line", "when", "roll-out", "what", "who", "why"), [
                (str(one.number), when(one.at_s), one.rollout, one.kind, one.by,
                 Mark("bad", f"{one.what} {one.wrong}") if one.wrong else one.what) for one in events]))


def audited_json(lines: Iterable[LedgerEntry]) -> list[dict[str, Any]]:
    """The same for --json."""
    state, events = replay(lines)
    return [{"rollout": name, "bundle": one.terms.bundle, "label": one.terms.label, "state": one.state,
             "reason": one.reason, "committed": one.count("committed"), "failed": one.count("failed"),
             "pending": one.count(None), "harm": one.evidence.harm, "safety": one.evidence.safety,
             "wrong": [event.wrong for event in events if event.rollout == name and event.wrong]}
            for name, one in state.rollouts.items()]


def _event(line: LedgerEntry, before: RolloutProgress | None) -> RolloutEvent:
    body = line.body
    match line.kind:
        case "rollout-begin":
            test = body["terms"]["test"]
            rates = ", ".join(f"{name} {100 * test[key]:g} %" for name, key in (
                ("f0", "tolerated"), ("f1", "refuted"), ("alpha", "alpha")))
            what = f"{body['terms']['label']}: {rates}. {body['reason']}"
        case "rollout-share":
            what = f"{body['devices']} of {body['of']} devices: {body['why']}"
        case "fleet-forget":
            what = f"{len(body['digests'])} subjects"
        case _:
            what = str(body.get("reason", ""))
    wrong = "" if before is None else _wrong(line, before)
    return RolloutEvent(line.number, line.at_s, str(body.get("rollout", "")), line.kind, str(body.get("user", "hub")),
                        what, wrong)


def _wrong(line: LedgerEntry, before: RolloutProgress) -> str:
    stated, found = (line.body.get("harm"), line.body.get("safety")), before.evidence
    if stated == (None, None):
        return ""
    if not all(isinstance(one, int | float) and math.isclose(one, real, rel_tol=1e-9)
               for one, real in zip(stated, (found.harm, found.safety), strict=True)):
        return (f"[it states evidence of {stated[0]} and {stated[1]}; the lines before it give {found.harm:.6g} and "
                f"{found.safety:.6g}]")
    if line.kind == "rollout-halt" and found.verdict != "halt":
        return "[the lines before it do not give the evidence to halt]"
    return ""
