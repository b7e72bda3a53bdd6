"""The small model answers where a switch says so, if it is sure enough; what it is unsure of goes to the hosted one.

Until that is known nothing is sent, so a kept stream comes all at once at its end. Where no threshold is set there is
nothing to wait for: a stream is passed on as it is written, and other answers are only vetoed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TextIO

from starlette.types import Send

from brise.dialects import answers, sse
from brise.dialects.bodies import Body
from brise.dialects.openai_chat import chunks_of
from brise.dialects.streams import assemble
from brise.errors import RequestError
from brise.gateway.headers import added
from brise.gateway.interfaces import Decision, Escalated, RequestOutcome
from brise.gateway.local import LocalAnswer, LocalModels
from brise.gateway.request import ClientRequest, Headers
from brise.stats.clusters import Floats
from brise.switch import novelty, route, signals
from brise.switch.drift import Seen, Watch
from brise.switch.ledger_follower import Follower
from brise.switch.rule import VETO, Rule
from brise.switch.state import Action, TaskState, said
from brise.traffic.records import RecordedAnswer, new_id


class SmallModel:
    """Implements parts.Small. `watch` is told of every answer, kept or not."""

    def __init__(self, local: LocalModels, follower: Follower, watch: Watch, clock: Callable[[], float] = time.time,
                 now: Callable[[], float] = time.monotonic, log: TextIO | None = None) -> None:
        self._local, self._follower, self._watch, self._clock, self._now = local, follower, watch, clock, now
        self._log = log or sys.stderr
        self.refused = Counter[tuple[str, str]]()  # task and reason: the small model could not be asked
        self._coverage: tuple[str, Floats] | None = None  # of the rule that was used last

    async def answer(self, asked: ClientRequest, decision: Decision, send: Send) -> RequestOutcome | Escalated:
        """Looks first at what other gateways have written: a roll-back holds from the next request on, everywhere."""
        await self._follower.look()
        state = self._follower.state(asked.task)
        if state is None or asked.fields is None or not route.decide(state, asked, self._clock()).is_small:
            return Escalated()
        try:
            fingerprint = self._certified(state)
            if state.rule is None and asked.streams:
                return await self._stream(state, asked, fingerprint, send)
            found = await self._local.answer(state.candidate, asked.dialect, asked.fields, logprobs=signals.NUM_RIVALS)
            self._certified(state)  # it may have been replaced meanwhile
        except RequestError as error:  # the hosted model may be able to, or says what is wrong with the request
            self._refuse(state, error)
            return Escalated()
        return await self._judge(state, asked, fingerprint, found, send)

    def _certified(self, state: TaskState) -> str:
        """The fingerprint of the candidate; RequestError if another one has its name now, which is in the ledger then.
        """
        fingerprint = self._local.fingerprint(state.candidate)
        if state.fits(fingerprint):
            return fingerprint
        why = (f"{state.candidate!r} is not the model that was certified: its weights, its adapter or the forms in "
               "which they are kept were replaced")
        if fingerprint not in state.warned and len(state.warned) < route.MAX_CONTEXTS:
            self._follower.write(Action("changed", said(state) | {"fingerprint": fingerprint, "reason": why}))
        raise RequestError(why, code="changed_model", hint="brise prove and brise cascade certify it anew")

    def _refuse(self, state: TaskState, error: RequestError) -> None:
        """Written to the log once: a model that is not served here would refuse every request."""
        if not self.refused[state.task, error.code]:
            print(f"brise: task {state.task!r}: the small model {state.candidate!r} could not answer, so the hosted "
                  f"one does: {error.args[0]}", file=self._log, flush=True)
        self.refused[state.task, error.code] += 1

    async def _judge(self, state: TaskState, asked: ClientRequest, fingerprint: str, found: LocalAnswer,
                     send: Send) -> RequestOutcome | Escalated:
        fields = asked.fields
        assert fields is not None, "only such are asked of it"
        measured = self.measure(fields, found, state.rule)
        rule = state.rule
        keeps = not measured[VETO] if rule is None else rule.keeps(measured, is_tight=state.is_tight)
        if rule is not None:
            action = self._watch.after(state, Seen(rule.confidence(measured), keeps, measured[VETO] > 0))
            if action is not None:
                self._follower.write(action)
        if not keeps:
            return Escalated(self._draft(state, asked, fingerprint, found, measured), measured)
        if asked.streams:
            await _send(send, [*sse.HEADERS, *added(asked, "small", state.candidate)],
                        b"".join(map(sse.encode, chunks_of(found.body, fields))) + sse.END)
        else:
            data = json.dumps(found.body, separators=(",", ":")).encode()
            await _send(send, [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()),
                               *added(asked, "small", state.candidate)], data)
        return replace(self._served(state, asked, fingerprint, measured), response=found.body,
                       usage=found.usage)

    def measure(self, fields: Body, found: LocalAnswer, rule: Rule | None) -> dict[str, float]:
        """All signals that the rule may look at."""
        measured = signals.measure(fields, found.body, found.tokens)
        if rule is not None and rule.coverage:
            if self._coverage is None or self._coverage[0] != rule.digest:
                self._coverage = rule.digest, novelty.unpack(rule.coverage)
            measured["novelty"] = novelty.novelty(answers.asked_text(fields), self._coverage[1])
        return measured

    async def _stream(self, state: TaskState, asked: ClientRequest, fingerprint: str, send: Send) -> RequestOutcome:
        """An error before the first chunk is raised, and the hosted model answers; a later one ends the stream."""
        assert asked.fields is not None
        stream = await self._local.stream(state.candidate, asked.dialect, asked.fields)
        sent = _Sent(send, [*sse.HEADERS, *added(asked, "small", state.candidate)])
        error: str | None = None
        async with aclosing(stream.chunks) as chunks:
            await sent.write(await anext(chunks))
            first_s = self._now() - asked.started_s
            try:
                await sent.rest(chunks)
            except RequestError as failed:
                error = str(failed.args[0])
                await send({"type": "http.response.body", "more_body": False,
                            "body": sse.encode({"error": {"message": error, "type": "server_error", "param": None,
                                                      "code": failed.code}})})
        whole = assemble(asked.dialect, bytes(sent.data)).body
        served = self._served(state, asked, fingerprint, {})
        return replace(served, mode="small" if error is None else "failed", response=whole, error=error,
                       first_token_s=first_s)

    def _served(self, state: TaskState, asked: ClientRequest, fingerprint: str,
                measured: Mapping[str, float]) -> RequestOutcome:
        return RequestOutcome("small", 200, state.candidate, fingerprint=fingerprint, signals=measured,
                              first_token_s=self._now() - asked.started_s, audit_probability=state.audit_probability)

    def _draft(self, state: TaskState, asked: ClientRequest, fingerprint: str, found: LocalAnswer,
               measured: Mapping[str, float]) -> RecordedAnswer:
        at_s = self._clock()
        return RecordedAnswer(new_id(at_s), asked.id, at_s, "draft", state.candidate, fingerprint, usage=found.usage,
                              first_token_s=found.first_token_s, total_s=found.total_s, signals=measured,
                              response=found.body)


@dataclass
class _Sent:
    """A stream that goes to the client as it comes, and is remembered."""

    send: Send
    headers: Headers
    data: bytearray = field(default_factory=bytearray)

    async def write(self, chunk: Body) -> None:
        if not self.data:
            await self.send({"type": "http.response.start", "status": 200, "headers": self.headers})
        piece = sse.encode(chunk)
        self.data += piece
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})

    async def rest(self, chunks: AsyncGenerator[Body, None]) -> None:
        async for chunk in chunks:
            await self.write(chunk)
        await self.send({"type": "http.response.body", "body": sse.END, "more_body": False})


async def _send(send: Send, headers: Headers, data: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})
