"""The history of each switch, from the ledger: its audits, its alarm, and what happened when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from brise.dialects.bodies import Body
from brise.stats import monitor
from brise.stats.intervals import Interval
from brise.switch.objections import recorded
from brise.switch.state import Switches, TaskState, next_state
from brise.traffic.records import LedgerEntry

EVENTS = frozenset(("certification", "export", "cascade", "switch", "step", "raise", "tighten", "context", "changed",
                    "void", "back"))


@dataclass(frozen=True)
class Audited:
    """One audit: D, the probability with which it was drawn, and the evidence of harm after it."""

    number: int
    at_s: float
    exchange: str
    difference: float
    probability: float
    evidence: float


@dataclass(frozen=True)
class SwitchEvent:
    """A line that changed something."""

    number: int
    at_s: float
    task: str
    kind: str
    by: str
    what: str


@dataclass(frozen=True)
class Tenure:
    """One switch from its beginning to its end; `state` is the last one."""

    state: TaskState
    audits: tuple[Audited, ...]

    @property
    def mean(self) -> Interval | None:
        """D of all kept answers, from those that were audited, each weighing 1 / its probability."""
        if len(self.audits) < 2:
            return None
        chances = [audit.probability for audit in self.audits]
        return monitor.audited_mean([audit.difference for audit in self.audits], chances, len(self.audits))

    @property
    def highest(self) -> float:
        """The highest evidence of harm."""
        return max((audit.evidence for audit in self.audits), default=1.0)


@dataclass(frozen=True)
class SwitchHistory:
    """Everything in the ledger about switches."""

    switches: Switches
    tenures: tuple[Tenure, ...]
    events: tuple[SwitchEvent, ...]


def replay(entries: Iterable[LedgerEntry]) -> SwitchHistory:
    """Folds the lines, and keeps what each of them did."""
    switches, tenures, events = Switches(), dict[int, tuple[TaskState, list[Audited]]](), list[SwitchEvent]()
    for entry in entries:
        switches = next_state(switches, entry)
        if entry.kind in EVENTS:
            events.append(_event(entry))
        state = switches.tasks.get(str(entry.body.get("task"))) if entry.kind in (*EVENTS, "audit") else None
        if state is None:
            continue
        audits = tenures.setdefault(state.number, (state, []))[1]
        if entry.kind == "audit" and state.audits > len(audits):  # otherwise its switch had ended
            audits.append(Audited(entry.number, entry.at_s, str(entry.body.get("exchange")),
                                  float(entry.body["difference"]), float(entry.body["probability"]),
                                  state.alarm.evidence))
        tenures[state.number] = state, audits
    return SwitchHistory(switches, tuple(Tenure(state, tuple(audits)) for state, audits in tenures.values()),
                         tuple(events))


def _event(entry: LedgerEntry) -> SwitchEvent:
    body = entry.body
    match entry.kind:
        case "cascade":
            what = (f"kept at confidence {body['threshold']:.4f}: {100 * body['kept']:.1f} %, at most "
                    f"{100 * body['risk']:g} % wrong, {body['units']} answers")
        case "certification":
            why = f": {body['reason']}" if body["reason"] else ""
            what = f"look {body['number']} at the data of {body['candidate']}, {body['result']}{why}"
        case "export":
            what = f"{len(body['conversations'])} conversations of an open gate: {body['reason']}"
        case "switch":
            why = "forced: " + str(body["forced"]) if body["forced"] is not None else str(body["reason"])
            proof = body["certificate"]
            what = (f"{body['candidate']} at {100 * body['share']:g} %, "
                    f"{'no certificate' if proof is None else 'certificate ' + proof['digest'][:8]}: {why}"
                    f"{_against(body)}")
        case "step":
            forced = ", forced" if body.get("forced") else ""
            what = f"{100 * body['share']:g} %{forced}: {body['reason']}{_against(body)}"
        case _:
            what = str(body.get("reason", ""))
    by = str(body.get("user") or body.get("by", ""))
    return SwitchEvent(entry.number, entry.at_s, str(body.get("task")), entry.kind, by, what)


def _against(body: Body) -> str:
    known = recorded(body)
    return f"; forced against: {'; '.join(known)}" if known else ""


def document(tenure: Tenure) -> dict[str, Any]:
    """One switch as JSON."""
    mean = tenure.mean
    return {"line": tenure.state.number, "audits": len(tenure.audits),
            "audited_mean": None if mean is None else {"estimate": mean.estimate, "low": mean.low, "high": mean.high},
            "tolerated": -tenure.state.alarm.delta, "evidence": min(tenure.state.alarm.evidence, 1e300),
            "highest_evidence": min(tenure.highest, 1e300), "alarm_level": tenure.state.alarm.level,
            "rang": tenure.state.alarm.rings}
