"""The small model answers where the hosted one cannot. Every such answer says so, and waits for the hosted model's.

    not begun                     a whole answer or stream of the small model, `x-brise-mode: degraded`
    begun, no token of content    the small model's stream under the id that the client has seen
    begun, with content           the small model goes on behind the text that the client has read
    calls, several choices, ...   nobody can go on: the gateway ends the stream with an error event

In the body, or the last chunk of a stream, stands `"brise": {"mode": "degraded", "model", "reason", "ignored"}`:
`reason` is the kind of the failure, `ignored` names the fields of the request that the small model has no use for.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from starlette.types import Send

from brise.dialects import sse
from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Progress
from brise.dialects.streams import assemble
from brise.errors import BriseError
from brise.gateway import error_response
from brise.gateway.candidates import Candidates
from brise.gateway.failure import BrokenAttempt, UpstreamFailure
from brise.gateway.headers import added
from brise.gateway.interfaces import Declined, RequestOutcome
from brise.gateway.local import LocalModels, LocalStream, ignored_names
from brise.gateway.request import ClientRequest


class LocalFallback:
    """Implements parts.Fallback. `counts` says how often it did what, and which fields were left out."""

    def __init__(self, local: LocalModels, candidates: Candidates, now: Callable[[], float] = time.monotonic) -> None:
        self._local, self._candidates, self._now = local, candidates, now
        self.counts, self.ignored = Counter[str](), Counter[str]()

    def fits(self, asked: ClientRequest) -> bool:
        """Whether there is a small model for requests of this kind and task."""
        return (asked.dialect.has_small_models and asked.fields is not None
                and self._candidates.of(asked.task) is not None)

    async def answer(self, asked: ClientRequest, broken: BrokenAttempt, send: Send) -> RequestOutcome | Declined:
        """The whole answer, or the rest of it; or nothing, and why."""
        model = self._candidates.of(asked.task)
        assert model is not None and asked.fields is not None, "asked whether it fits"
        answering = _Answering(self._local, model, asked, broken, send, self._now)
        why = None if broken.progress is None else obstacle(asked, broken.progress)
        try:
            outcome = Declined(why) if why is not None else await answering.answer()
        except BriseError as error:  # before anything was sent
            outcome = Declined(f"the local model {model!r} cannot: {error.args[0]}")
        self._count(broken, outcome, answering.ignored)
        return outcome

    def _count(self, broken: BrokenAttempt, outcome: RequestOutcome | Declined, ignored: Mapping[str, str]) -> None:
        if isinstance(outcome, Declined):
            self.counts["declined"] += 1
            return
        began = broken.progress is not None and broken.progress.has_content
        self.counts["failed" if outcome.mode == "failed" else "continued" if began else "answered"] += 1
        self.ignored.update(ignored_names(ignored))


@dataclass
class _Answering:
    """One request's answer from the small model."""

    local: LocalModels
    model: str
    asked: ClientRequest
    broken: BrokenAttempt
    send: Send
    now: Callable[[], float]
    ignored: Mapping[str, str] = field(default_factory=dict)
    sent: bytearray = field(default_factory=bytearray)
    fingerprint: str | None = None  # of the model, as it was when it began

    async def answer(self) -> RequestOutcome:
        self.fingerprint = self.local.fingerprint(self.model)
        if self.asked.streams:
            return await self._stream()
        return await self._whole()

    async def _whole(self) -> RequestOutcome:
        asked, fields = self.asked, self.asked.fields
        assert fields is not None
        answer = await self.local.answer(self.model, asked.dialect, fields)
        self.ignored = answer.ignored
        body = {**answer.body, "brise": self._label()}
        data = json.dumps(body, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()),
                   *added(asked, "degraded", self.model)]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": data, "more_body": False})
        return self._served(body, answer.usage, self.now() - self.asked.started_s)

    async def _stream(self) -> RequestOutcome:
        """An error before the first chunk is raised; a later one ends the stream."""
        progress = self.broken.progress
        stream = await self._open()
        self.ignored = stream.ignored
        chunks = stream.chunks if progress is None else self._continued(stream, progress)
        async with aclosing(chunks):
            first = await anext(chunks)
            if progress is None:
                await self.send({"type": "http.response.start", "status": 200,
                                 "headers": [*sse.HEADERS, *added(self.asked, "degraded", self.model)]})
            first_s = self.now() - self.asked.started_s
            try:
                await self._write(first)
                async for chunk in chunks:
                    await self._write(chunk)
            except BriseError as error:
                return await self._break_off(error, self._served(self._read(), stream.usage(), first_s))
        await self.send({"type": "http.response.body", "body": self.asked.dialect.stream_end(), "more_body": False})
        return self._served(self._read(), stream.usage(), first_s)

    async def _open(self) -> LocalStream:
        fields, progress = self.asked.fields, self.broken.progress
        assert fields is not None
        prefix = None if progress is None else progress.text or None
        return await self.local.stream(self.model, self.asked.dialect, fields, prefix=prefix)

    async def _continued(self, stream: LocalStream, progress: Progress) -> AsyncGenerator[Body, None]:
        """The small model's chunks as the ones that follow the large model's."""
        async with aclosing(stream.chunks) as chunks:
            async for chunk in chunks:
                following = self.asked.dialect.continuation(chunk, progress)
                if following is not None:
                    yield following

    async def _write(self, chunk: Body) -> None:
        dialect = self.asked.dialect
        piece = dialect.encode({**chunk, "brise": self._label()} if dialect.is_last(chunk) else chunk)
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        self.sent += piece

    async def _break_off(self, error: BriseError, served: RequestOutcome) -> RequestOutcome:
        failure = self.broken.failure
        failure = UpstreamFailure(failure.kind, f"{failure.detail}; the local model failed too: {error.args[0]}")
        await error_response.end_stream(self.asked.dialect, failure, self.send)
        return replace(served, mode="failed", error=str(failure), pending=False)

    def _label(self) -> Body:
        label: dict[str, object] = {"mode": "degraded", "model": self.model, "reason": self.broken.failure.kind}
        if self.broken.progress is not None and self.broken.progress.has_content:
            label["continued"] = True  # the beginning is the hosted model's
        return label | ({"ignored": dict(self.ignored)} if self.ignored else {})

    def _read(self) -> Body | None:
        """All that the client has read of the stream, put together."""
        return assemble(self.asked.dialect, self.broken.read + bytes(self.sent)).body

    def _served(self, response: Body | None, usage: Usage, first_s: float) -> RequestOutcome:
        return RequestOutcome("degraded", 200, self.model, response, usage, self.fingerprint, str(self.broken.failure),
                              first_s, pending=self.asked.is_captured)


def obstacle(asked: ClientRequest, progress: Progress) -> str | None:
    """Why nobody can go on with an answer, or None. The client has read what `progress` says."""
    fields = asked.fields or {}
    if progress.error is not None:
        return "the hosted model has told the client of an error"
    if progress.num_choices > 1 or fields.get("n") not in (None, 1):
        return "the answer has several choices"
    if progress.has_calls:
        return "the answer calls a function"
    if not asked.dialect.continues and progress.num_events:
        return f"an answer of the kind {asked.kind!r} is not gone on with"
    return None
