"""One request in, one answer out: from the hosted model, from the small one, or from whom ever is left."""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from starlette.types import Send

from brise.gateway import refusal
from brise.gateway.asked import Asked, Headers
from brise.gateway.exchange import exchange_of, served_of
from brise.gateway.failure import Broken, Failure, Relayed, UpstreamError
from brise.gateway.hosted import Hosted
from brise.gateway.parts import Capture, Decision, Escalated, Fallback, Observer, Router, Served, Small
from brise.gateway.records import Answer, Mode, Pending

CLIENT_GONE = 499  # nginx's number; no client ever sees it


@dataclass(frozen=True)
class Parts:
    """What stands around the hosted model; each part may be missing."""

    router: Router | None = None
    small: Small | None = None
    fallback: Fallback | None = None
    observers: Sequence[Observer] = ()
    capture: Capture | None = None


class Gateway:
    """Answers every request that it is given, and sees to it that it is written down. Of the event loop's thread."""

    def __init__(self, hosted: Hosted, parts: Parts = Parts(), log: TextIO | None = None,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.hosted, self.parts, self._now = hosted, parts, now
        self._log = log or sys.stderr
        self.answered = Counter[Mode]()

    async def handle(self, asked: Asked, send: Send) -> Served:
        """Sends an answer, whatever happens. Cancel it where the client has gone."""
        served = Served("hosted", CLIENT_GONE, error="the client went away")
        try:
            served = await self._serve(asked, send)
            return served
        finally:
            self._record(asked, served)

    def close(self) -> None:
        """Ends the connections to the hosted model."""
        self.hosted.upstream.close()

    async def _serve(self, asked: Asked, send: Send) -> Served:
        decision = Decision() if self.parts.router is None else self.parts.router.decide(asked)
        if decision.where == "hosted" or self.parts.small is None:
            return await self._hosted(asked, send, "hosted")
        outcome = await self.parts.small.answer(asked, decision, send)
        match outcome:
            case Served():
                return outcome
            case Escalated():
                served = await self._hosted(asked, send, "escalated")
                drafts: Sequence[Answer] = () if outcome.draft is None else (outcome.draft,)
                return replace(served, signals=outcome.signals, answers=(*served.answers, *drafts))

    async def _hosted(self, asked: Asked, send: Send, mode: Mode) -> Served:
        try:
            relayed = await self.hosted.answer(asked, send, added(asked, mode, asked.model))
        except UpstreamError as error:
            return await self._replace(asked, send, error.failure, error.relayed or Relayed())
        return served_of(relayed, asked, mode)

    async def _replace(self, asked: Asked, send: Send, failure: Failure, relayed: Relayed) -> Served:
        """The hosted model's answer did not come, or not to its end."""
        broken = Broken(failure, relayed.progress if relayed.has_begun else None)
        fallback = self.parts.fallback
        can_go_on = not relayed.has_begun or relayed.progress is not None
        if fallback is not None and can_go_on and fallback.fits(asked):
            served = await fallback.answer(asked, broken, send)
            if served is not None:
                return served
        if not relayed.has_begun:
            await refusal.send(asked.kind, failure, added(asked, "failed", None), send)
            return Served("failed", failure.client_status, error=str(failure))
        if relayed.progress is not None:
            await refusal.end_stream(asked.kind, failure, send)
        # Else the answer stays incomplete, and the server ends the connection: so the client sees it too.
        return served_of(relayed, asked, "failed", str(failure))

    def _record(self, asked: Asked, served: Served) -> None:
        """After the answer, and never in its way."""
        try:
            self.answered[served.mode] += 1
            exchange = exchange_of(asked, served, self._now() - asked.started_s)
            if self.parts.capture is not None and asked.is_captured:
                pending = (Pending(asked.id, asked.at_s),) if served.pending else ()
                self.parts.capture.record(exchange, served.answers, pending)
            for observer in self.parts.observers:
                observer.after(asked, exchange)
        except Exception:
            print(f"{asked.id} was answered, but not written down:\n{traceback.format_exc()}", file=self._log,
                  flush=True)


def added(asked: Asked, mode: Mode, model: str | None) -> Headers:
    """What the gateway says of an answer in its headers."""
    name = (model or "").strip().encode("ascii", "replace")
    named = [(b"x-brise-model", name)] if name.decode().isprintable() and name else []
    return [(b"x-brise-mode", mode.encode()), (b"x-brise-id", asked.id.encode()), *named]

