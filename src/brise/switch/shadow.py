"""The shadow: in the background, the small model answers what the large one has answered. That gives pairs for a proof.

It never delays a client: it begins when the small model writes no client's answer, and stops at once when a client's
request comes (engine: `background`). Then it waits and begins again, `ATTEMPTS` times. A full queue sheds requests.
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
from brise.files.digests import blake_draw
from brise.gateway.exchange import answer_of
from brise.gateway.failure import UpstreamError
from brise.gateway.interfaces import CaptureSink, RequestOutcome
from brise.gateway.request import ClientRequest
from brise.gateway.small_models import (
    SmallAnswer,
    SmallModelDownError,
    SmallModels,
    TaskModels,
    ignored_names,
)
from brise.gateway.upstreams import Upstreams
from brise.switch.signals import NUM_RIVALS, measure
from brise.traffic.records import NOT_DRAWN, SHED, Exchange, shadow_skip

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
    """Draws answered requests (`observe`), and has the small model answer them (`run`). `counts` says how that went."""

    def __init__(self, small: SmallModels, task_models: TaskModels, options: ShadowOptions, capture: CaptureSink,
                 now: Callable[[], float] = time.monotonic, log: TextIO | None = None) -> None:
        self._log = log or sys.stderr
        self._small, self._task_models, self._options = small, task_models, options
        self._capture, self._now = capture, now
        self.counts, self.ignored = Counter[str](), Counter[str]()
        self._waiting = Waiting(self.counts, options.max_waiting)

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Takes note of an answered request, if it is drawn."""
        if not is_pair(request, exchange) or self._task_models.of(request.task) is None:
            return
        if blake_draw("shadow", request.id) >= self._options.share:
            self._capture.skip(shadow_skip(NOT_DRAWN, request.task))
        elif not self._waiting.put(request):
            self._capture.skip(shadow_skip(SHED, request.task))

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.parallel):
                group.create_task(self._run_one())

    async def _run_one(self) -> None:
        while True:
            request = await self._waiting.take()
            model = self._task_models.of(request.task)
            assert model is not None, "only such are put in"
            try:
                await self._answer(request, model)
            except Exception:  # a defect of ours: it must not go unseen, and not end the shadow of the others
                self.counts["defect"] += 1
                traceback.print_exc(file=self._log)

    async def _answer(self, request: ClientRequest, model: str) -> None:
        assert request.fields is not None, "pairs have bodies"
        started_s, at_s = self._now(), time.time()
        for _ in range(ATTEMPTS):
            try:
                await self._idle(model)
                fingerprint = self._small.fingerprint(model)
                answer = await self._small.answer(model, request.dialect, request.fields, logprobs=NUM_RIVALS,
                                                  background=True)
                if self._small.fingerprint(model) != fingerprint:  # it was replaced meanwhile: which one answered?
                    self.counts["replaced"] += 1
                    continue
            except (PreemptedError, QueueFullError):
                self.counts["preempted"] += 1
                continue
            except SmallModelDownError:  # its server's outage is no answer of the model
                self.counts["unavailable"] += 1
                break
            except RequestError as error:  # the small model cannot answer this: that counts as an answer, too
                self.counts["failed"] += 1
                outcome = RequestOutcome("failed", error.status, model, fingerprint=self._fingerprint(model),
                                         error=error.args[0])
                self._record(request, at_s, outcome, self._now() - started_s)
                return
            self.counts["answered"] += 1
            self.ignored.update(ignored_names(answer.ignored))
            outcome = self._outcome(request.fields, model, fingerprint, answer)
            self._record(request, at_s, outcome, answer.total_s, answer.first_token_s)
            return
        self.counts["shed"] += 1
        self._capture.skip(shadow_skip(SHED, request.task))

    def _fingerprint(self, model: str) -> str | None:
        try:
            return self._small.fingerprint(model)
        except RequestError:  # it is gone
            return None

    async def _idle(self, model: str) -> None:
        while (load := self._small.load(model)).running + load.waiting > 0:
            await asyncio.sleep(LOOK_EVERY_S)

    def _outcome(self, fields: Body, model: str, fingerprint: str, answer: SmallAnswer) -> RequestOutcome:
        """The fields of the request that were left out are kept in the body, and their number among the signals."""
        signals, body = measure(fields, answer.body, answer.tokens), answer.body
        if answer.ignored:
            signals["ignored_fields"] = float(len(answer.ignored))
            body = {**body, "brise": {"ignored": dict(answer.ignored)}}
        return RequestOutcome("small", 200, model, body, answer.usage, fingerprint, signals=signals)

    def _record(self, request: ClientRequest, at_s: float, outcome: RequestOutcome, total_s: float,
                first_token_s: float | None = None) -> None:
        self._capture.record(answers=(answer_of(request, "shadow", at_s, outcome, total_s, first_token_s=first_token_s,
                                                probability=self._options.share),))


class Reask:
    """The large model is asked the same again, one request at a time: how far does it agree with itself?"""

    def __init__(self, large: Upstreams, share: float, capture: CaptureSink) -> None:
        self._large, self._share, self._capture = large, share, capture
        self.counts = Counter[str]()
        self._waiting = Waiting(self.counts)

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Takes note of an answered request, if it is drawn."""
        if is_pair(request, exchange) and blake_draw("reask", request.id) < self._share:
            self._waiting.put(request)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            request = await self._waiting.take()
            started_s, at_s = time.monotonic(), time.time()
            try:
                outcome = await self._large.ask(request)
            except UpstreamError:  # an outage is no disagreement
                self.counts["failed"] += 1
                continue
            self.counts["answered"] += 1
            self._capture.record(answers=(answer_of(request, "reask", at_s, outcome, time.monotonic() - started_s,
                                                    probability=self._share),))


def is_pair(request: ClientRequest, exchange: Exchange) -> bool:
    """Whether another answer to it could be compared with the large model's."""
    return (request.dialect.has_small_models and request.is_captured and request.fields is not None
            and exchange.mode == "hosted" and exchange.status == 200 and exchange.error is None)


class Waiting:
    """Requests in the order in which they came. It belongs to the event loop's thread."""

    def __init__(self, counts: Counter[str], max_items: int = MAX_WAITING, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._counts, self._max_items, self._max_bytes = counts, max_items, max_bytes
        self._items: deque[ClientRequest] = deque()
        self._bytes = 0
        self._has_work = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, request: ClientRequest) -> bool:
        """Takes it in, or counts it as shed; whether it was taken in."""
        if len(self._items) >= self._max_items or self._bytes + len(request.body) > self._max_bytes:
            self._counts["shed"] += 1
            return False
        self._items.append(request)
        self._bytes += len(request.body)
        self._has_work.set()
        return True

    async def take(self) -> ClientRequest:
        """The oldest, when there is one."""
        while not self._items:
            self._has_work.clear()
            await self._has_work.wait()
        request = self._items.popleft()
        self._bytes -= len(request.body)
        return request
