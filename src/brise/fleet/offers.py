"""What the hub may decide, and nothing else: which signed bundle goes to which share of the devices, and when.

It is the target rollouts/current.json of the delegated role `rollouts`. A device installs a bundle only if its manifest
is a target of the release key besides; so whoever has the hub's keys can choose among signed bundles, and delay them.
"""

from __future__ import annotations

from dataclasses import dataclass

from brise.files.digests import DIGEST, NAME, hash_draw
from brise.files.typed_json import LARGEST_WHOLE
from brise.fleet.refusals import BundleError
from brise.fleet.strict_json import canonical, read

ROLE = "rollouts"
TARGET = "rollouts/current.json"
MOST_BYTES = 4 << 20
STATES = ("running", "paused", "halted", "complete", "back")


def _check(place: str, value: float, least: float, most: float) -> None:  # the first defaults below are checked by it
    if not least <= value <= most:
        raise BundleError(place, value, f"{least} to {most}")


@dataclass(frozen=True)
class TrialTerms:
    """How long a device tries a bundle before it commits: so many requests or hours, whichever comes first."""

    requests: int = 100
    hours: float = 24.0

    def __post_init__(self) -> None:
        _check("trial.requests", self.requests, 0, LARGEST_WHOLE)
        _check("trial.hours", self.hours, 0, 24 * 366)


@dataclass(frozen=True)
class OfferedRollout:
    """A roll-out as the devices see it. `bundle` and `back_to` are SHA-256 of manifests.

    Devices in it begin while it is running, from `not_before_s` to `deadline_s` (seconds since 1970). Halted: no device
    begins. Back: they go back to `back_to`, or to the bundle that each had before.
    """

    rollout: str
    bundle: str
    share: float
    state: str
    salt: str
    not_before_s: float
    deadline_s: float
    trial: TrialTerms = TrialTerms()
    back_to: str | None = None

    def __post_init__(self) -> None:
        if NAME.fullmatch(self.rollout) is None:
            raise BundleError("rollout", self.rollout, "a name of letters, digits, '.', '_' and '-'")
        for name in ("bundle", "back_to"):
            value = getattr(self, name)
            if value is not None and DIGEST.fullmatch(value) is None:
                raise BundleError(name, value, "a SHA-256 of 64 hexadecimal digits in lower case")
        if self.state not in STATES:
            raise BundleError("state", self.state, ", ".join(STATES))
        _check("share", self.share, 0, 1)
        _check("not_before_s", self.not_before_s, 0, LARGEST_WHOLE)
        _check("deadline_s", self.deadline_s, 0, LARGEST_WHOLE)

    def has(self, device: str) -> bool:
        """Whether the device is in. One draw for a roll-out: a larger share keeps all devices of a smaller one."""
        return hash_draw(f"{self.salt}:{device}") < self.share


@dataclass(frozen=True)
class Forgotten:
    """Digests of subjects and keys that were destroyed. `number` grows with each change and never falls."""

    number: int = 0
    digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("forgotten.number", self.number, 0, LARGEST_WHOLE)
        for digest in self.digests:
            if DIGEST.fullmatch(digest) is None:
                raise BundleError("forgotten.digests", digest, "SHA-256 of 64 hexadecimal digits")


@dataclass(frozen=True)
class RolloutList:
    """The whole file."""

    rollouts: tuple[OfferedRollout, ...] = ()
    forgotten: Forgotten = Forgotten()
    format: int = 1

    def __post_init__(self) -> None:
        _check("format", self.format, 1, 1)
        names = [one.rollout for one in self.rollouts]
        if len(set(names)) < len(names):
            raise BundleError("rollouts", "twice the same name", "each name once")


def read_rollouts(data: bytes) -> RolloutList:
    """The list in a file whose digest was verified; BundleError names the field, its value and the limit."""
    return read(RolloutList, data, "rollouts", MOST_BYTES)


def rollouts_json(offered: RolloutList) -> bytes:
    """The file, in the form that is signed."""
    return canonical(offered)
