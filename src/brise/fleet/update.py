"""What a device does with an offer: which roll-out is for it, and the way of a bundle from its files to its commit.

Every step is on the disk before the next begins, and none of the steps back needs the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from brise.errors import BriseError, FleetError
from brise.fleet import trial
from brise.fleet.bundle import Bundle
from brise.fleet.install import MOST_STARTS, Installation
from brise.fleet.install_state import FAILED, PASSED, STAGED, TRIAL, InstalledBundle, UpdateAttempt
from brise.fleet.local_gate import GateResult
from brise.fleet.offers import Forgotten, OfferedRollout
from brise.fleet.refusals import NoRoomError, SourceError
from brise.fleet.sources import Source
from brise.fleet.trial import TrialSignals

FOR_EVER_S = 1e12
RUNNING, HALTED, COMPLETE, TAKEN_BACK = "running", "halted", "complete", "back"


class OfferLike(Protocol):
    """What a repository offers (trust.Offer)."""

    @property
    def rollouts(self) -> tuple[OfferedRollout, ...]: ...

    @property
    def bundles(self) -> Mapping[str, str]: ...

    @property
    def forgotten(self) -> Forgotten: ...


class BundleRepository(Protocol):
    """Where bundles come from (trust.TrustedRepository)."""

    def bundle(self, digest: str) -> Bundle: ...
    def fetch_bundle(self, bundle: Bundle, folder: Path, sources: Sequence[Source] = ()) -> None: ...
    def drop_incoming(self) -> None: ...


@dataclass(frozen=True)
class UpdateParts:
    """What an update needs of the device. `gate` runs the local gate, `signals` reads those of a trial, `is_safe` says
    whether now is a moment for a swap; `now` is the device's clock. `install` is NAME or NAME:VERSION of a bundle that
    is wanted here without a roll-out, as from a stick."""

    device: str
    installation: Installation
    gate: Callable[[InstalledBundle, Bundle], GateResult]
    signals: Callable[[UpdateAttempt, Bundle], TrialSignals]
    is_safe: Callable[[], bool]
    now: Callable[[], float]
    note: Callable[[str], None]
    peers: Callable[[], Sequence[Source]] = lambda: ()
    safe_wait_s: float = 86400.0
    install: str | None = None


class Updates:
    """One device's updates, one at a time."""

    def __init__(self, parts: UpdateParts) -> None:
        self._parts, self._installation = parts, parts.installation

    def act(self, offer: OfferLike, repository: BundleRepository) -> None:
        """Goes back where the hub says so, and begins an update if one is for this device."""
        for rollout in offer.rollouts:
            self._obey(rollout)
        wanted = self.wanted((*self._own_wish(offer), *offer.rollouts))
        if wanted is not None:
            self._begin(wanted, repository)

    def wanted(self, rollouts: Sequence[OfferedRollout]) -> OfferedRollout | None:
        """The roll-out that is to be installed: the last one that has this device, if its bundle is not here already.
        One that was tried here and went back is not tried again."""
        state, now_s = self._installation.state, self._parts.now()
        if state.attempt is not None:
            return None
        for rollout in reversed(rollouts):
            rollout = _going_back(rollout)
            if not rollout.has(self._parts.device) or state.has_tried(rollout.rollout, rollout.bundle):
                continue
            if state.current is not None and state.current.bundle == rollout.bundle:
                return None
            if rollout.state == RUNNING and rollout.not_before_s <= now_s <= rollout.deadline_s:
                return rollout
        return None

    def _own_wish(self, offer: OfferLike) -> tuple[OfferedRollout, ...]:
        """The bundle that this device's operator wants, as a roll-out of its own. Those of the hub go before it."""
        name, colon, version = (self._parts.install or "").partition(":")
        found = [(int(target.removesuffix(".json").rpartition("/")[2]), digest)
                 for digest, target in offer.bundles.items() if target.startswith(f"bundles/{name}/")]
        number, digest = max((one for one in found if not colon or str(one[0]) == version), default=(0, ""))
        if not number:
            return ()
        return (OfferedRollout(f"own-{name}-{number}"[:100], digest, 1.0, RUNNING, "own", 0.0, FOR_EVER_S),)

    def advance(self) -> None:
        """The next step of the update under way, if it can be made now."""
        attempt = self._installation.state.attempt
        if attempt is None:
            return
        try:
            bundle = self._installation.read(attempt.bundle)
            if attempt.state == STAGED:
                self._gate(attempt, bundle)
            elif attempt.state == PASSED:
                self._begin_trial(attempt)
            elif attempt.state == TRIAL:
                self._judge(attempt, bundle)
        except FleetError as error:
            self._give_up(str(error.args[0]), FAILED if attempt.state == STAGED else None)

    def _obey(self, rollout: OfferedRollout) -> None:
        """A roll-out that was halted or taken back ends here, too."""
        state = self._installation.state
        if rollout.state not in (HALTED, TAKEN_BACK):
            return
        word = "halted" if rollout.state == HALTED else "taken back"
        if state.attempt is not None and state.attempt.bundle.rollout == rollout.rollout:
            self._give_up(f"the roll-out was {word}")
        current, previous = state.current, state.previous
        is_of_it = current is not None and (current.rollout, current.bundle) == (rollout.rollout, rollout.bundle)
        is_there = previous is not None and rollout.back_to in (None, previous.bundle)
        if rollout.state == TAKEN_BACK and is_of_it and is_there:
            self._installation.go_back("the roll-out was taken back")
            self._parts.note(f"the roll-out {rollout.rollout} was taken back: the bundle before it answers")

    def _begin(self, rollout: OfferedRollout, repository: BundleRepository) -> None:
        """Fetches and stages the bundle. What breaks off is resumed at the next poll."""
        bundle = repository.bundle(rollout.bundle)
        self._installation.prepare(bundle)
        try:
            repository.fetch_bundle(bundle, self._installation.fetching, self._parts.peers())
        except (SourceError, NoRoomError) as error:
            self._parts.note(f"{bundle.name} {bundle.version} is not fetched yet: {error.args[0]}")
            return
        repository.drop_incoming()
        self._installation.fetched(bundle, rollout)
        try:
            self._installation.stage(bundle)
        except FleetError as error:
            self._give_up(str(error.args[0]))
            return
        self._parts.note(f"{bundle.name} {bundle.version} is staged")

    def _gate(self, attempt: UpdateAttempt, bundle: Bundle) -> None:
        """Each try is counted before it is made: a bundle that takes the machine down does so three times at most."""
        if self._installation.num_starts(attempt.bundle) >= MOST_STARTS:
            self._give_up(f"the local gate did not end {MOST_STARTS} times", FAILED)
            return
        self._installation.count_start(attempt.bundle)
        try:
            result = self._parts.gate(attempt.bundle, bundle)
        except BriseError as error:
            self._give_up(str(error.args[0]), FAILED)
            return
        self._installation.is_ready(attempt.bundle)
        if result.is_passed:
            self._installation.advance(PASSED)
            self._parts.note(f"{bundle.name} {bundle.version} passed the local gate")
        else:
            self._give_up("; ".join(result.failures), FAILED)

    def _begin_trial(self, attempt: UpdateAttempt) -> None:
        is_late = self._parts.now() - attempt.since_s > self._parts.safe_wait_s
        if is_late or self._parts.is_safe():
            self._installation.advance(TRIAL)
            self._parts.note(f"{attempt.bundle.name} {attempt.bundle.version} is on trial")

    def _judge(self, attempt: UpdateAttempt, bundle: Bundle) -> None:
        if self._installation.num_starts(attempt.bundle) >= MOST_STARTS:
            self._give_up(f"it did not start {MOST_STARTS} times")
            return
        signals = self._parts.signals(attempt, bundle)
        verdict = trial.judge(signals, attempt.trial, self._parts.now() - attempt.since_s, bundle)
        if verdict.against is not None:
            self._give_up(verdict.against)
        elif verdict.is_passed and self._installation.num_starts(attempt.bundle) == 0:  # it is running
            self._installation.commit()
            self._parts.note(f"{bundle.name} {bundle.version} is committed after {signals.requests} requests")
        else:
            self._installation.tried(signals.requests)

    def _give_up(self, reason: str, state: str | None = None) -> None:
        attempt = self._installation.state.attempt
        if attempt is None:  # another thread was first
            return
        self._parts.note(f"{attempt.bundle.name} {attempt.bundle.version} goes back: {reason}")
        if state is None:
            self._installation.give_up(reason)
        else:
            self._installation.give_up(reason, state)


def _going_back(rollout: OfferedRollout) -> OfferedRollout:
    """A roll-out that was taken back to a bundle that is not here any more offers that one, to every device that it
    had."""
    if rollout.state != TAKEN_BACK or rollout.back_to is None:
        return rollout
    return OfferedRollout(rollout.rollout, rollout.back_to, rollout.share, RUNNING, rollout.salt, rollout.not_before_s,
                          rollout.deadline_s, rollout.trial)
