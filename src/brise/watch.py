"""What work that takes minutes tells whoever watches it: notes in words, and how far it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]  # so many more bytes, tokens or rows are done


class Watcher(Protocol):
    """Shows what happens. The command line shows it on stderr; a program may keep it, or leave it to `Silent`."""

    def note(self, text: str) -> None:
        """A line that is no result: what was left out, what begins."""

    def progress(self, task: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Surrounds a task of `total` bytes, tokens, rows or prompts; the task calls what it gets with each part."""


class Silent:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None:
        """See Watcher."""

    @contextmanager
    def progress(self, task: str, total: int, unit: str) -> Iterator[Advance]:
        """See Watcher."""
        yield lambda count: None


SILENT: Watcher = Silent()


class RunningClock:
    """Seconds in which the process ran. Time in which it stood still (SIGSTOP, a suspended laptop) is left out.

    Something calls `tick` every half second. Where no call came for longer, nothing ran: not even what only waits
    for an answer, which therefore counts.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._lock = now, threading.Lock()
        self._last, self._ran = now(), 0.0

    def tick(self) -> None:
        """The process runs."""
        with self._lock:
            now = self._now()
            gap, self._last = now - self._last, now
            self._ran += gap if gap <= LONGEST_GAP_S else TICK_S

    def __call__(self) -> float:
        self.tick()
        return self._ran


TICK_S, LONGEST_GAP_S = 0.5, 5.0  # a busy machine may let a thread wait for seconds


@contextmanager
def running_clock() -> Iterator[RunningClock]:
    """A clock that a thread keeps running."""
    clock, ended = RunningClock(), threading.Event()

    def keep() -> None:
        while not ended.wait(TICK_S):
            clock.tick()

    thread = threading.Thread(target=keep, name="brise-clock", daemon=True)
    thread.start()
    try:
        yield clock
    finally:
        ended.set()
        thread.join()


def size_text(num_bytes: int) -> str:
    """98362432 as '98.4 MB'."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
