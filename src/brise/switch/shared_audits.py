"""Audits that outlive their server: noted in the store while they wait, and made by another one if theirs is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from brise.errors import StoreError
from brise.gateway.request import ClientRequest
from brise.traffic.audits_waiting import WaitingAudit
from brise.traffic.records import Exchange
from brise.traffic.servers import Membership

ADOPT_EVERY_S = 30.0

Rebuild = Callable[[str], tuple[ClientRequest, Exchange] | None]  # from the store; None if it cannot be asked again


class Rows(Protocol):
    """The rows in the store (traffic/audits_waiting.py)."""

    def add(self, audit: WaitingAudit) -> None: ...
    def remove(self, exchange: str) -> None: ...
    def adopt(self, server: str, living: Collection[str]) -> list[WaitingAudit]: ...
    def close(self) -> None: ...


class SharedAudits:
    """Belongs to the event loop; the store is asked on a thread of its own, and one that is away loses only notes."""

    def __init__(self, rows: Rows, member: Membership, rebuild: Rebuild, every_s: float = ADOPT_EVERY_S) -> None:
        self._rows, self._member, self._rebuild, self._every_s = rows, member, rebuild, every_s
        self._thread = ThreadPoolExecutor(1, "brise-audits")
        self.failures = 0

    def note(self, exchange: Exchange, probability: float, switch: int) -> None:
        """Writes down that an audit waits; nobody waits for that."""
        audit = WaitingAudit(exchange.id, exchange.at_s, probability, switch, self._member.id)
        self._thread.submit(self._quietly, lambda: self._rows.add(audit))

    def settle(self, exchange: str) -> None:
        """It was made, or given up."""
        self._thread.submit(self._quietly, lambda: self._rows.remove(exchange))

    async def next(self) -> list[tuple[WaitingAudit, ClientRequest, Exchange]]:
        """Waits for some time, then gives what servers that are gone have left, if this server leads."""
        await asyncio.sleep(self._every_s)
        if not self._member.leads() or not self._member.living:
            return []
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._adopt)

    def close(self) -> None:
        """Ends the connection to the store after the last note."""
        self._thread.submit(self._rows.close)
        self._thread.shutdown(wait=False)

    def _adopt(self) -> list[tuple[WaitingAudit, ClientRequest, Exchange]]:
        try:
            adopted = [(audit, self._rebuild(audit.exchange))
                       for audit in self._rows.adopt(self._member.id, self._member.living)]
            for audit, built in adopted:
                if built is None:
                    self._rows.remove(audit.exchange)
        except StoreError:
            self.failures += 1
            return []
        return [(audit, *built) for audit, built in adopted if built is not None]

    def _quietly(self, write: Callable[[], None]) -> None:
        try:
            write()
        except StoreError:
            self.failures += 1
