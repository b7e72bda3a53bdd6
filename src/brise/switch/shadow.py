"""The small model answers, in the background, what the hosted one has answered: pairs for a proof.

It never delays a user: it begins when no user's answer is being written by the small model, and ends at once when one
comes (engine: `background`). Then it waits and begins anew, `ATTEMPTS` times. What finds no room in the queue is shed.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from brise.dialects.bodies import Body
from brise.errors import PreemptedError, QueueFullError, RequestError
from brise.gateway.candidates import Candidates
from brise.gateway.exchange import again
from brise.gateway.failure import UpstreamError
from brise.gateway.interfaces import CaptureSink
from brise.gateway.large_model import LargeModel
from brise.gateway.local import LocalAnswer, LocalModels, ignored_names
from brise.gateway.request import ClientRequest
from brise.switch.route import draw
from brise.switch.signals import NUM_RIVALS, measure
from brise.traffic import redact
from brise.traffic.records import Exchange, RecordedAnswer, new_id

MAX_WAITING, MAX_WAITING_BYTES = 256, 64 << 20
ATTEMPTS = 3
LOOK_EVERY_S = 0.05  # whether the model has nothing else to do


@dataclass(frozen=True)
class ShadowOptions:
    """`share` of the answered requests is drawn; `parallel` of them are answered at one time."""

    share: float
    parallel: int = 4
    max_waiting: int = MAX_WAITING


class Shadow:
    """An observer of the gateway, and its work in the background. `counts` says what became of what was drawn."""

    def __init__(self, local: LocalModels, candidates: Candidates, options: ShadowOptions, capture: CaptureSink,
                 now: Callable[[], float] = time.monotonic, log: TextIO | None = None) -> None:
        self._log = log or sys.stderr
        self._local, self._candidates, self._options = local, candidates, options
        self._capture, self._now = capture, now
        self.counts, self.ignored = Counter[str](), Counter[str]()
        self._waiting = Waiting(self.counts, options.max_waiting)

    def after(self, asked: ClientRequest, exchange: Exchange) -> None:
        """Takes note of an answered request, if it is drawn."""
        if (is_pair(asked, exchange) and self._candidates.of(asked.task) is not None
                and draw("shadow", asked.id) < self._options.share):
            self._waiting.put(asked)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.parallel):
                group.create_task(self._run_one())

    async def _run_one(self) -> None:
        while True:
            asked = await self._waiting.take()
            model = self._candidates.of(asked.task)
            assert model is not None, "only such are put in"
            try:
                await self._answer(asked, model)
            except Exception:  # a defect of ours: it must not go unseen, and not end the shadow of the others
                self.counts["defect"] += 1
                traceback.print_exc(file=self._log)

    async def _answer(self, asked: ClientRequest, model: str) -> None:
        assert asked.fields is not None, "pairs have bodies"
        started_s, at_s = self._now(), time.time()
        for _ in range(ATTEMPTS):
            try:
                await self._idle(model)
                fingerprint = self._local.fingerprint(model)
                answer = await self._local.answer(model, asked.dialect, asked.fields, logprobs=NUM_RIVALS,
                                                  background=True)
                if self._local.fingerprint(model) != fingerprint:  # it was replaced meanwhile: which one answered?
                    self.counts["replaced"] += 1
                    continue
            except (PreemptedError, QueueFullError):
                self.counts["preempted"] += 1
                continue
            except RequestError as error:  # the small model cannot answer this: that is an answer to be counted, too
                self.counts["failed"] += 1
                self._record(asked, RecordedAnswer(new_id(at_s), asked.id, at_s, "shadow", model,
                                                   self._fingerprint(model),
                                                   error.status, error.args[0], total_s=self._now() - started_s,
                                                   probability=self._options.share))
                return
            self.counts["answered"] += 1
            self.ignored.update(ignored_names(answer.ignored))
            self._record(asked, self._answered(asked.fields, asked.id, at_s, (model, fingerprint), answer))
            return
        self.counts["shed"] += 1

    def _fingerprint(self, model: str) -> str | None:
        try:
            return self._local.fingerprint(model)
        except RequestError:  # it is gone
            return None

    async def _idle(self, model: str) -> None:
        while (load := self._local.load(model)).running + load.waiting > 0:
            await asyncio.sleep(LOOK_EVERY_S)

    def _answered(self, fields: Body, exchange: str, at_s: float, who: tuple[str, str],
                  answer: LocalAnswer) -> RecordedAnswer:
        """What was left out of the request is kept in the body, and its number among the signals."""
        signals, body = dict(measure(fields, answer.body, answer.tokens)), answer.body
        if answer.ignored:
            signals["ignored_fields"] = float(len(answer.ignored))
            body = {**body, "brise": {"ignored": dict(answer.ignored)}}
        return RecordedAnswer(new_id(at_s), exchange, at_s, "shadow", *who, usage=answer.usage,
                              first_token_s=answer.first_token_s, total_s=answer.total_s, signals=signals,
                              probability=self._options.share, response=body)

    def _record(self, asked: ClientRequest, answer: RecordedAnswer) -> None:
        self._capture.record(answers=(redact.answer(answer, asked.secrets),))


class Reask:
    """The hosted model is asked the same again, one request at a time: how far does it agree with itself?"""

    def __init__(self, hosted: LargeModel, share: float, capture: CaptureSink) -> None:
        self._hosted, self._share, self._capture = hosted, share, capture
        self.counts = Counter[str]()
        self._waiting = Waiting(self.counts)

    def after(self, asked: ClientRequest, exchange: Exchange) -> None:
        """Takes note of an answered request, if it is drawn."""
        if is_pair(asked, exchange) and draw("reask", asked.id) < self._share:
            self._waiting.put(asked)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            asked = await self._waiting.take()
            started_s, at_s = time.monotonic(), time.time()
            try:
                served = await self._hosted.ask(asked)
            except UpstreamError:  # an outage is no disagreement
                self.counts["failed"] += 1
                continue
            self.counts["answered"] += 1
            self._capture.record(answers=(again(served, asked, "reask", at_s, time.monotonic() - started_s,
                                                self._share),))


def is_pair(asked: ClientRequest, exchange: Exchange) -> bool:
    """Whether another answer to it could be held against the hosted model's."""
    return (asked.dialect.has_small_models and asked.is_captured and asked.fields is not None
            and exchange.mode == "hosted" and exchange.status == 200 and exchange.error is None)


class Waiting:
    """Requests in the order in which they came. Of the event loop's thread."""

    def __init__(self, counts: Counter[str], max_items: int = MAX_WAITING, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._counts, self._max_items, self._max_bytes = counts, max_items, max_bytes
        self._items: deque[ClientRequest] = deque()
        self._bytes = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, asked: ClientRequest) -> None:
        """Takes it in, or counts it as shed."""
        if len(self._items) >= self._max_items or self._bytes + len(asked.body) > self._max_bytes:
            self._counts["shed"] += 1
            return
        self._items.append(asked)
        self._bytes += len(asked.body)
        self._news.set()

    async def take(self) -> ClientRequest:
        """The oldest, when there is one."""
        while not self._items:
            self._news.clear()
            await self._news.wait()
        asked = self._items.popleft()
        self._bytes -= len(asked.body)
        return asked
