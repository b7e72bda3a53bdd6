"""A server among those that share its store: it says every two seconds that it is there, and looks at the others.

    beat        its row, with fingerprints and load            lead      one of all does what one is to do
    adapters    what was loaded through one, all load          clock     times are the store's

The store is asked on a thread of its own: one that hangs holds up nothing else.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from brise.errors import BriseError, StoreError
from brise.traffic.ledger import Chain, LedgerBreak
from brise.traffic.servers import BEAT_S, Membership, SeenServer, ServerReport, Servers, SharedAdapter, odd_models
from brise.traffic.stores import POSTGRES, open_servers

T = TypeVar("T")
SILENCE_S = 3 * BEAT_S  # of the store: then it is out of reach
LOADED_S, LOOK_S = 3 * BEAT_S, 0.1
LEAVE_S = 2.0
WRITE_S = 10.0  # until a store that was asked to write something counts as out of reach


class LocalServer(Protocol):
    """What this process serves. All of it belongs to the event loop."""

    def report(self) -> ServerReport:
        """What it says of itself."""
    def chain(self) -> Chain | None:
        """The ledger as it was read here; None if nothing here follows one."""
    def adapters(self) -> Mapping[str, str]:
        """The digests of the adapters that are loaded, by name."""
    async def load(self, adapter: SharedAdapter) -> str:
        """Loads it, and gives its digest."""
    async def unload(self, name: str) -> None: ...


@dataclass(frozen=True)
class _Seen:
    """The answer of the store to one beat."""

    servers: Sequence[SeenServer]
    adapters: Sequence[SharedAdapter]
    ledger_end: tuple[int, str] | None


class Replica:
    """This server among the others. `join` begins, `leave` ends; it belongs to the event loop."""

    def __init__(self, servers: Servers, member: Membership, log: TextIO | None = None,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._servers, self.member, self._log, self._now = servers, member, log or sys.stderr, now
        self._thread = ThreadPoolExecutor(1, "brise-replica")
        self._beating: asyncio.Task[None] | None = None
        self.id = self.name = ""
        self.is_settled = False  # the store was asked once, and what all load is loaded, or the store is out of reach
        self.servers: Sequence[SeenServer] = ()
        self.error: str | None = None  # of the store
        self.odd: Mapping[str, Mapping[str, int]] = {}
        self.not_loaded: Mapping[str, str] = {}  # adapters that all should have, and why this one has not
        self.ledger_fault: LedgerBreak | None = None
        self._contact_s = self._now()

    def join(self, here: LocalServer, address: str) -> None:
        """Begins to beat, under the name HOST:PORT."""
        port = address.partition("//")[2].partition("/")[0].rpartition(":")[2]
        self.name = f"{socket.gethostname()}:{port}"
        self.id = f"{self.name}/{os.getpid()}-{time.time_ns() % 1_000_000:06d}"
        self._beating = asyncio.create_task(self._run(here))

    async def leave(self) -> None:
        """Takes its row away, if the store answers."""
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
            self._beating = None
            with suppress(BriseError, TimeoutError):
                await self._ask(lambda: self._servers.leave(self.id), LEAVE_S)

    def close(self) -> None:
        """Ends the connection to the store."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._servers.close()

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the store has not answered of late."""
        return self.error is not None or self._now() - self._contact_s > SILENCE_S

    async def share(self, adapter: SharedAdapter) -> None:
        """Has all servers load or unload an adapter. StoreError if that could not be written."""
        await self._ask(lambda: self._servers.share_adapter(adapter), WRITE_S)

    async def wait_loaded(self, name: str) -> tuple[int, int]:
        """Waits until all servers have a model of this name, for three beats at most: how many do, of how many."""
        until_s = self._now() + LOADED_S
        while True:
            there = [server for server in self.servers if server.counts]
            loaded = sum(name in server.report.fingerprints for server in there)
            if loaded == len(there) or self._now() >= until_s:
                return loaded, len(there)
            await asyncio.sleep(LOOK_S)

    async def _run(self, here: LocalServer) -> None:
        while True:
            start_s = self._now()
            try:
                await self._beat(here)
            except BriseError as error:
                self._failed(error)
            self.is_settled = True
            await asyncio.sleep(max(start_s + BEAT_S - self._now(), BEAT_S / 4))

    async def _beat(self, here: LocalServer) -> None:
        report = here.report()
        seen = await self._ask(lambda: self._exchange(report), None)
        self.error, self._contact_s, self.servers = None, self._now(), seen.servers
        started_s = next((server.started_s for server in seen.servers if server.id == self.id), self.member.now_s())
        self.member.id, self.member.living = self.id, frozenset(
            server.id for server in seen.servers if not server.is_gone) | {self.id}
        self.member.num_servers = max(sum(server.counts for server in seen.servers), 1)
        chain = here.chain()
        self.ledger_fault = None if chain is None else chain.fault or chain.check_end(seen.ledger_end)
        await self._load(here, seen.adapters)
        self.odd = odd_models(self.id, here.report().fingerprints, seen.servers, started_s)

    def _exchange(self, report: ServerReport) -> _Seen:
        """On the thread: says that the server is there, and reads what others said."""
        leads = self._servers.lead()
        self.member.update(leads=leads, now_s=self._servers.now_s())
        self._servers.beat(self.id, self.name, replace(report, leads=leads))
        if leads:
            self._servers.forget_gone()
        return _Seen(self._servers.all(), self._servers.adapters(), self._servers.ledger_end())

    async def _load(self, here: LocalServer, wanted: Sequence[SharedAdapter]) -> None:
        """Loads and unloads what others were told to; what cannot be loaded is said, and tried again."""
        failed = dict[str, str]()
        for adapter in wanted:
            loaded = here.adapters().get(adapter.name)
            try:
                if adapter.is_removed and loaded == adapter.digest:
                    await here.unload(adapter.name)
                elif not adapter.is_removed and loaded is None:
                    loaded = await here.load(adapter)
                if not adapter.is_removed and loaded != adapter.digest:
                    failed[adapter.name] = (f"its digest is {(loaded or 'none')[:12]} here, where it was loaded first "
                                            f"{adapter.digest[:12]}")
            except BriseError as error:
                failed[adapter.name] = str(error)
        for name in failed.keys() - self.not_loaded.keys():
            print(f"brise: the adapter {name!r}, which other servers have, is not loaded: {failed[name]}",
                  file=self._log, flush=True)
        self.not_loaded = failed

    def _failed(self, error: BriseError) -> None:
        if self.error is None:
            print(f"brise: the other servers are out of reach: {error}", file=self._log, flush=True)
        self.error = str(error)
        self.member.update(leads=False)

    async def _ask(self, call: Callable[[], T], timeout_s: float | None) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except TimeoutError:
            raise StoreError(f"the store has not answered within {timeout_s:g} s") from None


def clock_of(replica: Replica | None) -> Callable[[], float]:
    """The time by which keys expire: the store's, if there are others."""
    return time.time if replica is None else replica.member.now_s


@contextmanager
def open_replica(place: str | Path | None, home: Path, log: TextIO | None = None) -> Iterator[Replica | None]:
    """This server among those that share the store at `place`; None if that is a file, which is for one server."""
    if not (isinstance(place, str) and place.startswith(POSTGRES)):
        yield None
        return
    replica = Replica(open_servers(place, home), Membership(), log)
    try:
        yield replica
    finally:
        replica.close()
