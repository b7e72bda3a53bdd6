"""What the ledger knows against a small model: proofs that it is not good enough, impossible guarantees, alarms.

An objection stands until better evidence answers it: a promotion by the same test, a cascade that was certified for the
same risk or less, for an alarm any promotion on requests from after it. `undecided` answers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from brise.dialects.bodies import Body
from brise.traffic.records import LedgerEntry


@dataclass(frozen=True)
class Objection:
    """One line of the ledger that speaks against a candidate of a task, in words."""

    number: int
    at_s: float
    candidate: str
    what: str

    @property
    def said(self) -> str:
        """With the day and the line."""
        day = datetime.fromtimestamp(self.at_s, UTC).strftime("%Y-%m-%d")
        return f"{self.candidate}: {self.what} (line {self.number}, {day})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def against(entries: Iterable[LedgerEntry], task: str, candidate: str | None = None) -> tuple[Objection, ...]:
    """What stands against this small model of the task, or against each that was tried; in the order of the ledger."""
    standing, candidates = dict[tuple[str, ...], tuple[float, Objection]](), dict[int, str]()
    for entry in entries:
        body = entry.body
        if body.get("task") != task:
            continue
        match entry.kind:
            case "switch":
                candidates[entry.number] = str(body.get("candidate"))
            case "proof":
                _proof(standing, entry)
            case "certification":
                _certification(standing, entry)
            case "back" if body.get("by") == "gateway" and str(body.get("reason", "")).startswith("alarm"):
                name = candidates.get(body.get("switch", -1), "the small model")
                standing["alarm", name] = entry.at_s, _of(entry, name, str(body["reason"]))
    return tuple(sorted((found for _, found in standing.values() if candidate in (None, found.candidate)),
                        key=lambda found: found.number))


def _proof(standing: dict[tuple[str, ...], tuple[float, Objection]], entry: LedgerEntry) -> None:
    body, name = entry.body, str(entry.body.get("student"))
    key = "proof", name, str(body.get("definition"))
    if body.get("verdict") == "not good enough":
        weights = f" with the weights {body['fingerprint']}" if body.get("fingerprint") is not None else ""
        margin = _number(body, "delta")
        claim = "" if margin is None else f" at a margin of {100 * margin:g} points"
        standing[key] = entry.at_s, _of(entry, name, f"NOT GOOD ENOUGH{weights}{claim}: {body.get('reason', '')}")
    elif body.get("verdict") == "promote":
        standing.pop(key, None)
        rang_s, since_s = standing.get(("alarm", name), (None, None))[0], _number(body, "since_s")
        if rang_s is not None and since_s is not None and since_s >= rang_s:
            del standing["alarm", name]


def _certification(standing: dict[tuple[str, ...], tuple[float, Objection]], entry: LedgerEntry) -> None:
    body, name, risk = entry.body, str(entry.body.get("candidate")), _number(entry.body, "risk") or 0.0
    if body.get("result") == "impossible":
        why = f": {body['reason']}" if body.get("reason") else ""
        standing["cascade", name, str(risk)] = risk, _of(
            entry, name, f"impossible to keep answers of which at most {100 * risk:g} % are wrong{why}")
    elif body.get("result") == "certified":
        for key, (refused, _) in list(standing.items()):
            if key[:2] == ("cascade", name) and refused >= risk:
                del standing[key]


def _of(entry: LedgerEntry, candidate: str, what: str) -> Objection:
    return Objection(entry.number, entry.at_s, candidate, what)


def _number(body: Body, name: str) -> float | None:
    value = body.get(name)
    return float(value) if isinstance(value, int | float) else None


def recorded(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What a line of the ledger says that a change was forced against."""
    found = body.get("against")
    return tuple(map(str, found)) if isinstance(found, list) else ()
