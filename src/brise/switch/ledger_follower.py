"""Follows the ledger that a gateway shares with others: what another gateway writes holds here, too, soon after."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TextIO

from brise.dialects.bodies import Body
from brise.errors import BriseError
from brise.switch.state import Action, Switches, TaskState, due, next_state_or_ended
from brise.traffic.ledger import Chain
from brise.traffic.store import TrafficStore

PATIENCE_S = 0.25  # how long a request waits for the store
POLL_S = 0.25  # reading a ledger without new lines is one index lookup: tens of microseconds


class Follower:
    """Holds the state of all tasks. `look` reads new lines; `run` does so all the time, and writes lines that are due
    as long as it `leads` those that share the store. `chain` says whether the lines are whole.

    If the store cannot be read, the last known state stays in force: the large model may be down as well.
    """

    def __init__(self, store: TrafficStore, clock: Callable[[], float] = time.time, log: TextIO | None = None,
                 patience_s: float = PATIENCE_S, leads: Callable[[], bool] = lambda: True) -> None:
        self._leads, self.chain = leads, Chain()
        self._store, self._clock, self._log, self._patience_s = store, clock, log or sys.stderr, patience_s
        self._switches = Switches()
        self._folding = threading.Lock()  # a line counts once, whichever thread reads it
        self._looking, self._refreshing = asyncio.Lock(), asyncio.Lock()
        self._late: asyncio.Future[None] | None = None  # a read that the store has not answered yet
        self._noted: list[Action] = []
        self._has_work = asyncio.Event()
        self.failures = 0  # of reading or writing the ledger

    @property
    def switches(self) -> Switches:
        return self._switches

    def state(self, task: str) -> TaskState | None:
        """The state of a task, as far as it is known here."""
        return self._switches.tasks.get(task)

    def write(self, action: Action) -> None:
        """Notes a line for the ledger; it is written in the background, once if several requests bring it about."""
        if action not in self._noted:
            self._noted.append(action)
            self._has_work.set()

    async def look(self) -> None:
        """Reads the lines that others have written since. A request waits for it, so it writes nothing, does not wait
        for writers, and gives up on a store that hangs: then the last known state stays in force."""
        try:
            async with asyncio.timeout(self._patience_s), self._looking:
                if self._late is not None and not self._late.done():
                    return
                self._late = asyncio.get_running_loop().run_in_executor(None, self._read_if_possible)
                await asyncio.shield(self._late)
        except TimeoutError:
            pass

    async def refresh(self) -> None:
        """Reads the lines that others have written since, and writes what follows from them."""
        async with self._refreshing:
            self._has_work.clear()
            noted, self._noted = self._noted, []
            left = await asyncio.to_thread(self._step, noted)
            self._noted = [*left, *self._noted]

    async def append(self, kind: str, body: Body) -> None:
        """Writes a line, and reads on. Raises what the store raises."""
        await asyncio.to_thread(self._store.append, kind, body)
        await self.refresh()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.refresh()
            try:
                await asyncio.wait_for(self._has_work.wait(), POLL_S)
            except TimeoutError:
                continue

    def _step(self, noted: Sequence[Action]) -> Sequence[Action]:
        """Returns what could not be written."""
        left = deque(noted)
        try:
            self._read()
            while left:
                self._write(left[0])
                left.popleft()
            while self._leads() and any([self._write_due(state) for state in self._switches.tasks.values()]):
                pass
        except BriseError as error:
            self._failed(error)
        return tuple(left)

    def _read_if_possible(self) -> None:
        try:
            self._read()
        except BriseError as error:
            self._failed(error)

    def _failed(self, error: BriseError) -> None:
        if not self.failures:
            print(f"brise: the ledger cannot be followed: {error}", file=self._log, flush=True)
        self.failures += 1

    def _write_due(self, state: TaskState) -> bool:
        action = due(state, self._clock())
        if action is None:
            return False
        self._write(action)
        return True

    def _write(self, action: Action) -> None:
        self._store.append(action.kind, action.body)
        about = action.body
        print(f"brise: task {about['task']!r}: {action.kind}: {about['reason']}", file=self._log, flush=True)
        self._read()

    def _read(self) -> None:
        with self._folding:
            for entry in self._store.ledger(self._switches.number):
                self.chain.push(entry)
                self._switches = next_state_or_ended(self._switches, entry)
