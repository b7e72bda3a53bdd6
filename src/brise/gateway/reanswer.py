"""The large model's answers after an outage to what the small one answered meanwhile, slowly and in the background.

A request is asked again with the key it came with, which is held in memory only, or with the gateway's own. After a
restart only the latter is left: without one, requests of before it stay pending, and `brise log` shows them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from brise.errors import StoreError
from brise.gateway.exchange import answer_of
from brise.gateway.failure import UpstreamError
from brise.gateway.request import ClientRequest, read
from brise.gateway.upstreams import Upstreams
from brise.traffic.records import Exchange, RecordedAnswer
from brise.traffic.store import TrafficStore, UnknownExchangeError

JSON_HEADERS = ((b"content-type", b"application/json"),)
MAX_PLACES = 1000  # that are known to be up
NOT_ALLOWED = frozenset({401, 403})  # the key's fault, not the request's: it may be valid later


class Flushing(Protocol):
    """The capture: what was recorded is in the store when `flush` returns True."""

    def flush(self, timeout_s: float = 30.0) -> bool: ...


@dataclass(frozen=True)
class ReanswerOptions:
    """At most one request every `every_s`, one at a time; after one that failed, none before a client has had an answer
    or `probe_s` have passed. A request is asked `attempts` times at most while others have answers: attempts that find
    an outage still going on do not count. `max_held` keys are in memory."""

    every_s: float = 1.0
    probe_s: float = 60.0
    attempts: int = 5
    max_held: int = 1000
    max_held_bytes: int = 64 << 20


class Reanswer:
    """Remembers what the small model answered in an outage (`observe`), and asks the large model again (`run`)."""

    def __init__(self, large: Upstreams, store: TrafficStore, capture: Flushing,
                 options: ReanswerOptions = ReanswerOptions(), clock: Callable[[], float] = time.time,
                 leads: Callable[[], bool] = lambda: True) -> None:
        self._leads = leads
        self._large, self._store, self._capture = large, store, capture
        self._options, self._clock = options, clock
        self.counts = Counter[str]()
        self._held: OrderedDict[str, tuple[ClientRequest, int]] = OrderedDict()  # and how many attempts there were
        self._held_bytes = 0
        self._up = set[tuple[str, str]]()  # upstreams and their models that answered last
        self._came_back, self._has_work = asyncio.Event(), asyncio.Event()

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Holds what was answered in an outage, and learns which large models are available."""
        if exchange.mode == "degraded" and request.is_captured:
            self._hold(request, 0)
        if exchange.mode in ("degraded", "failed"):
            self._up.discard(_place(request))
        elif exchange.mode in ("hosted", "escalated") and exchange.error is None:
            self._saw(request)

    async def run(self) -> None:
        """Until it is cancelled."""
        options = self._options
        self._has_work.set()  # an earlier process may have left some
        while True:
            await self._has_work.wait()
            is_probe = False
            try:
                await asyncio.wait_for(self._came_back.wait(), options.probe_s)
            except TimeoutError:
                is_probe = True  # no client has asked for a while: this request finds out
            if not await self._next(is_probe=is_probe):
                self._has_work.clear()
            await asyncio.sleep(options.every_s)

    async def _next(self, *, is_probe: bool) -> bool:
        """Asks for one answer, of a model that is up or as a probe; False if no request waits."""
        try:
            oldest, is_waiting = await self._oldest(is_probe=is_probe)
            if oldest is None:
                self._came_back.clear()
                return is_waiting
            request, attempts = oldest
            was_up = _place(request) in self._up
            answer = await self._ask(request)
            if answer is not None:
                self._saw(request)
                await asyncio.to_thread(self._keep, answer)
                return True
            self._up.discard(_place(request))
            attempts += was_up
            if attempts < self._options.attempts:
                self._hold(request, attempts)
            if was_up:
                await asyncio.to_thread(self._postpone, request.id)
        except StoreError:
            self.counts["unwritten"] += 1  # it is still pending
        return True

    async def _ask(self, request: ClientRequest) -> RecordedAnswer | None:
        """The answer, which may be an error of the request; None if another attempt may bring one."""
        started_s, at_s = time.monotonic(), self._clock()
        try:
            outcome = await self._large.ask(request)
        except UpstreamError:
            self.counts["failed"] += 1
            return None
        if outcome.status in NOT_ALLOWED:
            self.counts["not_allowed"] += 1
            return None
        self.counts["answered" if outcome.error is None else "refused"] += 1
        return answer_of(request, "reanswer", at_s, outcome, time.monotonic() - started_s)

    def _saw(self, request: ClientRequest) -> None:
        if _place(request) not in self._up:
            if len(self._up) >= MAX_PLACES:
                self._up.clear()
            self._up.add(_place(request))
            self._came_back.set()

    async def _oldest(self, *, is_probe: bool) -> tuple[tuple[ClientRequest, int] | None, bool]:
        """The oldest request of a model that is up, or of any as a probe; and whether any waits."""
        for id, (request, attempts) in self._held.items():
            if is_probe or _place(request) in self._up:
                del self._held[id]
                self._held_bytes -= len(request.body)
                return (request, attempts), True
        if not self._large.has_own_key or not self._leads():  # of several gateways one asks for what is in the store
            return None, bool(self._held) or self._large.has_own_key
        stored, is_waiting = await asyncio.to_thread(self._stored, is_probe)
        return stored, is_waiting or bool(self._held)

    def _stored(self, is_probe: bool) -> tuple[tuple[ClientRequest, int] | None, bool]:
        """The same of those that wait in the store and have attempts left. Their upstream is the one they were for."""
        is_waiting = False
        for pending in self._store.pending(limit=1000):
            if pending.attempts < self._options.attempts:
                exchange = self._store.exchange(pending.exchange)
                if exchange is None or exchange.request is None or not self._large.pays(exchange.upstream):
                    continue
                request, is_waiting = request_of(exchange, self._large.secrets), True
                if is_probe or _place(request) in self._up:
                    return (request, pending.attempts), True
        return None, is_waiting

    def _postpone(self, exchange: str) -> None:
        self._capture.flush()  # the exchange may still be on its way to the store
        self._store.postpone(exchange)

    def _keep(self, answer: RecordedAnswer) -> None:
        self._capture.flush()
        try:
            self._store.add(answers=(answer,))
        except UnknownExchangeError:
            self.counts["orphan"] += 1  # it could not be written down, or was deleted
            return
        self._store.settle(answer.exchange)

    def _hold(self, request: ClientRequest, attempts: int) -> None:
        self._held[request.id] = request, attempts
        self._held_bytes += len(request.body)
        while len(self._held) > self._options.max_held or self._held_bytes > self._options.max_held_bytes:
            _, (dropped, _) = self._held.popitem(last=False)  # it stays pending in the store
            self._held_bytes -= len(dropped.body)
            self.counts["let_go"] += 1
        self._has_work.set()


def _place(request: ClientRequest) -> tuple[str, str]:
    """What may be up or down: a model of an upstream."""
    return request.upstream, request.wire_model


def request_of(exchange: Exchange, secrets: Sequence[str]) -> ClientRequest:
    """A request as it can be sent again with a key of the gateway's own."""
    body = json.dumps(exchange.request).encode()
    request = read("POST", exchange.path, exchange.path.encode(), JSON_HEADERS, body, secrets)
    return replace(request, id=exchange.id, upstream=exchange.upstream or "")
