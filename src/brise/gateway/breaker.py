"""The circuit breaker: after several failures in a row the upstream is left alone, and tried again now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerSettings:
    """When it opens, and for how long. The pause doubles with every probe that fails."""

    failures: int = 5  # in a row
    pause_s: float = 5.0
    longest_pause_s: float = 60.0


@dataclass(frozen=True)
class Permit:
    """A request that was let through; it is given back when its result is known."""

    is_probe: bool


class Breaker:
    """Closed: everything goes through. Open: nothing does. Half-open: one request at a time goes through, as a probe.

    Time is that of a monotonic clock, so that setting the machine's clock opens and closes nothing.
    """

    def __init__(self, settings: BreakerSettings, now: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._now = settings, now
        self._failures, self._pause_s = 0, settings.pause_s
        self._open_until_s: float | None = None
        self._probe: Permit | None = None
        self.num_opened = 0

    @property
    def state(self) -> BreakerState:
        """The state as the next request meets it."""
        if self._open_until_s is None:
            return "closed"
        return "open" if self._now() < self._open_until_s else "half-open"

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe may go."""
        return 0.0 if self._open_until_s is None else max(self._open_until_s - self._now(), 0.0)

    def enter(self) -> Permit | None:
        """Lets a request through, or returns None. For each permit `succeeded`, `failed` or `left` is called."""
        if self._open_until_s is None:
            return Permit(is_probe=False)
        if self._probe is not None or self._now() < self._open_until_s:
            return None
        self._probe = Permit(is_probe=True)
        return self._probe

    def succeeded(self, permit: Permit) -> None:
        """The upstream answered: it is there again, whoever asked."""
        self.left(permit)
        self._failures, self._open_until_s, self._pause_s = 0, None, self._settings.pause_s

    def failed(self, permit: Permit, wait_s: float | None = None) -> None:
        """The upstream did not answer; `wait_s` is how long it asks to wait."""
        self.left(permit)
        self._failures += 1
        if self._open_until_s is None:
            if self._failures >= self._settings.failures:
                self._open(wait_s)
        elif permit.is_probe:  # other requests began before it opened, and tell nothing new
            self._pause_s = min(self._pause_s * 2, self._settings.longest_pause_s)
            self._open(wait_s)

    def left(self, permit: Permit) -> None:
        """The result is unknown: the client went away before there was an answer."""
        if permit is self._probe:
            self._probe = None

    def _open(self, wait_s: float | None) -> None:
        pause_s = max(self._pause_s, min(wait_s or 0.0, self._settings.longest_pause_s))
        self._open_until_s = self._now() + pause_s
        self.num_opened += 1
