"""The loop of a device: it polls, leads its update a step further, and sends its reports, whatever fails meanwhile.

A poll is one conditional request in a period, with jitter as a share of the period, so that ten thousand devices which
came up together spread out; after failures the period grows. Nothing here can stop the server that answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from brise.errors import BriseError, FleetError
from brise.fleet.device_reports import DeviceReports
from brise.fleet.install import Installation
from brise.fleet.install_state import InstalledBundle
from brise.fleet.refusals import UntrustedError
from brise.fleet.update import BundleRepository, OfferLike, Updates

MOST_FACTOR = 8  # by which the period grows while polls fail


class OfferRepository(BundleRepository, Protocol):
    """A repository that is polled (trust.TrustedRepository)."""

    def refresh(self) -> OfferLike: ...


@dataclass
class PollSchedule:
    """When to poll next: `period_s`, give or take `jitter` as a share of it. The first poll comes within the jitter."""

    period_s: float
    jitter: float
    draw: Callable[[], float] = random.random
    next_s: float = 0.0
    num_failures: int = 0

    def begin(self, now_s: float) -> None:
        """The device has come up; so have all others, where the power was cut."""
        self.next_s = now_s + self.period_s * self.jitter * self.draw()

    def done(self, now_s: float, *, is_fine: bool) -> None:
        """A poll ended."""
        self.num_failures = 0 if is_fine else self.num_failures + 1
        factor = min(2.0**self.num_failures, MOST_FACTOR) if self.num_failures else 1.0
        self.next_s = now_s + self.period_s * factor * (1 + self.jitter * (2 * self.draw() - 1))


class Node:
    """One device's loop. `send` sends the outbox and returns how many records were acknowledged, None: there is no hub;
    `monotonic` is a clock that never jumps."""

    def __init__(self, repository: OfferRepository, updates: Updates, reports: DeviceReports,
                 installation: Installation, schedule: PollSchedule, monotonic: Callable[[], float], *,
                 send: Callable[[], int] | None, note: Callable[[str], None],
                 each_step: Sequence[Callable[[], None]] = ()) -> None:
        self._repository, self._updates, self._reports = repository, updates, reports
        self._installation, self._schedule, self._monotonic = installation, schedule, monotonic
        self._send, self._note, self._each_step = send, note, each_step
        self._said = dict[str, str]()  # the last failure of each kind of work, so that it is said once
        self._can_send = True
        schedule.begin(monotonic())

    def step(self) -> None:
        """One pass. A failure is said once, and the next pass tries again."""
        self._try("the update", self._updates.advance)
        for work in self._each_step:
            self._try("the device", work)
        has_news = bool(self._installation.state.reports)
        self._try("the reports", self._reports.collect)
        if self._monotonic() >= self._schedule.next_s:
            self.poll()
        elif has_news and self._can_send:
            self._can_send = self._send_all()

    def poll(self) -> None:
        """Looks at the repository, and sends what waits."""
        is_fine = self._try("the repository", self._look)
        self._try("the reports", self._reports.collect)
        self._can_send = self._send_all()
        self._schedule.done(self._monotonic(), is_fine=is_fine and self._can_send)

    def _look(self) -> None:
        try:
            offer = self._repository.refresh()
            self._reports.forget(offer.forgotten, self._trained_on())
            self._updates.act(offer, self._repository)
        except UntrustedError as error:
            if self._said.get("the repository") != str(error.args[0]):
                self._reports.alarm("refused", {"error": type(error).__name__, "message": str(error.args[0])[:500]})
            raise

    def _trained_on(self) -> list[tuple[InstalledBundle, Sequence[str]]]:
        """The bundles here, and the digests of what they were trained on."""
        found = list[tuple[InstalledBundle, Sequence[str]]]()
        state = self._installation.state
        for installed in (state.current, state.previous):
            if installed is not None:
                lineage = self._installation.read(installed).lineage
                found.append((installed, () if lineage is None else (
                    lineage.data_digest, lineage.base_digest, lineage.adapter_digest)))
        return found

    def _send_all(self) -> bool:
        send = self._send
        return send is None or self._try("sending reports", send)

    def _try(self, name: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except (BriseError, OSError) as error:
            said = str(error.args[0] if isinstance(error, FleetError) and error.args else error)
            if self._said.get(name) != said:
                self._note(f"{name}: {said}")
            self._said[name] = said
            return False
        if self._said.pop(name, None) is not None:
            self._note(f"{name}: all is well again")
        return True

