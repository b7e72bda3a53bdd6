"""Audits: kept answers, drawn with a known probability, are compared with the large model's.

No client waits for an audit. The queue is bounded; while the large model is out of reach, audits wait. The result is a
line of the ledger, from which every gateway computes the alarm.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TextIO

from brise.dialects import answers
from brise.errors import BriseError
from brise.files.digests import blake_draw
from brise.gateway.request import ClientRequest
from brise.switch.ledger_follower import Follower
from brise.switch.shared_audits import SharedAudits
from brise.switch.state import Action, TaskState, gateway_line
from brise.traffic.records import Exchange, RecordedAnswer

MAX_WAITING = 512  # requests; at 64 kB each 32 MB
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
LATER = frozenset({408, 500, 502, 503, 504, 529})  # statuses with which an audit goes to the end of the queue
FINGERPRINT = "system_fingerprint"  # in a large model's answers, of its version
MAX_ATTEMPTS = 8  # that end in LATER: some requests are never answered, and must not hold up the others

# Asks the large model in the background; None while it is out of reach. It never raises.
Ask = Callable[[ClientRequest, float], Awaitable[RecordedAnswer | None]]
Write = Callable[[RecordedAnswer], None]


@dataclass(frozen=True)
class _Audit:
    request: ClientRequest
    exchange: Exchange
    probability: float
    switch: int  # the ledger's line of the switch under which the answer was kept
    attempts: int = 0
    answer: RecordedAnswer | None = None  # the large model's, if only the ledger's line is still to be written


class Auditor:
    """Implements `Observer` and `Background`. `counts` says what became of the audits."""

    def __init__(self, follower: Follower, ask: Ask, write: Write, max_waiting: int = MAX_WAITING,
                 wait: Callable[[float], Awaitable[None]] = asyncio.sleep, log: TextIO | None = None,
                 shared: SharedAudits | None = None) -> None:
        self._shared = shared
        self._follower, self._ask, self._write, self._max_waiting = follower, ask, write, max_waiting
        self._wait, self._log = wait, log or sys.stderr
        self._queue: deque[_Audit] = deque()
        self._has_work = asyncio.Event()
        self.counts = Counter[str]()

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Draws whether this answer is audited; how sure the small model was has no part in it."""
        probability, state = exchange.audit_probability, self._follower.state(exchange.task)
        action = None if state is None else other_large_model(state, exchange)
        if action is not None:
            self._follower.write(action)
        if exchange.mode != "small" or probability is None or state is None:
            return
        self.counts["kept"] += 1
        if blake_draw("audit", exchange.id) >= probability:
            return
        if len(self._queue) >= self._max_waiting:
            self.counts["dropped"] += 1
            return
        self._queue.append(_Audit(request, exchange, probability, state.number))
        self._has_work.set()
        if self._shared is not None and request.is_captured:
            self._shared.note(exchange, probability, state.number)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def run(self) -> None:
        """Until it is cancelled: one audit after the other, and those that other servers left."""
        if self._shared is None:
            await self._run()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._run())
                group.create_task(self._adopt(self._shared))
        finally:
            self._shared.close()

    async def _adopt(self, shared: SharedAudits) -> None:
        while True:
            for audit, request, exchange in await shared.next():
                self.counts["adopted"] += 1
                self._queue.append(_Audit(request, exchange, audit.probability, audit.switch))
                self._has_work.set()

    async def _run(self) -> None:
        retry_s = RETRY_S
        while True:
            while not self._queue:
                self._has_work.clear()
                await self._has_work.wait()
            audit = self._queue[0]
            left = await self._audit(audit)
            self._queue.popleft()
            if left is None:
                if self._shared is not None:
                    self._shared.settle(audit.exchange.id)
                retry_s = RETRY_S
                continue
            if left.attempts:
                self._queue.append(left)
            else:
                self._queue.appendleft(left)
            self.counts["postponed"] += 1
            await self._wait(retry_s)
            retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    async def _audit(self, audit: _Audit) -> _Audit | None:
        """The audit to be tried later, None if it is done; no audit may end the loop."""
        try:
            if audit.answer is None:
                answer = await self._ask(audit.request, audit.probability)
                if answer is None:
                    return replace(audit, attempts=0)
                if answer.status in LATER and audit.attempts + 1 < MAX_ATTEMPTS:
                    return replace(audit, attempts=audit.attempts + 1)
                if audit.request.is_captured:
                    self._write(answer)
                if answer.error is not None or answer.response is None:
                    self.counts["unanswered"] += 1
                    return None
                self._check_model(audit.exchange.task, answer.served_by, answer.response.get(FINGERPRINT))
                audit = replace(audit, attempts=0, answer=answer)
            assert audit.answer is not None
            await self._follower.append("audit", self._line(audit, audit.answer))
            self.counts["audited"] += 1
        except BriseError as error:  # a locked ledger, a full disk: the line waits, and no model is asked twice
            self.counts["unwritten"] += 1
            if self.counts["unwritten"] == 1:
                print(f"brise: audits cannot be written: {error}", file=self._log, flush=True)
            return audit if audit.answer is not None else None
        except Exception:
            self.counts["failed"] += 1
            print(f"brise: the audit of {audit.exchange.id} failed:\n{traceback.format_exc()}", file=self._log,
                  flush=True)
        return None

    def _check_model(self, task: str, model: str | None, fingerprint: object) -> None:
        """At a share of 100 %, only audits show which large model answers."""
        state = self._follower.state(task)
        action = None if state is None else _void(state, model, fingerprint)
        if action is not None:
            self._follower.write(action)

    def _line(self, audit: _Audit, answer: RecordedAnswer) -> dict[str, object]:
        """D is 0 if both answers say the same, otherwise -1: the large model counts as right."""
        state = self._follower.state(audit.exchange.task)
        scorer = scorer_of(state)
        same = answers.agreement(answers.of(audit.exchange.response), answers.of(answer.response), scorer)
        return {"task": audit.exchange.task, "switch": audit.switch, "exchange": audit.exchange.id,
                "answer": answer.id, "difference": same - 1.0, "probability": audit.probability, "scorer": scorer}


def other_large_model(state: TaskState, exchange: Exchange) -> Action | None:
    """The line that ends a switch if another large model answers than the one its certificate was made with."""
    if exchange.mode not in ("hosted", "escalated") or exchange.status != 200:
        return None
    return _void(state, exchange.served_by, exchange.fingerprint)


def _void(state: TaskState, model: str | None, fingerprint: object) -> Action | None:
    if not model:
        return None
    name = " ".join(part for part in (model, fingerprint) if isinstance(part, str) and part)
    if not state.is_on or state.warrant is None or not state.warrant.large_models or name in state.warrant.large_models:
        return None
    return Action("void", gateway_line(state) | {
        "reason": f"the large model is {name!r}, the certificate was made with "
                  f"{', '.join(map(repr, state.warrant.large_models))}"})


def scorer_of(state: TaskState | None) -> str:
    """The scorer that the rule was certified with."""
    return state.rule.scorer if state is not None and state.rule is not None else "auto"
