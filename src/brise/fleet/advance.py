"""What a roll-out does next: let more devices in, halt, or wait, and why.

A stage's size is exact: the devices stand in the order of their draws, and the share lies between two of them, so 1 %
of 10,000 are 100, and of three devices one. A larger share holds a smaller one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from brise.files.digests import hash_draw
from brise.fleet.rollout import MOST_IN_LINE, SILENT, RolloutProgress
from brise.stats import failure_rate
from brise.switch.state import Action

# An undecided stage grows by a half of its devices at most where over f0 / 2 have failed, and by a tenth (or 0.5 % of
# all) where over f0 have: so few devices have a bad bundle when it halts.
LARGE_STEP, SMALL_STEP, SMALL_OF_ALL = 0.5, 0.1, 0.005


@dataclass(frozen=True)
class EnrolledDevices:
    """The devices that may take part, in the order of their draws for one roll-out."""

    draws: Sequence[float]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.draws)

    def within(self, share: float) -> Sequence[str]:
        """The devices that are in."""
        return self.names[:bisect.bisect_left(self.draws, share)]

    def share_of(self, number: int) -> float:
        """The share that lets in the first `number` devices, and no others."""
        if number >= len(self.draws):
            return 1.0
        return (self.draws[number - 1] + self.draws[number]) / 2


@dataclass(frozen=True)
class NextStep:
    """What is due, as lines of the ledger; `waits` says what the roll-out waits for if nothing is."""

    actions: Sequence[Action] = ()
    waits: str = ""


def in_order(salt: str, devices: Iterable[str]) -> EnrolledDevices:
    """The order of these devices for a roll-out."""
    drawn = sorted((hash_draw(f"{salt}:{device}"), device) for device in devices)
    return EnrolledDevices([draw for draw, _ in drawn], [device for _, device in drawn])


def has_statistic(progress: RolloutProgress, number: int) -> bool:
    """Whether so many devices could show that the bundle is good."""
    return number >= failure_rate.least_devices(progress.terms.test)


def silent(progress: RolloutProgress, now_s: float) -> list[Action]:
    """The lines that count devices as failed that began and have been silent past their deadline."""
    oldest_s = progress.oldest_pending_s
    if oldest_s is None or now_s <= oldest_s + progress.terms.deadline_s:
        return []
    late = [(device, "failed", SILENT) for device, one in progress.devices.items()
            if one.end is None and now_s > one.began_s + progress.terms.deadline_s]
    return [devices_line(progress.terms.rollout, (), late[at:at + MOST_IN_LINE])
            for at in range(0, len(late), MOST_IN_LINE)]


def devices_line(rollout: str, began: Iterable[str], ended: Iterable[tuple[str, str, str]]) -> Action:
    """The line that says which devices began, and how others ended."""
    return Action("rollout-devices", {"rollout": rollout, "began": list(began), "ended": [list(one) for one in ended]})


def next_step(progress: RolloutProgress, enrolled: EnrolledDevices, now_s: float) -> NextStep:
    """What follows from what is known now."""
    if not progress.is_open:
        return NextStep()
    evidence, terms = progress.evidence, progress.terms
    if evidence.verdict == "halt":
        return NextStep([_halt(progress)])
    if progress.state == "paused":
        return NextStep(waits=f"paused: {progress.reason}")
    if not len(enrolled):
        return NextStep(waits="no device is enrolled")
    failed = progress.count("failed")
    if not has_statistic(progress, len(enrolled)) and failed > progress.accepted:
        reason = (f"{failed} of {len(progress.devices)} devices failed; {no_statistic(progress, len(enrolled))}, and a "
                  "person about the others")
        return NextStep([Action("rollout-pause", {"rollout": terms.rollout, "user": "hub", "reason": reason})])
    if progress.stage < 0:
        if now_s < terms.not_before_s:
            return NextStep(waits=f"it begins in {terms.not_before_s - now_s:.0f} s")
        return NextStep([_grow(progress, enrolled, 0, _size(progress, enrolled, 0), "the first stage")])
    return _after_stage(progress, enrolled, now_s)


def no_statistic(progress: RolloutProgress, number: int) -> str:
    """Why a small fleet has no statistic."""
    least = failure_rate.least_devices(progress.terms.test)
    return (f"there is no statistic with {number} devices: {least} that all succeed would show a failure rate under "
            f"{100 * progress.terms.test.refuted:g} %. The local gate of each device decides about it")


def most_unknown(share: float, number: int) -> int:
    """How many of so many devices may be unknown. In a small stage chance may put more of the devices that are off than
    in all of the fleet: two standard deviations more are allowed, up to a half.
    """
    spread = 2 * math.sqrt(share * (1 - share) * number)
    return max(math.floor(share * number), min(number // 2, math.floor(share * number + spread)))


def unknown_of(progress: RolloutProgress, enrolled: EnrolledDevices) -> int:
    """How many devices are in and have never begun."""
    within = enrolled.within(progress.share)
    return len(within) - sum(map(progress.devices.__contains__, within))


def _after_stage(progress: RolloutProgress, enrolled: EnrolledDevices, now_s: float) -> NextStep:
    """A stage ends when its devices have ended; few may be missing, once it has waited."""
    terms, verdict = progress.terms, progress.evidence.verdict
    admitted = len(enrolled.within(progress.share))
    unknown, pending = unknown_of(progress, enrolled), progress.count(None)
    is_last = progress.stage >= len(terms.stages) - 1
    most = most_unknown(terms.most_unknown, admitted)
    has_waited = now_s >= progress.share_s + terms.wait_s
    if pending and not (verdict == "advance" and has_waited and not is_last and pending + unknown <= most):
        return NextStep(waits=f"{pending} devices have begun and not ended")
    if unknown and not has_waited:
        return NextStep(waits=f"{unknown} devices have not begun; it waits for them for "
                              f"{progress.share_s + terms.wait_s - now_s:.0f} s")
    if unknown > most:
        return NextStep(waits=f"{unknown} of {admitted} devices have not begun, at most {most} may be unknown")
    if is_last:
        return NextStep([_complete(progress, unknown)])
    following = _size(progress, enrolled, progress.stage + 1)
    if not has_statistic(progress, len(enrolled)):
        return NextStep([_grow(progress, enrolled, progress.stage + 1, following,
                               f"{no_statistic(progress, len(enrolled))}; none has failed that nobody accepted")])
    if verdict == "advance":
        return NextStep([_grow(progress, enrolled, progress.stage + 1, following,
                               f"a failure rate of {100 * terms.test.refuted:g} % or more is refuted")])
    more = failure_rate.more_devices(progress.outcomes, terms.test)
    more = min(more, _most_more(progress, admitted, len(enrolled)))
    size = admitted + math.ceil(more * admitted / max(admitted - unknown, 1))
    if size < following:
        return NextStep([_grow(progress, enrolled, progress.stage, size, f"not decided: {more} more devices may do")])
    return NextStep([_grow(progress, enrolled, progress.stage + 1, following,
                           f"not decided: {more} more devices may do, and the next stage has fewer")])


def _most_more(progress: RolloutProgress, admitted: int, number: int) -> int:
    rate = progress.count("failed") / max(len(progress.devices), 1)
    if rate <= progress.terms.test.tolerated / 2:
        return number
    step = LARGE_STEP if rate <= progress.terms.test.tolerated else SMALL_STEP
    return max(math.ceil(SMALL_OF_ALL * number), math.ceil(step * admitted))


def _size(progress: RolloutProgress, enrolled: EnrolledDevices, stage: int) -> int:
    """The devices of a stage: at least one, and no fewer than are in."""
    wanted = math.ceil(progress.terms.stages[stage] * len(enrolled) - 1e-9)
    return max(1, wanted, len(enrolled.within(progress.share)))


def _grow(progress: RolloutProgress, enrolled: EnrolledDevices, stage: int, size: int, why: str) -> Action:
    evidence = progress.evidence
    return Action("rollout-share", {
        "rollout": progress.terms.rollout, "stage": stage, "share": max(enrolled.share_of(size), progress.share),
        "devices": size, "of": len(enrolled), "why": why, "harm": evidence.harm, "safety": evidence.safety})


def _halt(progress: RolloutProgress) -> Action:
    evidence, test = progress.evidence, progress.terms.test
    return Action("rollout-halt", {
        "rollout": progress.terms.rollout, "user": "hub", "harm": evidence.harm, "safety": evidence.safety,
        "reason": f"{progress.count('failed')} of {len(progress.devices)} devices that began have failed: a failure "
                  f"rate of {100 * test.tolerated:g} % or less is refuted (alpha {100 * test.alpha:g} %)"})


def _complete(progress: RolloutProgress, unknown: int) -> Action:
    reason = "complete" if not unknown else f"complete but for {unknown} unknown"
    return Action("rollout-complete", {
        "rollout": progress.terms.rollout, "user": "hub", "reason": reason, "unknown": unknown,
        "committed": progress.count("committed"), "failed": progress.count("failed")})
