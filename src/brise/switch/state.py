"""The state of each task's switch: a pure fold over the ledger, the same in every gateway that shares the store.

Kinds of lines, and what they do: `cascade` makes a rule known; `switch` puts a small model in place; `step` changes its
share; `audit` is one kept answer compared with the large model's; `raise` audits half of all for a while; `tighten`
also keeps only surer answers for as long; `void` and `back` end the switch; `context` and `changed` note what a gateway
met without a certificate for it. Lines of other kinds change nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from brise.dialects.bodies import Body
from brise.errors import EvidenceError, StoreError
from brise.stats.monitor import Alarm
from brise.switch.objections import recorded
from brise.switch.rule import Rule, from_body
from brise.traffic.records import LedgerEntry

SHARES = (0.01, 0.1, 0.5, 1.0)
AUDIT = 0.05  # of kept answers, at a share of 1
RAISED_AUDIT = 0.5
# Audits after which raised caution ends, if the evidence of harm is under CALM by then.
RAISED_UNITS = 200
CALM = 20.0  # evidence under which all is well: chance alone reaches it 1 time in 20
CAUTION = 100.0  # evidence from which only surer answers are kept; the alarm rings at 10,000
MIN_AUDITS = 30  # at the present share, before the next larger one


@dataclass(frozen=True)
class Warrant:
    """What a switch takes from its certificate. Without `large_models` or `contexts` it is bound to none."""

    digest: str
    expires_s: float
    large_models: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    proven: tuple[str, ...] = ()
    fingerprint: str | None = None  # of the small model; None: the model is known by its name alone


@dataclass(frozen=True)
class AuditTally:
    """Audits since the last step, each weighing 1 / its probability."""

    count: int = 0
    weight: float = 0.0
    weighted: float = 0.0

    def with_audit(self, difference: float, probability: float) -> AuditTally:
        return AuditTally(self.count + 1, self.weight + 1 / probability, self.weighted + difference / probability)

    @property
    def mean(self) -> float:
        return self.weighted / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class TaskState:
    """How a task is switched. `ended` says why it no longer is; then the large model answers everything."""

    task: str
    candidate: str
    share: float
    number: int  # of the line that began it
    since_s: float
    user: str
    alarm: Alarm
    warrant: Warrant | None = None
    forced: str | None = None  # the reason given with --force
    against: tuple[str, ...] = ()  # what the ledger knew when it was forced
    rule: Rule | None = None
    audit: float = AUDIT
    is_auto: bool = False
    tally: AuditTally = AuditTally()
    audits: int = 0
    raised_left: int = 0  # audits until raised caution may end
    is_tight: bool = False
    warned: frozenset[str] = frozenset()  # contexts and small models without a certificate that were noted
    ended: str | None = None

    @property
    def is_on(self) -> bool:
        """Whether the small model answers. An alarm counts from the audit that rang it."""
        return self.ended is None and not self.alarm.rings

    @property
    def audit_probability(self) -> float:
        """As many audits at a small share as at a large one, so that a first step does not take for ever."""
        if self.raised_left:
            return max(RAISED_AUDIT, self.audit)
        return max(self.audit, min(RAISED_AUDIT, self.audit / self.share))

    def is_expired(self, now_s: float) -> bool:
        return self.warrant is not None and now_s >= self.warrant.expires_s

    def is_certified_for(self, fingerprint: str) -> bool:
        """Whether this is the small model that was certified, and that the rule was fitted on."""
        known = {None if self.warrant is None else self.warrant.fingerprint,
                 None if self.rule is None else self.rule.fingerprint}
        return known <= {None, fingerprint}

    def next_share(self) -> float | None:
        return next((share for share in SHARES if share > self.share), None)

    def why_not_up(self) -> str | None:
        """Why the share may not grow; None if it may: 30 audits, a mean within the tolerance, no evidence of harm."""
        if not self.is_on:
            return "it is switched back"
        if self.tally.count < MIN_AUDITS:
            return f"{self.tally.count} answers were audited at this share, {MIN_AUDITS} are needed"
        if self.tally.mean < -self.alarm.delta:
            return (f"the audited mean is {100 * self.tally.mean:+.1f} points, {-100 * self.alarm.delta:+.1f} is "
                    "tolerated")
        if self.alarm.evidence >= CALM:
            return f"the evidence of harm is {self.alarm.evidence:.0f}, under {CALM:.0f} is needed"
        return "caution is raised" if self.raised_left else None


@dataclass(frozen=True)
class Switches:
    """All tasks after the ledger's line `number`, and the rules that were certified, by digest."""

    number: int = 0
    tasks: Mapping[str, TaskState] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def newest_rule(self, task: str, candidate: str, fingerprint: str | None = None) -> Rule | None:
        """The rule that was certified last for this pair; with a fingerprint, for this version of the small model."""
        rules = [rule for rule in self.rules.values() if (rule.task, rule.candidate) == (task, candidate)
                 and (fingerprint is None or rule.fingerprint in (None, fingerprint))]
        return rules[-1] if rules else None


@dataclass(frozen=True)
class Action:
    """A line that is due in the ledger."""

    kind: str
    body: Body


def fold(entries: Iterable[LedgerEntry], start: Switches = Switches()) -> Switches:
    """The state after these lines."""
    for entry in entries:
        start = next_state(start, entry)
    return start


def next_state(switches: Switches, entry: LedgerEntry) -> Switches:
    """The state one line later; StoreError if a line about switches cannot be read."""
    try:
        return replace(_after(switches, entry), number=entry.number)
    except (KeyError, TypeError, ValueError, ArithmeticError, EvidenceError) as error:
        raise StoreError(f"line {entry.number} of the ledger, {entry.kind!r}, cannot be read: {error!r}",
                         hint="brise audit says whether it is as it was written") from None


def next_state_or_ended(switches: Switches, entry: LedgerEntry) -> Switches:
    """The same for a gateway, which must go on: after a line that cannot be read all switches end, to be safe."""
    try:
        return next_state(switches, entry)
    except StoreError:
        reason = f"line {entry.number} of the ledger cannot be read"
        return replace(switches, number=entry.number, tasks={
            name: state if state.ended is not None else replace(state, ended=reason)
            for name, state in switches.tasks.items()})


def due(state: TaskState, now_s: float) -> Action | None:
    """The line that follows from the state and is not written yet. A second gateway that writes it changes nothing."""
    if state.ended is not None:
        return None
    about = gateway_line(state) | {"evidence": min(state.alarm.evidence, 1e300)}
    if state.alarm.rings:
        return Action("back", about | {"reason": f"alarm: the evidence that answers are worse than tolerated reached "
                                                 f"{state.alarm.evidence:.0f}"})
    if state.is_expired(now_s):
        return Action("void", about | {"reason": "the certificate has expired"})
    if state.alarm.evidence >= CAUTION and not state.is_tight:
        return Action("tighten", about | {"reason": f"the evidence of harm reached {state.alarm.evidence:.0f}"})
    if state.is_auto and state.why_not_up() is None and (share := state.next_share()) is not None:
        mean = f"{100 * state.tally.mean:+.1f} points"
        return Action("step", about | {"share": share, "from": state.share,
                                       "reason": f"{state.tally.count} audits with a mean of {mean}"})
    return None


def gateway_line(state: TaskState) -> dict[str, Any]:
    """The fields of every line that a gateway writes. They name the switch: a line after its end does nothing."""
    return {"task": state.task, "switch": state.number, "by": "gateway"}


def _after(switches: Switches, entry: LedgerEntry) -> Switches:
    body = entry.body
    if entry.kind == "cascade":
        rule = from_body(body)
        return replace(switches, rules={**{key: old for key, old in switches.rules.items() if key != rule.digest},
                                        rule.digest: rule})
    if entry.kind == "switch":
        return _with(switches, _begun(switches, entry))
    state = switches.tasks.get(str(body["task"])) if entry.kind in _CHANGES else None
    if state is None or state.ended is not None or body.get("switch", state.number) != state.number:
        return switches  # an audit may come when the switch that it is of has ended
    if body.get("from", state.share) != state.share:
        return switches  # another gateway took the same step, or a user another one
    return _with(switches, _changed(state, entry.kind, body))


_CHANGES = frozenset(("step", "audit", "raise", "tighten", "context", "changed", "void", "back"))


def _with(switches: Switches, state: TaskState) -> Switches:
    return replace(switches, tasks={**switches.tasks, state.task: state})


def _begun(switches: Switches, entry: LedgerEntry) -> TaskState:
    body = entry.body
    warrant = body["certificate"]
    rule = None if body["rule"] is None else switches.rules[body["rule"]]
    removed = None if rule is None else rule.removed_signal
    return TaskState(
        task=str(body["task"]), candidate=str(body["candidate"]), share=float(body["share"]), number=entry.number,
        since_s=entry.at_s, user=str(body["user"]), alarm=Alarm.start(float(body["tolerance"])),
        warrant=None if warrant is None else _warrant(warrant),
        forced=body["forced"], against=recorded(body), rule=rule, audit=float(body["audit"]),
        is_auto=bool(body["auto"]),
        ended=None if removed is None else f"its rule needs the signal {removed!r}, which this version does not have")


def _warrant(body: Body) -> Warrant:
    large_models, contexts, dimensions, proven = (
        tuple(map(str, body[name])) for name in ("teachers", "contexts", "dimensions", "proven"))
    return Warrant(str(body["digest"]), float(body["expires_s"]), large_models, contexts, dimensions, proven,
                   body.get("fingerprint"))


def _changed(state: TaskState, kind: str, body: Body) -> TaskState:
    match kind:
        case "step":
            share = float(body["share"])
            return replace(state, share=share, tally=state.tally if share == state.share else AuditTally(),
                           against=tuple(dict.fromkeys((*state.against, *recorded(body)))),
                           is_auto=bool(body.get("auto", state.is_auto)))
        case "audit":
            return _audited(state, float(body["difference"]), float(body["probability"]))
        case "raise":
            return replace(state, raised_left=RAISED_UNITS)
        case "tighten":
            return replace(state, raised_left=RAISED_UNITS, is_tight=True)
        case "context":
            return replace(state, warned=state.warned | {str(body["context"])})
        case "changed":
            return replace(state, warned=state.warned | {str(body["fingerprint"])})
        case _:
            return replace(state, ended=str(body["reason"]))


def _audited(state: TaskState, difference: float, probability: float) -> TaskState:
    if not 0 < probability <= 1 or math.isinf(1 / probability):
        raise ValueError(f"an audit's probability is {probability}, over 0 to 1 is allowed")
    if state.alarm.rings:  # it has been decided; audits that were under way change nothing
        return state
    alarm = state.alarm.updated(difference)
    left = state.raised_left
    if left:
        left = left - 1 if left > 1 else int(alarm.evidence >= CALM)
    return replace(state, alarm=alarm, tally=state.tally.with_audit(difference, probability), audits=state.audits + 1,
                   raised_left=left, is_tight=state.is_tight and left > 0)
