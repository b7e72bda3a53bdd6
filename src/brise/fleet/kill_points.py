"""Ends this process by SIGKILL before its N-th change of a folder, so that tests can cut an update at every write.

Python tells an audit hook of each file that is opened for writing and of each name that is made, changed or removed,
whoever does it; so no part of an update has to know of this. Nothing is armed unless the environment says so.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from brise import settings

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"})


def arm(folder: Path, number: int | None = None) -> None:
    """Kills this process before change `number` of the folder, by default the one that the environment names."""
    number = settings.kill_at_write() if number is None else number
    if number is not None:
        watch(folder, lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == number else None)


def watch(folder: Path, before: Callable[[int], None]) -> None:
    """Calls `before` with the number of each change of the folder, for as long as this process lives."""
    inside, count = str(folder.absolute()), 0

    def hook(event: str, arguments: Sequence[object]) -> None:
        nonlocal count
        if is_change(event, arguments, inside):
            count += 1
            before(count)

    sys.addaudithook(hook)


def is_change(event: str, arguments: Sequence[object], inside: str) -> bool:
    """Whether an audit event is one of a change below the folder `inside`."""
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & WRITING:
            return False
    elif event not in CHANGES:
        return False
    path = arguments[0]
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    return name.startswith(inside)
