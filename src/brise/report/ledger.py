"""Reads the ledger: one task for its report, and all switches for `brise switch` and `brise audit`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from brise import settings
from brise.dialects.bodies import Body
from brise.errors import StoreError
from brise.prove import analyses, cascade, certificates
from brise.report.advice import Kept, Proven, Switched
from brise.report.document import Note, Paragraph, Part, ReportTable
from brise.switch import history
from brise.switch import state as switch
from brise.switch.history import SwitchEvent, SwitchHistory, Tenure
from brise.switch.objections import Objection, against
from brise.switch.state import TaskState, Warrant
from brise.traffic.ledger import LedgerBreak, check_chain
from brise.traffic.records import LedgerEntry
from brise.traffic.stores import open_store


@dataclass(frozen=True)
class AuditOptions:
    """One `task` or all. `expect` is the digest of a line that was noted earlier, or at least 8 digits of it."""

    task: str | None = None
    expect: str | None = None
    store: str | None = None


@dataclass(frozen=True)
class LedgerAudit:
    """The lines, where the chain breaks (None: it is whole), and what the whole part says of the task asked about."""

    lines: tuple[LedgerEntry, ...]
    broken: LedgerBreak | None
    history: SwitchHistory
    tenures: tuple[Tenure, ...]
    events: tuple[SwitchEvent, ...]
    task: str | None
    against: Mapping[str, tuple[Objection, ...]] = field(default_factory=dict)

    @property
    def whole(self) -> tuple[LedgerEntry, ...]:
        """The lines before a break."""
        return self.lines if self.broken is None else self.lines[:self.broken.number - 1]

    def to_json(self) -> dict[str, Any]:
        """What --json prints."""
        return {"lines": len(self.lines), "last_digest": self.lines[-1].digest if self.lines else None,
                "is_whole": self.broken is None, "broken": None if self.broken is None else asdict(self.broken),
                "tasks": [{**state_json(state, self.against.get(name, ())), "switches": [
                    history.document(tenure) for tenure in self.tenures if tenure.state.task == name]}
                    for name, state in self.history.switches.tasks.items() if self.task in (None, name)],
                "events": [asdict(event) for event in self.events]}


def audit(options: AuditOptions) -> LedgerAudit:
    """Checks the chain, and computes the state of all switches from the lines before a break."""
    with closing(open_store(options.store, settings.read().home, must_exist=True)) as store:
        lines = tuple(store.ledger())
    broken = check_chain(lines) or _missing(lines, options.expect)
    whole = lines if broken is None else lines[:broken.number - 1]
    found = history.replay(whole)
    tasks = {str(line.body["task"]) for line in whole if "task" in line.body}
    known = {name: objections for name in sorted(tasks) if options.task in (None, name)
             and (objections := against(whole, name))}
    return LedgerAudit(lines, broken, found,
                       tuple(one for one in found.tenures if options.task in (None, one.state.task)),
                       tuple(one for one in found.events if options.task in (None, one.task)), options.task,
                       known)


def _missing(lines: Sequence[LedgerEntry], expected: str | None) -> LedgerBreak | None:
    if expected is None or any(line.digest.startswith(expected.lower()) for line in lines if len(expected) >= 8):
        return None
    return LedgerBreak(len(lines) + 1, f"no line has the digest {expected} (at least 8 digits of it): lines were cut "
                                       "off at the end")


@dataclass(frozen=True)
class SwitchTimeline:
    """`proof` is the newest line as it was written, `alarms` counts switches that an alarm took back."""

    proven: Proven | None
    kept: Kept | None
    switched: Switched | None
    proof: Body | None = None
    proof_at_s: float | None = None
    certificate: str | None = None  # its digest
    expires_s: float | None = None
    alarms: int = 0
    audits: tuple[tuple[float, float], ...] = ()  # difference and probability of each
    steps: tuple[tuple[float, float], ...] = ()  # when, and the share from then on
    against: tuple[Objection, ...] = ()  # small models of this task


def timeline(ledger: Sequence[LedgerEntry], now_s: float) -> SwitchTimeline:
    """The timeline of one task, from its lines in order."""
    proof = next((entry for entry in reversed(ledger) if entry.kind == analyses.ANALYSIS), None)
    signed = next((entry for entry in reversed(ledger) if entry.kind == certificates.KIND), None)
    rule = next((entry for entry in reversed(ledger) if entry.kind == cascade.RULE), None)
    began = next((entry for entry in reversed(ledger) if entry.kind == "switch"), None)
    kept = None if rule is None else Kept(float(rule.body["kept"]), float(rule.body["risk"]),
                                             str(rule.body["candidate"]))
    expires_s = None if signed is None else float(signed.body["expires_at_s"])
    proven = None if proof is None else _proven(proof.body, expires_s is not None and now_s >= expires_s)
    state = _switched(ledger)
    if state is not None and state.ended is not None and proof is not None and began is not None:
        ended_at = max((entry.at_s for entry in ledger if entry.kind in ("void", "back")), default=began.at_s)
        state = None if proof.at_s > ended_at else state  # a newer proof replaces it
    return SwitchTimeline(
        proven, kept, state, None if proof is None else proof.body, None if proof is None else proof.at_s,
        None if signed is None else str(signed.body["digest"]), expires_s,
        sum(entry.kind == "back" and str(entry.body.get("reason", "")).startswith("alarm") for entry in ledger),
        tuple((float(entry.body["difference"]), float(entry.body["probability"])) for entry in ledger
              if entry.kind == "audit"),
        tuple((entry.at_s, 0.0 if entry.kind in ("void", "back") else float(entry.body["share"])) for entry in ledger
              if entry.kind in ("switch", "step", "void", "back")),
        against(ledger, str(ledger[0].body.get("task"))) if ledger else ())


def _switched(ledger: Sequence[LedgerEntry]) -> Switched | None:
    states = switch.fold(ledger).tasks
    if not states:
        return None
    state = next(iter(states.values()))
    return Switched(state.candidate, state.share, state.audits, state.forced is not None, state.ended, state.against)


def _proven(body: Body, is_expired: bool) -> Proven:
    try:
        difference: Mapping[str, Any] = body["scores"]["difference"]
        missing, on_what = _missing_units(body)
        classical = (str(found["name"]) for found in body["baselines"] if found["verdict"] == "promote")
        return Proven(body["verdict"], float(body["delta"]), difference["estimate"], difference["low"],
                      difference["high"], str(body["reason"]), is_expired, next(classical, None),
                      missing if missing is not None and missing > 0 else None, on_what)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"a proof in the ledger cannot be read: {error!r}",
                         hint="brise audit says whether the ledger is as it was written") from None


def _missing_units(body: Body) -> tuple[int | None, str]:
    """Clusters that are still needed, by the plan. Where quality is shown and guards are not, by how fast the evidence
    for these has grown: its logarithm grows with the number of clusters.
    """
    guards: Sequence[Mapping[str, Any]] = (body.get("report") or {}).get("guards") or ()
    waiting = [one for one in guards if one["verdict"] == "undecided"]
    if body["gate"]["decided_at"] is None or body["verdict"] != "undecided" or not guards:
        return int(body["plan"]["anytime_units"]) - int(body["plan"]["have_units"]), "if both are equally good"
    if not waiting or any(one["evidence"] <= 1 for one in waiting):
        return None, ""
    needed = max(one["units"] * (math.log(one["level"]) / math.log(one["evidence"]) - 1) for one in waiting)
    return math.ceil(needed), "if it goes on as it did"


def state_json(found: TaskState, known: Sequence[Objection] = ()) -> dict[str, Any]:
    """One task as JSON. What it was forced against, and what is `known` against it, is there where there is any."""
    rule, alarm = found.rule, found.alarm
    return {"task": found.task, "candidate": found.candidate, "is_on": found.is_on, "ended": found.ended,
            "share": found.share, "since_s": found.since_s, "user": found.user, "forced": found.forced,
            "certificate": None if found.warrant is None else _warrant_json(found.warrant),
            "rule": None if rule is None else {"digest": rule.digest, "threshold": rule.threshold, "risk": rule.risk,
                                               "delta": rule.delta, "kept": rule.kept, "units": rule.units},
            "audits": found.audits, "audit_probability": found.audit_probability, "is_tight": found.is_tight,
            "is_raised": found.raised_left > 0, "tolerance": alarm.delta, "evidence": min(alarm.evidence, 1e300),
            "alarm_level": alarm.level, "audited_mean_of_step": found.tally.mean if found.tally.count else None,
            "why_not_up": found.why_not_up(), **({"forced_against": list(found.against)} if found.against else {}),
            **({"against": [one.to_json() for one in known]} if known else {})}


def _warrant_json(warrant: Warrant) -> dict[str, Any]:
    """With the keys that the ledger has, in their order."""
    return {"teachers" if name == "large_models" else name: value for name, value in asdict(warrant).items()}


def states_shown(states: Sequence[TaskState], now_s: float,
                 known: Mapping[str, Sequence[Objection]]) -> list[Part]:
    """A table of tasks, and below it what each of them waits for and what is `known` against its small models."""
    rows = [(each.task, each.candidate if each.is_on else "hosted", f"{100 * each.share:g} %" if each.is_on else "0 %",
             _by(each, now_s), _keeps(each), f"{each.audits}, {100 * each.audit_probability:g} %",
             f"{each.alarm.evidence:.3g} of {each.alarm.level:g}") for each in states]
    return [ReportTable(("task", "answered by", "share", "by", "keeps", "audits", "evidence of harm"), rows),
            *(Paragraph(f"{each.task}: {_next(each)}") for each in states),
            *(Paragraph(f"{each.task}: forced against {one}") for each in states for one in each.against),
            *against_shown(known)]


def against_shown(known: Mapping[str, Sequence[Objection]]) -> list[Paragraph]:
    """What the ledger knows against small models, by task."""
    return [Paragraph(f"{task}: the ledger knows against {one.said}") for task, found in known.items()
            for one in found]


def tenures_shown(tenures: Sequence[Tenure]) -> list[Part]:
    """What audits found, a line for each switch; D in points, 0 where the kept answer says what the large model says.
    """
    rows = []
    for tenure in tenures:
        found, mean = tenure.state, tenure.mean
        rows.append((
            found.task, found.candidate, when(found.since_s), f"{100 * found.share:g} %" if found.is_on else "ended",
            str(len(tenure.audits)), "" if mean is None else f"{100 * mean.estimate:+.1f}",
            "" if mean is None else f"{100 * mean.low:+.1f} to {100 * mean.high:+.1f}",
            f"{-100 * found.alarm.delta:+.1f}", f"{found.alarm.evidence:.3g}, {tenure.highest:.3g}"))
    return [ReportTable(("task", "answered by", "since", "now", "audits", "audited mean", "95 % interval", "tolerated",
                         "evidence, most"), rows),
            Note("audited mean: of D over all kept answers, in points, each audit weighing 1 / its probability; D is 0 "
                 "where the large model says the same, else -1. The alarm is at evidence of "
                 f"{tenures[0].state.alarm.level:g}.")]


def events_shown(events: Sequence[SwitchEvent]) -> list[Part]:
    """What happened when, a line each."""
    return [ReportTable(("line", "when", "task", "what", "who", "why"), [
        (str(event.number), when(event.at_s), event.task, event.kind, event.by, event.what) for event in events])]


def when(at_s: float) -> str:
    """A time to the second, UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _by(found: TaskState, now_s: float) -> str:
    if found.warrant is None:
        return f"force ({found.user})"
    days = (found.warrant.expires_s - now_s) / 86400
    return f"certificate {found.warrant.digest[:8]}, " + (f"{days:.0f} days left" if days > 0 else "expired")


def _keeps(found: TaskState) -> str:
    if found.rule is None:
        return "all that is valid"
    threshold = found.rule.tight if found.is_tight else found.rule.threshold
    return f"confidence >= {threshold:.3f}" + (" (tightened)" if found.is_tight else "")


def _next(found: TaskState) -> str:
    if not found.is_on:
        return f"the large model answers: {found.ended or 'the alarm rang'}"
    share = found.next_share()
    why_not = found.why_not_up()
    if share is None:
        return f"all of it; caution is raised, {found.raised_left} audits to go" if found.raised_left else "all of it"
    if why_not is None:
        return f"may go up to {100 * share:g} %" + (", and will by itself" if found.is_auto else "")
    return f"not yet up to {100 * share:g} %: {why_not}"
