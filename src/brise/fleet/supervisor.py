"""Keeps a server running behind the device's port: starts it, swaps it for another one, starts it again when it ends.

The port's socket is bound once and handed down (serve/handover.py). A new server is started beside the old one and
takes over when it is ready; where the machine has not the memory for both, the old one stops first, and connections
wait in the kernel's queue, or a peer answers them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from brise import settings
from brise.errors import BriseError, FleetError
from brise.fleet.install_state import InstalledBundle
from brise.serve.app import BACKLOG, bind
from brise.serve.handover import READY
from brise.serve.serving import ServeSettings

TICK_S = 0.1
PROGRAM = (sys.executable, "-m", "brise")
BIND_S = 10.0
SPARE = 1.1  # of the memory that a server plans, so much must be free for two beside each other
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 60.0  # between two starts of a server that does not get ready


@dataclass(frozen=True)
class ServerOrder:
    """What is to run: the words of a command, for which bundle, and the memory that it takes."""

    installed: InstalledBundle
    words: Sequence[str]
    nbytes: int = 0


class ServerProcess(Protocol):
    """A server that was started."""

    @property
    def is_ready(self) -> bool:
        """Whether it has said that it answers."""

    @property
    def has_ended(self) -> bool: ...

    def stop(self) -> None:
        """Asks it to finish what it answers; it takes no new connection from now on."""

    def kill(self) -> None: ...


class Child:
    """`brise` (or another `program`) as a process of its own, behind a socket that listens. It ends when this process
    does."""

    def __init__(self, words: Sequence[str], listener: socket.socket, log: Path, home: Path,
                 program: Sequence[str] = PROGRAM) -> None:
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        fds = {"--listen-fd": listener.fileno(), "--supervisor-fd": theirs.fileno()}
        options = [word for option, number in fds.items() for word in (option, str(number))]
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [*program, *words, *options], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, pass_fds=tuple(fds.values()), start_new_session=True,
                env=settings.child_environment({"BRISE_HOME": str(home)}))
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """See ServerProcess."""
        if not self._is_ready:
            with suppress(BlockingIOError, OSError):
                self._is_ready = self._link.recv(64) == READY
        return self._is_ready

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """See ServerProcess."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._link.close()

    def _signal(self, number: int) -> None:
        if not self.has_ended:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


@dataclass
class _Running:
    order: ServerOrder
    process: ServerProcess
    since_s: float


class Supervisor:
    """`choose` says what is to run, each time before something is started; None: nothing. `count_start` is called
    before each start and `is_ready` after it, `on_crash` when a server that was ready ends by itself; `has_room` says
    whether so many bytes of memory are free.

    `run` belongs to a thread of its own; everything else may be called from any thread.
    """

    def __init__(self, choose: Callable[[], ServerOrder | None], start: Callable[[ServerOrder], ServerProcess], *,
                 count_start: Callable[[InstalledBundle], int], is_ready: Callable[[InstalledBundle], None],
                 has_room: Callable[[int], bool] = lambda nbytes: True, ready_s: float = 300.0, drain_s: float = 60.0,
                 on_change: Callable[[bool], None] = lambda answers: None,
                 on_crash: Callable[[InstalledBundle], None] = lambda installed: None,
                 note: Callable[[str], None] = lambda text: None,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._choose, self._start, self._count_start, self._said_ready = choose, start, count_start, is_ready
        self._has_room, self._ready_s, self._drain_s, self._now = has_room, ready_s, drain_s, now
        self._on_change, self._on_crash, self._note = on_change, on_crash, note
        self._answers: _Running | None = None
        self._starts: _Running | None = None
        self._drains: list[_Running] = []
        self._next_start_s, self._wait_s = 0.0, FIRST_WAIT_S
        self._stopped = threading.Event()
        self._ticking = threading.Lock()

    @property
    def answering(self) -> InstalledBundle | None:
        """The bundle whose server answers now."""
        running = self._answers
        return None if running is None or running.process.has_ended else running.order.installed

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped.wait(TICK_S):
            self.tick()

    def stop(self) -> None:
        """Stops the servers, which finish what they answer."""
        self._stopped.set()
        with self._ticking:
            left = [each for each in (self._answers, self._starts, *self._drains) if each is not None]
            for each in left:
                each.process.stop()
            end_s = time.monotonic() + self._drain_s
            while time.monotonic() < end_s and not all(each.process.has_ended for each in left):
                time.sleep(TICK_S / 2)
            for each in left:
                each.process.kill()
            self._answers = self._starts = None

    def make_room(self) -> None:
        """Stops the server that answers: what is to be tried needs its memory. The next `tick` starts it again."""
        with self._ticking:
            self._drop(self._answers)
            self._answers = None
            self._on_change(False)

    def tick(self) -> None:
        """Looks at the servers, and starts or stops what is due."""
        with self._ticking:
            self._reap()
            order = self._choose()
            self._look_at_start(order)
            if self._starts is not None or order is None or self._is_answering(order):
                return
            if self._now() < self._next_start_s:
                return
            if self._answers is not None and not self._has_room(order.nbytes):
                self._drop(self._answers)
                self._answers = None
                self._on_change(False)
                return  # it gives its memory back first
            self._begin(order)

    def _is_answering(self, order: ServerOrder) -> bool:
        return self._answers is not None and self._answers.order == order

    def _begin(self, order: ServerOrder) -> None:
        if self._drains and not self._has_room(order.nbytes):
            return
        self._count_start(order.installed)
        try:
            self._starts = _Running(order, self._start(order), self._now())
        except (FleetError, OSError) as error:
            self._note(f"{order.installed.name} {order.installed.version} cannot be started: {error}")
            self._back_off()

    def _back_off(self) -> None:
        self._next_start_s = self._now() + self._wait_s
        self._wait_s = min(2 * self._wait_s, MOST_WAIT_S)

    def _look_at_start(self, order: ServerOrder | None) -> None:
        """The server that is being started: it takes over, or it failed."""
        starting = self._starts
        if starting is None:
            return
        is_late = self._now() - starting.since_s > self._ready_s
        if starting.order != order:
            starting.process.kill()
            self._starts = None
        elif starting.process.has_ended or is_late:
            starting.process.kill()
            self._starts = None
            self._back_off()
        elif starting.process.is_ready:
            self._drop(self._answers)
            self._answers, self._starts, self._wait_s = starting, None, FIRST_WAIT_S
            self._said_ready(starting.order.installed)
            self._on_change(True)

    def _reap(self) -> None:
        """Servers that ended, and those that drain for too long."""
        if self._answers is not None and self._answers.process.has_ended:
            self._answers.process.kill()
            self._on_crash(self._answers.order.installed)
            self._answers = None
            self._on_change(False)
        left = list[_Running]()
        for each in self._drains:
            if each.process.has_ended or self._now() - each.since_s > self._drain_s:
                each.process.kill()
            else:
                left.append(each)
        self._drains = left

    def _drop(self, running: _Running | None) -> None:
        if running is not None:
            running.process.stop()
            self._drains.append(_Running(running.order, running.process, self._now()))


def bound_port(host: str, port: int) -> socket.socket:
    """The port. The server of a node that was killed a moment ago may still have it, and is about to let it go."""
    end_s = time.monotonic() + BIND_S
    while True:
        try:
            listener = bind(ServeSettings(host, port))
        except BriseError:
            if time.monotonic() > end_s:
                raise
            time.sleep(TICK_S)
        else:
            listener.listen(BACKLOG)
            return listener


def has_room(nbytes: int) -> bool:
    """Whether so many bytes are free, and a little more. Where the system does not say, two servers are too many."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        except ValueError:
            return False
    return free >= SPARE * nbytes
