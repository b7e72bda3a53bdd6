"""The state of each roll-out: a pure fold over lines of the ledger, which `brise audit` computes again.

Kinds of lines, and what they do: `rollout-begin` states the terms; `rollout-share` lets more devices in;
`rollout-devices` says which began and how they ended; `rollout-pause` and `rollout-resume` stop and go on;
`rollout-halt` and `rollout-complete` end it; `rollout-back` takes it back from all; `fleet-forget` names digests of
subjects that were destroyed. Lines of other kinds change nothing here, and these change nothing in switch/state.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from brise.dialects.bodies import Body
from brise.errors import EvidenceError, FleetError, StoreError
from brise.files.digests import DIGEST, NAME
from brise.fleet.offers import Forgotten, OfferedRollout, RolloutList, TrialTerms
from brise.stats import failure_rate
from brise.stats.failure_rate import FAILURE, PENDING, SUCCESS, FailureEvidence, FailureTest
from brise.traffic.records import LedgerEntry

STAGES = (0.01, 0.05, 0.2, 1.0)
SILENT = "silent past its deadline"
MOST_REASON = 200  # characters of what a device says
MOST_IN_LINE = 500  # devices of one line
FOR_EVER_S = 2.0**53
MOST_WAIT_S = 366 * 86400.0
MOST_OFFERED = 16  # roll-outs that devices are told of
KINDS = frozenset(("rollout-begin", "rollout-share", "rollout-devices", "rollout-pause", "rollout-resume",
                   "rollout-halt", "rollout-complete", "rollout-back", "fleet-forget"))

RolloutState = Literal["running", "paused", "halted", "complete", "back"]
End = Literal["committed", "failed"]


@dataclass(frozen=True)
class RolloutTerms:
    """What is stated before a roll-out begins.

    `bundle` and `back_to` are SHA-256 of manifests, `label` what people call the bundle. `stages` are shares of the
    enrolled devices. Devices begin from `not_before_s` to `until_s`, and have `deadline_s` from then to their end; the
    trial must fit into it. `most_unknown` is the share of a stage's
    devices that may not have begun when the stage ends, which is `wait_s` after it began at the earliest, unless all
    have.
    """

    rollout: str
    bundle: str
    label: str
    salt: str
    stages: tuple[float, ...] = STAGES
    test: FailureTest = FailureTest()
    not_before_s: float = 0.0
    until_s: float = FOR_EVER_S
    deadline_s: float = 2 * 86400.0
    trial: TrialTerms = TrialTerms()
    back_to: str | None = None
    most_unknown: float = 1 / 3
    wait_s: float = 900.0

    def __post_init__(self) -> None:
        for name, digest in (("bundle", self.bundle), ("back_to", self.back_to)):
            if digest is not None and DIGEST.fullmatch(digest) is None:
                raise FleetError(f"{name} is {digest[:80]!r}, a SHA-256 of 64 hexadecimal digits is allowed")
        if NAME.fullmatch(self.rollout) is None:
            raise FleetError(f"the roll-out's name is {self.rollout[:80]!r}, letters, digits, '.', '_' and '-' are "
                             "allowed")
        if not 1 <= len(self.stages) <= 20 or self.stages[-1] != 1 or not all(
                0 < low < high for low, high in itertools.pairwise(self.stages)) or self.stages[0] <= 0:
            raise FleetError(f"the stages are {self.stages}, allowed are growing shares of which the last is 1")
        if self.trial.hours * 3600 >= self.deadline_s:
            raise FleetError(f"a device has {self.deadline_s:g} s to its end, and its trial may take "
                             f"{self.trial.hours:g} h of them", hint="give a later deadline, or a shorter trial")
        for name, value, most in (("deadline_s", self.deadline_s, MOST_WAIT_S), ("wait_s", self.wait_s, MOST_WAIT_S),
                                  ("most_unknown", self.most_unknown, 1.0), ("until_s", self.until_s, FOR_EVER_S),
                                  ("not_before_s", self.not_before_s, FOR_EVER_S)):
            if not 0 <= value <= most:
                raise FleetError(f"{name} is {value}, allowed is 0 to {most:g}")

    def body(self) -> Body:
        """As a line has it."""
        return asdict(self)


@dataclass(frozen=True)
class DeviceOutcome:
    """One device in one roll-out. The first failure stands: what happens to it later changes nothing."""

    began_s: float
    end: End | None = None
    ended_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ShareStep:
    """When how many devices were let in, why, and the evidence at that time."""

    at_s: float
    stage: int
    devices: int
    of: int
    why: str
    harm: float
    safety: float


@dataclass(frozen=True)
class RolloutProgress:
    """A roll-out after some lines. `devices` are in the order in which they began; `accepted` failures were known when
    somebody went on.
    """

    terms: RolloutTerms
    number: int  # of the line that began it
    since_s: float
    user: str
    state: RolloutState = "running"
    reason: str = ""
    stage: int = -1  # none has begun
    share: float = 0.0
    share_s: float = 0.0
    steps: tuple[ShareStep, ...] = ()
    accepted: int = 0
    ended_s: float | None = None
    unknown: int | None = None  # devices that had not begun when it was complete
    devices: Mapping[str, DeviceOutcome] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_open(self) -> bool:
        """Whether it may still let devices in."""
        return self.state in ("running", "paused")

    def count(self, end: End | None) -> int:
        """How many of the devices that began have this end; None: no end yet."""
        return self._counts.get(end, 0)

    @cached_property
    def _counts(self) -> Mapping[End | None, int]:
        return Counter(one.end for one in self.devices.values())

    @cached_property
    def evidence(self) -> FailureEvidence:
        """What the devices have shown."""
        return failure_rate.judge(self.outcomes, self.terms.test)

    @cached_property
    def oldest_pending_s(self) -> float | None:
        """When the first of the devices began that have not ended."""
        return min((one.began_s for one in self.devices.values() if one.end is None), default=None)

    @property
    def outcomes(self) -> list[int]:
        """One for each device, as failure_rate has them."""
        codes: Mapping[End | None, int] = {"committed": SUCCESS, "failed": FAILURE, None: PENDING}
        return [codes[one.end] for one in self.devices.values()]

    def offered(self) -> OfferedRollout:
        """As devices see it."""
        terms = self.terms
        return OfferedRollout(terms.rollout, terms.bundle, self.share, self.state, terms.salt, terms.not_before_s,
                              terms.until_s, terms.trial, terms.back_to)


@dataclass(frozen=True)
class FleetState:
    """All roll-outs after the ledger's line `number`, in the order in which they began."""

    number: int = 0
    rollouts: Mapping[str, RolloutProgress] = field(default_factory=lambda: MappingProxyType({}))
    forgotten: Forgotten = Forgotten()

    def offered(self) -> RolloutList:
        """What devices are told: the newest roll-outs, in the order in which they began."""
        newest = list(self.rollouts.values())[-MOST_OFFERED:]
        return RolloutList(tuple(one.offered() for one in newest), self.forgotten)


def fold(entries: Iterable[LedgerEntry], start: FleetState = FleetState()) -> FleetState:
    """The state after these lines."""
    for entry in entries:
        start = next_state(start, entry)
    return start


def next_state(fleet: FleetState, entry: LedgerEntry) -> FleetState:
    """The state one line later; StoreError if a line about roll-outs cannot be read."""
    if entry.kind not in KINDS:
        return replace(fleet, number=entry.number)
    try:
        return replace(_after(fleet, entry), number=entry.number)
    except (KeyError, TypeError, ValueError, EvidenceError, FleetError) as error:
        raise StoreError(f"line {entry.number} of the ledger, {entry.kind!r}, cannot be read: {error!r}",
                         hint="brise audit says whether it is as it was written") from None


def terms_of(body: Body) -> RolloutTerms:
    """The terms in the body of a line."""
    return RolloutTerms(**{**body, "stages": tuple(body["stages"]), "test": FailureTest(**body["test"]),
                           "trial": TrialTerms(**body["trial"])})


def _after(fleet: FleetState, entry: LedgerEntry) -> FleetState:
    body = entry.body
    if entry.kind == "fleet-forget":
        known = dict.fromkeys((*fleet.forgotten.digests, *map(str, body["digests"])))
        return replace(fleet, forgotten=Forgotten(fleet.forgotten.number + 1, tuple(known)))
    name = str(body["rollout"])
    if entry.kind == "rollout-begin":
        if name in fleet.rollouts:
            raise ValueError(f"{name} began before")
        begun = RolloutProgress(terms_of(body["terms"]), entry.number, entry.at_s, str(body["user"]),
                                reason=str(body["reason"]))
    else:
        begun = _step(fleet.rollouts[name], entry)
    return replace(fleet, rollouts=MappingProxyType({**fleet.rollouts, name: begun}))


def _step(before: RolloutProgress, entry: LedgerEntry) -> RolloutProgress:
    body = entry.body
    match entry.kind:
        case "rollout-share":
            step = ShareStep(entry.at_s, int(body["stage"]), int(body["devices"]), int(body["of"]), str(body["why"]),
                             float(body["harm"]), float(body["safety"]))
            return replace(before, stage=step.stage, share=float(body["share"]), share_s=entry.at_s,
                           steps=(*before.steps, step))
        case "rollout-devices":
            return replace(before, devices=_with_devices(before.devices, entry.at_s, body))
        case "rollout-pause":
            return replace(before, state="paused", reason=str(body["reason"]))
        case "rollout-resume":
            return replace(before, state="running", reason=str(body["reason"]), accepted=before.count("failed"))
        case "rollout-halt":
            return replace(before, state="halted", reason=str(body["reason"]), ended_s=entry.at_s)
        case "rollout-complete":
            return replace(before, state="complete", reason=str(body["reason"]), ended_s=entry.at_s,
                           unknown=int(body["unknown"]))
        case _:
            return replace(before, state="back", reason=str(body["reason"]), ended_s=entry.at_s)


def _with_devices(devices: Mapping[str, DeviceOutcome], at_s: float, body: Body) -> Mapping[str, DeviceOutcome]:
    found = dict(devices)
    for device in body["began"]:
        found.setdefault(str(device), DeviceOutcome(at_s))
    for device, end, reason in body["ended"]:
        known = found.get(str(device), DeviceOutcome(at_s))
        if known.end is None or (known.end == "committed" and end == "failed"):
            found[str(device)] = replace(known, end=_end(end), ended_s=at_s, reason=str(reason))
    return MappingProxyType(found)


def _end(value: Any) -> End:
    if value not in ("committed", "failed"):
        raise ValueError(f"{value!r} is no end of an update")
    return "committed" if value == "committed" else "failed"
