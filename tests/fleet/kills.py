"""Cuts an update by SIGKILL at its writes, and looks who answers after that: `python -m tests.fleet.kills 15`.

A device with version 1 gets version 2, in a process that is killed before its K-th change of the device's folder; then
it is started again, as a service would be. Whoever answers must have read all of its files from one version.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from brise.demo.child import reserved_port
from brise.fleet import kill_points
from tests.fleet.devices import device, ship
from tests.fleet.repositories import Fleet
from tests.waiting import LIMIT_S, wait_until


@dataclass(frozen=True)
class Cut:
    """A kill before change `number`: the version that answered first, how long after the kill, and whether version 2
    was committed in the end. `was_killed` is False where the update had fewer changes."""

    number: int
    was_killed: bool
    version: int
    seconds: float
    is_committed: bool


def cuts(folder: Path, numbers: Iterator[int]) -> Iterator[Cut]:
    """The outcome of a kill at each of these changes."""
    (folder / "fleet").mkdir(parents=True)
    fleet = Fleet(folder / "fleet")
    ship(fleet, 1)
    with device(fleet, folder / "first") as rig:
        rig.settle(1)
    ship(fleet, 2)
    for number in numbers:
        place = folder / f"cut-{number}"
        shutil.copytree(folder / "first", place)
        with reserved_port() as port:
            yield _cut(fleet, place, number, port)
        shutil.rmtree(place)


def _cut(fleet: Fleet, place: Path, number: int, port: int) -> Cut:
    def update() -> None:
        kill_points.arm(place / "node", number)
        with device(fleet, place, port=port) as rig:
            rig.settle(2)

    with _forked(update) as process:
        _, status = os.waitpid(process, 0)
    killed_s = time.monotonic()

    def serve() -> None:
        with device(fleet, place, port=port) as rig:
            rig.run_until(lambda: False)

    with _forked(serve) as process:
        first = _answer(port)
        seconds = time.monotonic() - killed_s
        try:
            wait_until(lambda: _answer(port)["version"] == 2 and _is_committed(place))
        except AssertionError:
            raise AssertionError(f"cut {number} does not converge: {_state(place)}") from None
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert first["version"] == first["adapter"], "its files are of two versions"
    return Cut(number, os.WIFSIGNALED(status), first["version"], seconds, _is_committed(place))


def _state(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "node" / "bundles" / "state.json").read_bytes())
    return found


def _is_committed(place: Path) -> bool:
    state = _state(place)
    return bool(state["attempt"] is None and state["current"]["version"] == 2)


def _answer(port: int) -> dict[str, Any]:
    """What the port says, as soon as anybody answers there."""
    end_s = time.monotonic() + LIMIT_S
    with httpx.Client(trust_env=False, timeout=1.0) as client:
        while time.monotonic() < end_s:
            try:
                found: dict[str, Any] = client.get(f"http://127.0.0.1:{port}/").json()
            except httpx.HTTPError:
                time.sleep(0.005)
            else:
                return found
    raise AssertionError("nobody answers")


@contextmanager
def _forked(work: Callable[[], None]) -> Iterator[int]:
    """A process that does the work and ends; it is killed if the block ends before it."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        yield process
    finally:
        try:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def main() -> None:
    """A line of JSON for each kill: at every change of the update, or at each `step`-th, up to one that comes too late.

    How many changes an update has depends on how often the device looks at its server meanwhile.
    """
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        for cut in cuts(Path(folder), itertools.count(1, step)):
            sys.stdout.write(json.dumps(asdict(cut)) + "\n")
            sys.stdout.flush()
            if not cut.was_killed:
                break


if __name__ == "__main__":
    main()
