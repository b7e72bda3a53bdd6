"""One request in, one answer out: from the hosted model, from the small one, or from whom ever is left."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TextIO, get_args

from starlette.types import Message, Send

from brise.gateway import error_response
from brise.gateway.exchange import exchange_of, read, served_of
from brise.gateway.failure import BrokenAttempt, Relayed, UpstreamError, UpstreamFailure
from brise.gateway.headers import added
from brise.gateway.interfaces import (
    Background,
    CaptureSink,
    Decision,
    Escalated,
    Fallback,
    Observer,
    RequestOutcome,
    Router,
    Small,
)
from brise.gateway.large_model import LargeModel
from brise.gateway.request import ClientRequest
from brise.traffic import redact
from brise.traffic.prices import Prices
from brise.traffic.records import Exchange, Mode, Pending, RecordedAnswer

MODES: Mapping[bytes, Mode] = {name.encode(): name for name in get_args(Mode)}
CLIENT_GONE = 499  # nginx's number; no client ever sees it
MOST_UNREAD = 256  # streams that wait for the reader's thread; then the event loop does its work, and so slows down


@dataclass(frozen=True)
class Components:
    """What stands around the hosted model; each part may be missing."""

    router: Router | None = None
    small: Small | None = None
    fallback: Fallback | None = None
    observers: Sequence[Observer] = ()
    background: Sequence[Background] = ()
    capture: CaptureSink | None = None
    prices: Prices | None = None


class Gateway:
    """Answers every request that it is given, and sees to it that it is written down. Of the event loop's thread."""

    def __init__(self, hosted: LargeModel, parts: Components = Components(), log: TextIO | None = None,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.hosted, self.parts, self._now = hosted, parts, now
        self._log = log or sys.stderr
        self._observers = list(parts.observers)
        self._background: list[asyncio.Task[None]] = []
        self._running = set[asyncio.Task[object]]()
        self._is_ending = False
        self._reader, self._num_unread = ThreadPoolExecutor(1, "brise-reader"), 0

    def watch(self, observer: Observer) -> None:
        """Tells one more of every answered request."""
        self._observers.append(observer)

    def start(self) -> None:
        """Begins what runs beside the requests; called in the event loop."""
        self._background = [asyncio.create_task(self._beside(each)) for each in self.parts.background]

    async def handle(self, asked: ClientRequest, send: Send) -> RequestOutcome:
        """Sends an answer, whatever happens. Cancel it where the client has gone."""
        task, out = asyncio.current_task(), _Out(send)
        assert task is not None
        self._running.add(task)
        served = RequestOutcome(out.mode, CLIENT_GONE, error="the client went away")
        try:
            served = await self._serve(asked, out.send)
        except asyncio.CancelledError:
            served = replace(served, mode=out.mode)
            if not self._is_ending:
                raise
            task.uncancel()
            served = await self._end(asked, out)
        finally:
            self._running.discard(task)
            self._record(asked, served)
        return served

    def end(self) -> None:
        """Ends what runs, with an error that its client sees: the server shuts down."""
        self._is_ending = True
        for task in self._running:
            task.cancel()

    def close(self) -> None:
        """Ends what runs beside the requests, and the connections to the hosted model. What was answered is with the
        capture then."""
        self._reader.shutdown()
        for task in self._background:
            task.cancel()
        self.hosted.upstream.close()

    async def _end(self, asked: ClientRequest, out: _Out) -> RequestOutcome:
        failure = UpstreamFailure("ended", "the server shut down before the answer was complete")
        if not out.has_begun:
            await error_response.send(asked.dialect, failure, added(asked, "failed", None), out.send)
        elif out.is_stream:
            await error_response.end_stream(asked.dialect, failure, out.send)
        return RequestOutcome("failed", out.status or failure.client_status, error=str(failure))

    async def _serve(self, asked: ClientRequest, send: Send) -> RequestOutcome:
        decision = Decision() if self.parts.router is None else self.parts.router.decide(asked)
        if decision.where == "hosted" or self.parts.small is None:
            return await self._hosted(asked, send, "hosted")
        outcome = await self.parts.small.answer(asked, decision, send)
        match outcome:
            case RequestOutcome():
                return outcome
            case Escalated():
                served = await self._hosted(asked, send, "escalated")
                drafts: Sequence[RecordedAnswer] = () if outcome.draft is None else (outcome.draft,)
                return replace(served, signals=outcome.signals, answers=(*served.answers, *drafts))

    async def _hosted(self, asked: ClientRequest, send: Send, mode: Mode) -> RequestOutcome:
        fallback = self.parts.fallback
        try:
            relayed = await self.hosted.answer(asked, send, added(asked, mode, asked.model),
                                               stops_at_faults=fallback is not None and fallback.fits(asked))
        except UpstreamError as error:
            return await self._replace(asked, send, error.failure, error.relayed or Relayed())
        return RequestOutcome(mode, relayed.status, unread=relayed)

    async def _replace(self, asked: ClientRequest, send: Send, failure: UpstreamFailure,
                       relayed: Relayed) -> RequestOutcome:
        """The hosted model's answer did not come, or not to its end."""
        broken = BrokenAttempt(failure, relayed.progress(asked.dialect), bytes(relayed.body))
        fallback = self.parts.fallback
        can_go_on = not relayed.has_begun or broken.progress is not None
        if fallback is not None and can_go_on and fallback.fits(asked):
            outcome = await fallback.answer(asked, broken, send)
            if isinstance(outcome, RequestOutcome):
                return outcome
            failure = replace(failure, detail=f"{failure.detail}; {outcome.why}")
        if not relayed.has_begun:
            await error_response.send(asked.dialect, failure, added(asked, "failed", None), send)
            return RequestOutcome("failed", failure.client_status, error=str(failure))
        if relayed.is_stream:
            await error_response.end_stream(asked.dialect, failure, send)
        # Else the answer stays incomplete, and the server ends the connection: so the client sees it too.
        return served_of(relayed, asked, "failed", str(failure))

    async def _beside(self, part: Background) -> None:
        """A defect of ours must not go unseen, and must not end the requests."""
        try:
            await part.run()
        except Exception:
            self._complain(f"{type(part).__name__} ended")

    def _record(self, asked: ClientRequest, served: RequestOutcome) -> None:
        """After the answer, and never in its way: a stream is put together beside the event loop, which would stand
        still for it, and so is the request that asked for it."""
        if not asked.dialect.is_read and asked.method != "POST":
            return
        total_s = self._now() - asked.started_s
        if served.unread is None or not served.unread.is_stream or self._num_unread >= MOST_UNREAD:
            self._tell(asked, self._keep(asked, served, total_s))
        else:
            self._num_unread += 1
            self._reader.submit(self._read, asked, served, total_s, asyncio.get_running_loop())

    def _read(self, asked: ClientRequest, served: RequestOutcome, total_s: float,
              loop: asyncio.AbstractEventLoop) -> None:
        """On the reader's thread."""
        exchange = self._keep(asked, served, total_s)
        with suppress(RuntimeError):  # the event loop is closed: nobody is there to be told
            loop.call_soon_threadsafe(self._tell_read, asked, exchange)

    def _tell_read(self, asked: ClientRequest, exchange: Exchange | None) -> None:
        self._num_unread -= 1
        self._tell(asked, exchange)

    def _keep(self, asked: ClientRequest, served: RequestOutcome, total_s: float) -> Exchange | None:
        """The row, which is with the capture then. Runs on either thread; None after a defect of ours."""
        try:
            served = read(served, asked)
            if served.cost_usd is None and self.parts.prices is not None and served.mode in ("hosted", "escalated"):
                served = replace(served, cost_usd=self.parts.prices.cost(served.served_by, asked.model, served.usage))
            exchange = redact.exchange(exchange_of(asked, served, total_s), asked.secrets)
            if self.parts.capture is not None and asked.is_captured:
                pending = (Pending(asked.id, asked.at_s),) if served.pending else ()
                answers = [redact.answer(each, asked.secrets) for each in served.answers]
                self.parts.capture.record(exchange, answers, pending)
            elif self.parts.capture is not None:
                self.parts.capture.skip("off")
        except Exception:
            self._complain(f"{asked.id} was answered, but not written down")
            return None
        return exchange

    def _tell(self, asked: ClientRequest, exchange: Exchange | None) -> None:
        try:
            if exchange is not None:
                for observer in self._observers:
                    observer.after(asked, exchange)
        except Exception:
            self._complain(f"{asked.id} was answered, but not everybody was told")

    def _complain(self, what: str) -> None:
        print(f"{what}:\n{traceback.format_exc()}", file=self._log, flush=True)


class _Out:
    """The way to the client, which remembers what it has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.has_begun, self.is_stream = 0, False, False
        self.mode: Mode = "hosted"  # of what was begun; the hosted model is asked first

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun, self.status = True, message["status"]
            sent = dict(message["headers"])
            self.is_stream = sent.get(b"content-type", b"").startswith(b"text/event-stream")
            self.mode = MODES.get(sent.get(b"x-brise-mode", b""), self.mode)
        await self._send(message)
