"""A process that confines itself, starts the golden path, and counts what tries to leave. `run.py` starts it.

usage: python -m brise.doctor.airgap.watched (namespace | seccomp) FOLDER

The golden path runs in a thread's child: the filter is that thread's, and this process's own thread, which has none,
answers what the filter stops. The folder gets the results; the exit status says what could not be had.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType

from brise.doctor.airgap import namespace, seccomp
from brise.doctor.airgap.seccomp import Listener
from brise.doctor.airgap.witness import Attempt, Witness
from brise.errors import UnsupportedError

NO_NAMESPACE, NO_FILTER = 77, 78  # exit statuses
OPTIONS, COMMAND, STEPS, ATTEMPTS = "options.json", "command", "steps.jsonl", "attempts.json"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what outlives its parent becomes our child
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG: who started this one may be killed
_GRACE_S = 0.3  # for what the last command left behind


def main(confinement: str, folder: Path) -> int:
    """Runs the golden path that the folder's options describe."""
    if confinement == "namespace":
        try:
            namespace.enter()
        except OSError as error:
            print(error.strerror or str(error), file=sys.stderr)  # noqa: T201 - for the process that started this one
            return NO_NAMESPACE
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)  # behind `enter`, which would clear it
    signal.signal(signal.SIGTERM, partial(_end, folder))
    path = _GoldenPath(folder)
    path.start()
    listener = path.listener()
    if listener is None:
        print(path.problem, file=sys.stderr)  # noqa: T201
        return NO_FILTER
    witness = Witness(listener, lambda: _text(folder / COMMAND))
    try:
        witness.watch(path.is_over)
    finally:
        _end_children()
        listener.close()
    (folder / ATTEMPTS).write_text(json.dumps(_rows(witness.attempts)), encoding="utf-8")
    return path.status


class _GoldenPath(threading.Thread):
    """The thread that has the filter, and the process that it starts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="brise-golden-path", daemon=True)
        self._folder = folder
        self._has_filter, self._ended = threading.Event(), threading.Event()
        self._listener: Listener | None = None
        self.problem, self.status = "", 1

    def run(self) -> None:
        """See Thread."""
        try:
            self._listener = seccomp.install()
        except (OSError, UnsupportedError) as error:
            self.problem = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            return
        finally:
            self._has_filter.set()
        try:
            # subprocess forks this very thread, so that the child has its filter.
            self.status = subprocess.call([sys.executable, "-m", "brise.doctor.airgap.golden_path", str(self._folder)])
        finally:
            self._ended.wait(_GRACE_S)
            self._ended.set()

    def listener(self) -> Listener | None:
        """The descriptor of the filter, when it is there; None if it cannot be had."""
        self._has_filter.wait()
        return self._listener

    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._ended.is_set()


def _rows(attempts: Counter[Attempt]) -> list[dict[str, object]]:
    return [{**asdict(attempt), "count": count} for attempt, count in attempts.items() if count > 0]


def _end(folder: Path, number: int, frame: FrameType | None) -> None:
    """On SIGTERM: nobody waits for the results any more."""
    _end_children()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + number)


def _end_children() -> None:
    """Kills what commands left running; none of it may go on without somebody who watches.

    The children of each that is killed become ours.
    """
    while children := [int(number) for path in Path("/proc/self/task").glob("*/children")
                       for number in path.read_text().split()]:
        for number in children:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for number in children:
            with suppress(ChildProcessError):
                os.waitpid(number, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "the golden path itself"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2])))
