"""The large model as the gateway asks it: with retries, behind a circuit breaker, and twice at a time if it is slow."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from starlette.types import Message, Send

from brise.dialects.bodies import Usage
from brise.gateway import headers
from brise.gateway.breaker import Breaker, BreakerSettings, Caller, Permit, Scope
from brise.gateway.exchange import outcome_of
from brise.gateway.failure import Delivery, Refusal, UpstreamError, UpstreamFailure
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.rate_limit import UpstreamRate
from brise.gateway.relay import pass_on
from brise.gateway.request import ClientRequest, Headers
from brise.gateway.retry import BUSY, NOTHING_SENT, Retries, RetrySettings, is_safe, retry_after_s
from brise.gateway.stream_usage import CountedStreams
from brise.gateway.upstream import HostedServer, UpstreamResponse

REFUSAL_BYTES = 1 << 20  # of an error's body
Wait = Callable[[float], Awaitable[object]]


class LargeModel:
    """Asks one upstream. It belongs to the event loop's thread. `now`, `wait` and `retries` are for tests."""

    def __init__(self, upstream: HostedServer, *, breaker: Breaker | None = None, retries: Retries | None = None,
                 hedge_after_s: float | None = None, rate: UpstreamRate | None = None,
                 now: Callable[[], float] = time.monotonic, wait: Wait = asyncio.sleep) -> None:
        self.upstream, self.breaker = upstream, breaker or Breaker(BreakerSettings(), now)
        self._streams, self.rate = CountedStreams(upstream), rate
        self.retries = retries or Retries(RetrySettings())
        self._hedge_after_s, self._now, self._wait = hedge_after_s, now, wait
        self.failures = Counter[str]()
        self.num_hedged = 0

    async def answer(self, request: ClientRequest, send: Send, added: Headers, *,
                     stops_at_faults: bool = False) -> Delivery:
        """Passes the large model's answer on, also an error that the client caused (`stops_at_faults`: see relay).
        What it passes on may be a failure that came with status 200: then `fault` says which.

        UpstreamError if there is none; then `delivery` of the error says how much of an answer the client has.
        """
        self.retries.saw_request()
        unfit = self.upstream.unfit(request)
        if unfit is not None:
            delivery = Delivery(unfit.status, unfit.headers)
            await pass_on(unfit, request, send, added, delivery, self._now)
            return delivery
        number, lost = 0, list[Usage]()
        while True:
            delivery = Delivery(lost=lost)
            try:
                await self._traced(request, send, added, delivery, stops_at_faults)
                return delivery
            except UpstreamError as error:
                number += not error.failure.is_stale
                lost += _lost(request, delivery)
                wait_s = None if delivery.has_begun else self.retries.wait_s(request, error.failure, number)
                if wait_s is None:
                    error.delivery = delivery
                    raise
            await self._wait(wait_s)

    async def ask(self, request: ClientRequest) -> RequestOutcome:
        """Asks for itself, in the background, for a whole answer; UpstreamError if there is none.

        What the client's request says of streaming is left out. A status of 400 and more is in what is returned; a
        failure that comes with status 200 is raised.
        """
        assert request.fields is not None
        fields = {name: value for name, value in request.fields.items() if name not in ("stream", "stream_options")}
        whole = replace(request, fields=fields, body=json.dumps(fields).encode(), started_s=self._now(),
                        trace=None)
        delivery = await self.answer(whole, _nowhere, (), stops_at_faults=True)
        return outcome_of(delivery, whole, "hosted")

    async def _traced(self, request: ClientRequest, send: Send, added: Headers, delivery: Delivery,
                      stops_at_faults: bool) -> None:
        """An attempt, as a step of the request's trace if it has one."""
        trace = request.trace
        if trace is None:
            await self._attempt(request, send, added, delivery, stops_at_faults)
            return
        with trace.step(request.method, {"http.request.method": request.method, "brise.upstream": request.upstream},
                        is_client=True) as step:
            failure = None
            try:
                await self._attempt(replace(request, headers=trace.passed_on(request.headers, step)), send, added,
                                    delivery, stops_at_faults)
                failure = delivery.fault
            except UpstreamError as error:
                failure = error.failure
                raise
            finally:
                status = delivery.status or (failure.status if failure is not None else None) or 0
                if status:
                    step.attributes["http.response.status_code"] = status
                if failure is not None or status >= 400:
                    step.error = failure.kind if failure is not None and failure.kind != "status" else str(status)

    async def _attempt(self, request: ClientRequest, send: Send, added: Headers, delivery: Delivery,
                       stops_at_faults: bool) -> None:
        caller = Caller(request.wire_model, request.client, request.body)
        permit = self.breaker.enter(caller)
        if permit is None:
            wait_s = self.breaker.wait_of(caller)
            raise UpstreamError(UpstreamFailure("open",
                                                f"it failed again and again; it is asked anew in {wait_s:.0f} s",
                                                retry_after_s=wait_s))
        try:
            if self.rate is not None:
                await self.rate.admit()
            async with self._opened(request) as reply:
                if reply.status in BUSY:
                    raise UpstreamError(await _refused(reply))
                delivery.status, delivery.headers = reply.status, reply.headers
                try:
                    await pass_on(reply, request, send, added, delivery, self._now, stops_at_faults=stops_at_faults)
                finally:
                    delivery.usage = reply.usage
        except UpstreamError as error:
            if error.failure.kind != "limited":  # that says nothing of the upstream
                self._count(permit, error.failure)
            raise
        else:
            self._count(permit, delivery.fault)
        finally:
            self.breaker.left(permit)

    def _count(self, permit: Permit, failure: UpstreamFailure | None) -> None:
        if failure is None:
            self.breaker.succeeded(permit)
            return
        self.failures[failure.kind] += 1
        if self._is_outage(failure):
            self.breaker.failed(permit, failure.retry_after_s, scope=_at_fault(failure))

    def _is_outage(self, failure: UpstreamFailure) -> bool:
        """Whether the server is at fault. A rate limit of one client's key does not concern the others."""
        if failure.status == 429:
            return self.upstream.settings.key is not None
        return not failure.is_stale

    @asynccontextmanager
    async def _opened(self, request: ClientRequest) -> AsyncIterator[UpstreamResponse]:
        reply = await (self._streams.open(request) if self._hedge_after_s is None or not is_safe(request)
                       else self._first_of_two(request, self._hedge_after_s))
        try:
            yield reply
        finally:
            reply.close()

    async def _first_of_two(self, request: ClientRequest, after_s: float) -> UpstreamResponse:
        """The request is sent again if it is not answered in time; who answers first wins, the other is ended."""
        tasks = [asyncio.ensure_future(self._streams.open(request))]
        try:
            await asyncio.wait(tasks, timeout=after_s)
            if not tasks[0].done():
                self.num_hedged += 1
                tasks.append(asyncio.ensure_future(self._streams.open(request)))
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not any(task.done() and task.exception() is None for task in tasks):
                    await asyncio.wait(tasks)
            won = next((task for task in tasks if task.done() and task.exception() is None), tasks[0])
            tasks.remove(won)
            return won.result()
        finally:
            for task in tasks:
                task.cancel()
                with suppress(UpstreamError, asyncio.CancelledError):
                    (await task).close()


def _at_fault(failure: UpstreamFailure) -> Scope:
    """The smallest part that may be at fault: a request can make an answer fail, but no connection and no limit of the
    gateway's own key."""
    if failure.kind in NOTHING_SENT:
        return "upstream"
    return "model" if failure.status == 429 else "request"


def _lost(request: ClientRequest, delivery: Delivery) -> Sequence[Usage]:
    """The tokens that an attempt counted of which the client has nothing."""
    usage = delivery.usage or (None if delivery.fields is None else request.dialect.usage(delivery.fields))
    return () if usage is None or delivery.has_begun else (usage,)


async def _refused(reply: UpstreamResponse) -> UpstreamFailure:
    """An answer that says "not now", with all that the client would be shown of it."""
    body = bytearray()
    async for piece in reply.chunks():
        body += piece
        if len(body) > REFUSAL_BYTES:
            break
    is_whole = len(body) <= REFUSAL_BYTES
    advice = headers.find(reply.headers, b"x-should-retry").strip().lower()
    return UpstreamFailure("status", f"status {reply.status}", reply.status, retry_after_s(reply.headers),
                           may_repeat={b"true": True, b"false": False}.get(advice),
                           refusal=Refusal(reply.status, reply.headers, bytes(body)) if is_whole else None)


async def _nowhere(message: Message) -> None:
    """Where an answer goes that no client waits for."""
