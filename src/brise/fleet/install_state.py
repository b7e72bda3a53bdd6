"""What a device knows of its bundles: the committed one, the one before it, an update under way, and what ended.

It is one value, which stands in one file (install.py). An update's states are those that the hub is told:

    fetched -> verified -> staged -> gate-passed -> trial -> committed
                             |                        |
                             +-> gate-failed          +-> rolled-back
"""

from __future__ import annotations

from dataclasses import dataclass

from brise.fleet.offers import TrialTerms

SLOTS = ("a", "b")
FETCHED, VERIFIED, STAGED, PASSED, TRIAL = "fetched", "verified", "staged", "gate-passed", "trial"
FAILED, COMMITTED, BACK = "gate-failed", "committed", "rolled-back"


@dataclass(frozen=True)
class InstalledBundle:
    """A bundle in one of the two folders, and the roll-out that brought it. `bundle` is its manifest's SHA-256."""

    slot: str
    bundle: str
    name: str
    version: int
    rollout: str


@dataclass(frozen=True)
class UpdateAttempt:
    """An update that is under way. `requests` were answered in its trial, which is why it may end."""

    bundle: InstalledBundle
    state: str
    since_s: float
    trial: TrialTerms
    requests: int = 0


@dataclass(frozen=True)
class EndedAttempt:
    """A bundle of a roll-out that this device does not try again, and why."""

    rollout: str
    bundle: str
    reason: str


@dataclass(frozen=True)
class StateReport:
    """A change of state that the hub is to know. `event` is its id: a report that comes twice is counted once."""

    event: str
    at_s: float
    rollout: str
    bundle: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class InstallState:
    """All that a device knows of its bundles. `forgotten` is the number of the last list of destroyed keys that it
    acted on, `flagged` are bundles that were trained on what such a list names."""

    current: InstalledBundle | None = None
    previous: InstalledBundle | None = None
    attempt: UpdateAttempt | None = None
    ended: tuple[EndedAttempt, ...] = ()
    reports: tuple[StateReport, ...] = ()
    forgotten: int = 0
    flagged: tuple[str, ...] = ()
    format: int = 1

    @property
    def active(self) -> InstalledBundle | None:
        """The one that is to answer: the one on trial, else the one that is committed."""
        if self.attempt is not None and self.attempt.state == TRIAL:
            return self.attempt.bundle
        return self.current

    def has_tried(self, rollout: str, bundle: str) -> bool:
        """Whether this bundle of this roll-out was tried here and ended."""
        return any((one.rollout, one.bundle) == (rollout, bundle) for one in self.ended)
