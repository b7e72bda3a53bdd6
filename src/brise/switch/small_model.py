"""The small model answers where a switch says so, if it is sure enough; otherwise the large model answers.

Nothing is sent until that is known, so a stream that is kept comes all at once at its end. Without a threshold there is
nothing to wait for: streams are passed on as they are written, and other answers are only checked for vetoes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TextIO

from starlette.types import Send

from brise.dialects import answers
from brise.dialects.bodies import Body
from brise.dialects.openai_chat import chunks_of
from brise.errors import RequestError
from brise.gateway.client_answer import ClientStream, send_stream, send_whole
from brise.gateway.exchange import answer_of
from brise.gateway.headers import added
from brise.gateway.interfaces import Decision, Escalated, RequestOutcome
from brise.gateway.request import ClientRequest
from brise.gateway.small_models import SmallAnswer, SmallModels
from brise.stats.clusters import Floats
from brise.switch import novelty, route, signals
from brise.switch.drift import DriftWatch, JudgedAnswer
from brise.switch.ledger_follower import Follower
from brise.switch.rule import VETO, Rule
from brise.switch.state import Action, TaskState, gateway_line
from brise.traffic.records import RecordedAnswer


class SmallModel:
    """Implements `SwitchedModel`. `watch` sees every answer, kept or not."""

    def __init__(self, small: SmallModels, follower: Follower, watch: DriftWatch,
                 clock: Callable[[], float] = time.time, now: Callable[[], float] = time.monotonic,
                 log: TextIO | None = None) -> None:
        self._small, self._follower, self._watch, self._clock, self._now = small, follower, watch, clock, now
        self._log = log or sys.stderr
        self.refused = Counter[tuple[str, str]]()  # task and reason: the small model could not be asked
        self._coverage: tuple[str, Floats] | None = None  # of the rule that was used last

    async def answer(self, request: ClientRequest, decision: Decision, send: Send) -> RequestOutcome | Escalated:
        """While the model writes, it looks at what other gateways have written, and sends nothing before: a roll-back
        holds from the next request on, everywhere."""
        state = self._state(request)
        looking = asyncio.ensure_future(self._follower.look())
        try:
            if state is None:
                await looking
                state = self._state(request)
            return Escalated() if state is None else await self._answer(state, request, looking, send)
        finally:
            looking.cancel()

    def _state(self, request: ClientRequest) -> TaskState | None:
        """The state of the request's task, if the small model is to answer by it."""
        state = self._follower.state(request.task)
        is_small = state is not None and request.fields is not None and route.decide(
            state, request, self._clock()).is_small
        return state if is_small else None

    def _newest(self, state: TaskState, request: ClientRequest) -> TaskState | None:
        """The same after a look. Usually nothing has changed, and nothing is decided anew."""
        return state if self._follower.state(request.task) is state else self._state(request)

    async def _answer(self, state: TaskState, request: ClientRequest, looking: asyncio.Future[None],
                      send: Send) -> RequestOutcome | Escalated:
        assert request.fields is not None, "other requests are not switched"
        try:
            fingerprint = self._certified(state)
            if state.rule is None and request.streams:
                return await self._stream(state, request, fingerprint, looking, send)
            answer = await self._small.answer(state.candidate, request.dialect, request.fields,
                                              logprobs=signals.NUM_RIVALS)
            await looking
            newest = self._newest(state, request)
            if newest is None or newest.number != state.number:  # switched back meanwhile, or to another model
                return Escalated()
            self._certified(newest)  # it may have been replaced meanwhile
        except RequestError as error:  # the large model may be able to, or says what is wrong with the request
            self._refuse(state, error)
            return Escalated()
        return await self._judge(newest, request, fingerprint, answer, send)

    def _certified(self, state: TaskState) -> str:
        """The small model's fingerprint. RequestError if another model has its name now; the ledger notes that."""
        fingerprint = self._small.fingerprint(state.candidate)
        if state.is_certified_for(fingerprint):
            return fingerprint
        why = (f"{state.candidate!r} is not the model that was certified: its weights, its adapter, the forms in which "
               "they are kept or its server were replaced")
        if fingerprint not in state.warned and len(state.warned) < route.MAX_CONTEXTS:
            self._follower.write(Action("changed", gateway_line(state) | {"fingerprint": fingerprint, "reason": why}))
        raise RequestError(why, code="changed_model", hint="brise prove and brise cascade certify it anew")

    def _refuse(self, state: TaskState, error: RequestError) -> None:
        """Logged once: a model that is not served here would refuse every request."""
        if not self.refused[state.task, error.code]:
            print(f"brise: task {state.task!r}: the small model {state.candidate!r} could not answer, so the large "
                  f"one does: {error.args[0]}", file=self._log, flush=True)
        self.refused[state.task, error.code] += 1

    async def _judge(self, state: TaskState, request: ClientRequest, fingerprint: str, answer: SmallAnswer,
                     send: Send) -> RequestOutcome | Escalated:
        fields, rule = request.fields, state.rule
        assert fields is not None, "other requests are not switched"
        measured = self.measure(fields, answer, rule)
        if rule is not None and (missing := rule.missing_signal(measured)) is not None:
            self._refuse(state, RequestError(f"its rule needs the signal {missing!r}, which this answer does not have",
                                             code="missing_signal"))
        is_kept = not measured[VETO] if rule is None else rule.keeps(measured, is_tight=state.is_tight)
        if rule is not None:
            action = self._watch.observe(state, JudgedAnswer(rule.confidence(measured), is_kept, measured[VETO] > 0))
            if action is not None:
                self._follower.write(action)
        if not is_kept:
            return Escalated(self._draft(state, request, fingerprint, answer, measured), measured)
        headers = added(request, "small", state.candidate)
        if request.streams:
            await send_stream(request, chunks_of(answer.body, fields), headers, send)
        else:
            await send_whole(answer.body, headers, send)
        return replace(self._outcome(state, request, fingerprint, measured), response=answer.body, usage=answer.usage)

    def measure(self, fields: Body, answer: SmallAnswer, rule: Rule | None) -> dict[str, float]:
        """All signals that the rule may look at."""
        measured = signals.measure(fields, answer.body, answer.tokens)
        if rule is not None and rule.coverage:
            if self._coverage is None or self._coverage[0] != rule.digest:
                self._coverage = rule.digest, novelty.unpack(rule.coverage)
            measured["novelty"] = novelty.novelty(answers.user_text(fields), self._coverage[1])
        return measured

    async def _stream(self, state: TaskState, request: ClientRequest, fingerprint: str,
                      looking: asyncio.Future[None], send: Send) -> RequestOutcome | Escalated:
        """An error before the first chunk is raised, and the large model answers; a later one ends the stream."""
        assert request.fields is not None
        stream, error = await self._small.stream(state.candidate, request.dialect, request.fields), None
        client_stream = ClientStream(request, send)
        async with aclosing(stream.chunks) as chunks:
            first = await anext(chunks)
            await looking
            if self._newest(state, request) is None:
                return Escalated()
            await client_stream.begin(added(request, "small", state.candidate))
            await client_stream.write(first)
            first_s = self._now() - request.started_s
            try:
                async for chunk in chunks:
                    await client_stream.write(chunk)
                await client_stream.end()
            except RequestError as failed:
                error = str(failed.args[0])
                await client_stream.break_off(error, failed.code)
        outcome = self._outcome(state, request, fingerprint, {})
        return replace(outcome, mode="small" if error is None else "failed", response=client_stream.body(), error=error,
                       first_token_s=first_s)

    def _outcome(self, state: TaskState, request: ClientRequest, fingerprint: str,
                 measured: Mapping[str, float]) -> RequestOutcome:
        return RequestOutcome("small", 200, state.candidate, fingerprint=fingerprint, signals=measured,
                              first_token_s=self._now() - request.started_s, audit_probability=state.audit_probability)

    def _draft(self, state: TaskState, request: ClientRequest, fingerprint: str, answer: SmallAnswer,
               measured: Mapping[str, float]) -> RecordedAnswer:
        outcome = RequestOutcome("small", 200, state.candidate, answer.body, answer.usage, fingerprint,
                                 signals=measured)
        return answer_of(request, "draft", self._clock(), outcome, answer.total_s, first_token_s=answer.first_token_s)
