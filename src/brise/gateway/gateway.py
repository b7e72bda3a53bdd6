"""One request in, one answer out: from the large model, from the small one, or from whoever is left.

    handle ── _answer ─┬─ router.decide ── small.answer         the small model is sure: its answer goes out
                       ├─ _from_large ──── large.answer         the large model answers
                       └─ _replace ─────── fallback.answer      it failed: the small model answers or continues
           └─ _record ─── exchange, capture, observers          afterwards, and never in the way of the answer
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TextIO, get_args

from starlette.types import Message, Send

from brise.gateway.client_answer import end_with_error, send_error
from brise.gateway.exchange import exchange_of, outcome_of, priced, with_response
from brise.gateway.failure import BrokenAttempt, Delivery, UpstreamError, UpstreamFailure
from brise.gateway.headers import added
from brise.gateway.interfaces import (
    Background,
    CaptureSink,
    Decision,
    Declined,
    Escalated,
    Fallback,
    Observer,
    RequestOutcome,
    Router,
    SwitchedModel,
)
from brise.gateway.remote.models import RemoteModels
from brise.gateway.request import ClientRequest
from brise.gateway.trace import Attribute, TraceStep
from brise.gateway.upstreams import Upstreams
from brise.traffic import redact
from brise.traffic.prices import Prices
from brise.traffic.records import CLIENT_GONE, Exchange, Mode, Pending

MODES: Mapping[bytes, Mode] = {name.encode(): name for name in get_args(Mode)}
MOST_UNREAD = 256  # streams that wait for the reader's thread; with more, the event loop reads them, and slows down


@dataclass(frozen=True)
class Components:
    """The parts around the large model. Each may be missing."""

    router: Router | None = None
    small: SwitchedModel | None = None
    fallback: Fallback | None = None
    observers: Sequence[Observer] = ()
    background: Sequence[Background] = ()
    capture: CaptureSink | None = None
    prices: Prices | None = None
    id_key: bytes = b""  # that all gateways of a store share: see request.read
    remote: RemoteModels | None = None  # small models behind other servers


class Gateway:
    """Answers every request and has it written down. It belongs to the event loop's thread."""

    def __init__(self, large: Upstreams, components: Components = Components(), log: TextIO | None = None,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.large, self.components, self._now = large, components, now
        self._log = log or sys.stderr
        self._observers = list(components.observers)
        self._background: list[asyncio.Task[None]] = []
        self._running = set[asyncio.Task[object]]()
        self._is_ending = False
        self._reader, self._num_unread = ThreadPoolExecutor(1, "brise-reader"), 0

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no record may hold: the keys for the upstreams and for the small models' servers."""
        remote = self.components.remote
        return (*self.large.secrets, *(() if remote is None else remote.secrets))

    def add_observer(self, observer: Observer) -> None:
        """One more that sees every answered request, once."""
        if observer not in self._observers:
            self._observers.append(observer)

    def start(self) -> None:
        """Begins what runs beside the requests; called in the event loop."""
        self._background = [asyncio.create_task(self._run(each)) for each in self.components.background]

    async def handle(self, request: ClientRequest, send: Send) -> RequestOutcome:
        """Sends an answer, whatever happens. Cancel it when the client has gone."""
        task, client = asyncio.current_task(), _Client(send)
        assert task is not None
        self._running.add(task)
        outcome = RequestOutcome(client.mode, CLIENT_GONE, error="the client went away")
        try:
            outcome = await self._answer(request, client.send)
        except asyncio.CancelledError:
            outcome = replace(outcome, mode=client.mode)
            if not self._is_ending:
                raise
            task.uncancel()
            outcome = await self._shut_down(request, client)
        finally:
            self._running.discard(task)
            self._record(request, outcome)
        return outcome

    def end(self) -> None:
        """Ends the requests that are being answered, with an error that their clients see: the server shuts down."""
        self._is_ending = True
        for task in self._running:
            task.cancel()

    def close(self) -> None:
        """Ends the background work and the connections to the large models. All that was answered has been given to the
        capture by then."""
        self._reader.shutdown()
        for task in self._background:
            task.cancel()
        self.large.close()
        if self.components.remote is not None:
            self.components.remote.close()

    # Who answers.

    async def _answer(self, request: ClientRequest, send: Send) -> RequestOutcome:
        router, small = self.components.router, self.components.small
        decision = Decision() if router is None else self._decide(router, request)
        if decision.where == "hosted" or small is None:
            return await self._from_large(request, send, "hosted")
        with _step(request, "small model", {"brise.small_model": decision.small or ""}):
            answer = await small.answer(request, decision, send)
        match answer:
            case RequestOutcome():
                return answer
            case Escalated(draft, signals):
                outcome = await self._from_large(request, send, "escalated")
                drafts = () if draft is None else (draft,)
                return replace(outcome, signals=signals, answers=(*outcome.answers, *drafts))

    def _decide(self, router: Router, request: ClientRequest) -> Decision:
        with _step(request, "switch decision", {"brise.task": request.task}) as step:
            decision = router.decide(request)
            if step is not None:
                step.attributes |= {"brise.decision.where": decision.where, "brise.decision.step": decision.step,
                                    "brise.decision.small_model": decision.small or ""}
        return decision

    async def _from_large(self, request: ClientRequest, send: Send, mode: Mode) -> RequestOutcome:
        fallback = self.components.fallback
        try:
            delivery = await self.large.answer(request, send, added(request, mode, request.model),
                                               stops_at_faults=fallback is not None and fallback.can_answer(request))
        except UpstreamError as error:
            return await self._replace(request, send, error.failure, error.delivery or Delivery())
        if delivery.fault is not None:  # it reached the client as it was
            return RequestOutcome("failed", delivery.status, error=str(delivery.fault), unread=delivery)
        return RequestOutcome(mode, delivery.status, unread=delivery)

    async def _replace(self, request: ClientRequest, send: Send, failure: UpstreamFailure,
                       delivery: Delivery) -> RequestOutcome:
        """The large model's answer did not come, or not to its end."""
        broken = BrokenAttempt(failure, delivery.progress(request.dialect), bytes(delivery.body))
        fallback = self.components.fallback
        can_continue = not delivery.has_begun or broken.progress is not None
        if fallback is not None and can_continue and fallback.can_answer(request):
            with _step(request, "fallback", {"brise.fallback.reason": failure.kind}) as step:
                outcome = await fallback.answer(request, broken, send)
                if step is not None:
                    step.error = "declined" if isinstance(outcome, Declined) else (
                        "failed" if outcome.mode == "failed" else None)
            if isinstance(outcome, RequestOutcome):
                return replace(outcome, lost=delivery.lost)
            failure = replace(failure, detail=f"{failure.detail}; {outcome.why}")
        if not delivery.has_begun:
            await send_error(request.dialect, failure, added(request, "failed", None), send)
            return RequestOutcome("failed", failure.client_status, error=str(failure), lost=delivery.lost)
        if delivery.takes_event:
            await end_with_error(request.dialect, failure, send)
        # Any other answer stays incomplete, and the server ends the connection: so the client sees it too.
        return outcome_of(delivery, request, "failed", str(failure))

    async def _shut_down(self, request: ClientRequest, client: _Client) -> RequestOutcome:
        failure = UpstreamFailure("ended", "the server shut down before the answer was complete")
        if not client.has_begun:
            await send_error(request.dialect, failure, added(request, "failed", None), client.send)
        elif client.is_stream:
            await end_with_error(request.dialect, failure, client.send)
        return RequestOutcome("failed", client.status or failure.client_status, error=str(failure))

    # What is written down.

    def _record(self, request: ClientRequest, outcome: RequestOutcome) -> None:
        """After the answer, and never in its way: the body of a long stream is put together on a thread of its own,
        because the event loop would stand still meanwhile, for the client of this request too."""
        if not request.dialect.is_read and request.method != "POST":
            return
        total_s = self._now() - request.started_s
        is_short = outcome.unread is None or not outcome.unread.is_stream
        if (is_short and len(request.secrets) <= redact.FEW) or self._num_unread >= MOST_UNREAD:
            self._notify(request, self._write(request, outcome, total_s))
        else:
            self._num_unread += 1
            self._reader.submit(self._write_on_reader, request, outcome, total_s, asyncio.get_running_loop())

    def _write_on_reader(self, request: ClientRequest, outcome: RequestOutcome, total_s: float,
                         loop: asyncio.AbstractEventLoop) -> None:
        exchange = self._write(request, outcome, total_s)
        with suppress(RuntimeError):  # the event loop is closed: there is nobody to notify
            loop.call_soon_threadsafe(self._notify_read, request, exchange)

    def _notify_read(self, request: ClientRequest, exchange: Exchange | None) -> None:
        self._num_unread -= 1
        self._notify(request, exchange)

    def _write(self, request: ClientRequest, outcome: RequestOutcome, total_s: float) -> Exchange | None:
        """Gives the row to the capture. Runs on either thread; None after a defect of ours."""
        capture = self.components.capture
        try:
            outcome = priced(with_response(outcome, request), request, self.components.prices)
            exchange = exchange_of(request, outcome, total_s)
            if capture is not None and request.is_captured:
                capture.record(exchange, outcome.answers,
                               (Pending(request.id, request.at_s),) if outcome.pending else ())
            elif capture is not None:
                capture.skip("off")
        except Exception:
            self._complain(f"{request.id} was answered, but not written down")
            return None
        return exchange

    def _notify(self, request: ClientRequest, exchange: Exchange | None) -> None:
        try:
            if exchange is not None:
                for observer in self._observers:
                    observer.observe(request, exchange)
        except Exception:
            self._complain(f"{request.id} was answered, but not every observer was notified")

    async def _run(self, background: Background) -> None:
        """A defect of ours must not go unseen, and must not end the requests."""
        try:
            await background.run()
        except Exception:
            self._complain(f"{type(background).__name__} ended")

    def _complain(self, what: str) -> None:
        print(f"{what}:\n{traceback.format_exc()}", file=self._log, flush=True)


def _step(request: ClientRequest, name: str, attributes: Mapping[str, Attribute]
          ) -> AbstractContextManager[TraceStep | None]:
    """A step of the request's trace, if anybody exports it."""
    return nullcontext() if request.trace is None else request.trace.step(name, attributes)


class _Client:
    """The client of one request; it remembers how far its answer has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.has_begun, self.is_stream = 0, False, False
        self.mode: Mode = "hosted"  # of the answer that has begun; the large model is asked first

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun, self.status = True, message["status"]
            sent = dict(message["headers"])
            self.is_stream = sent.get(b"content-type", b"").startswith(b"text/event-stream")
            self.mode = MODES.get(sent.get(b"x-brise-mode", b""), self.mode)
        await self._send(message)
