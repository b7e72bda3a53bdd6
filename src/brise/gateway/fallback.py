"""The small model answers where the large one cannot. Every such answer says so, and the large model's comes later.

    not begun                     a whole answer or stream of the small model, `x-brise-mode: degraded`
    begun, no token of content    the small model's stream under the id that the client has seen
    begun, with content           the small model continues the text that the client has read
    calls, a refusal, audio, ...  no model can continue: the gateway ends the stream with an error event

The body, or the last chunk of a stream, has `"brise": {"mode": "degraded", "model", "reason", "ignored"}`: `reason` is
the kind of the failure, `ignored` names the fields of the request that the small model has no use for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

from starlette.types import Send

from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Progress
from brise.errors import BriseError
from brise.gateway.client_answer import ClientStream, end_with_error, send_whole
from brise.gateway.failure import BrokenAttempt, UpstreamFailure
from brise.gateway.headers import added
from brise.gateway.interfaces import Declined, RequestOutcome
from brise.gateway.request import ClientRequest
from brise.gateway.small_models import SmallModelDownError, SmallModels, SmallStream, TaskModels, ignored_names


class SmallModelFallback:
    """Implements `Fallback`. `counts` says how often it did what, `ignored` which fields were left out."""

    def __init__(self, small: SmallModels, task_models: TaskModels, now: Callable[[], float] = time.monotonic) -> None:
        self._small, self._task_models, self._now = small, task_models, now
        self.counts, self.ignored = Counter[str](), Counter[str]()

    def can_answer(self, request: ClientRequest) -> bool:
        """Whether there is a small model for requests of this dialect and task."""
        return (request.dialect.has_small_models and request.fields is not None
                and self._task_models.of(request.task) is not None)

    async def answer(self, request: ClientRequest, broken: BrokenAttempt, send: Send) -> RequestOutcome | Declined:
        """Sends the whole answer, or the rest of it; or sends nothing, and says why."""
        model = self._task_models.of(request.task)
        assert model is not None, "see can_answer"
        attempt = _Attempt(self._small, model, request, broken, send, self._now)
        why = None if broken.progress is None else obstacle(request, broken.progress)
        try:
            outcome = Declined(why) if why is not None else await attempt.answer()
        except BriseError as error:  # before anything was sent
            outcome = Declined(f"the small model {model!r} cannot: {error.args[0]}")
        self._count(broken, outcome, attempt.ignored)
        return outcome

    def _count(self, broken: BrokenAttempt, outcome: RequestOutcome | Declined, ignored: Mapping[str, str]) -> None:
        if isinstance(outcome, Declined):
            self.counts["declined"] += 1
            return
        began = broken.progress is not None and broken.progress.has_content
        self.counts["failed" if outcome.mode == "failed" else "continued" if began else "answered"] += 1
        self.ignored.update(ignored_names(ignored))


@dataclass
class _Attempt:
    """The small model's answer to one request."""

    small: SmallModels
    model: str
    request: ClientRequest
    broken: BrokenAttempt
    send: Send
    now: Callable[[], float]
    ignored: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None  # of the model, as it was when it began

    async def answer(self) -> RequestOutcome:
        with suppress(SmallModelDownError):  # a remote one may answer before it has shown which model it is
            self.fingerprint = self.small.fingerprint(self.model)
        return await (self._stream() if self.request.streams else self._whole())

    async def _whole(self) -> RequestOutcome:
        assert self.request.fields is not None
        answer = await self.small.answer(self.model, self.request.dialect, self.request.fields)
        self.ignored = answer.ignored
        body = {**answer.body, "brise": self._label()}
        await send_whole(body, added(self.request, "degraded", self.model), self.send)
        return self._outcome(body, answer.usage, self._elapsed_s())

    async def _stream(self) -> RequestOutcome:
        """An error before the first chunk is raised; a later one ends the stream."""
        small_stream = await self._open()
        self.ignored = small_stream.ignored
        client_stream = ClientStream(self.request, self.send, self.broken.read)
        async with aclosing(self._chunks(small_stream)) as chunks:
            first = await anext(chunks)
            if self.broken.progress is None:
                await client_stream.begin(added(self.request, "degraded", self.model))
            first_s = self._elapsed_s()
            try:
                await client_stream.write(first)
                async for chunk in chunks:
                    await client_stream.write(chunk)
            except BriseError as error:
                outcome = self._outcome(client_stream.body(), small_stream.usage(), first_s)
                return await self._break_off(error, outcome)
        await client_stream.end()
        return self._outcome(client_stream.body(), small_stream.usage(), first_s)

    async def _open(self) -> SmallStream:
        fields, progress = self.request.fields, self.broken.progress
        assert fields is not None
        prefix = None if progress is None else progress.text or None
        return await self.small.stream(self.model, self.request.dialect, fields, prefix=prefix)

    async def _chunks(self, stream: SmallStream) -> AsyncGenerator[Body, None]:
        """The small model's chunks as the ones that follow what the client has read, the last ones labelled."""
        dialect, progress = self.request.dialect, self.broken.progress
        async with aclosing(stream.chunks) as chunks:
            async for chunk in chunks:
                following = chunk if progress is None else dialect.continuation(chunk, progress)
                if following is not None:
                    yield {**following, "brise": self._label()} if dialect.is_last(following) else following

    async def _break_off(self, error: BriseError, outcome: RequestOutcome) -> RequestOutcome:
        failure = self.broken.failure
        failure = UpstreamFailure(failure.kind, f"{failure.detail}; the small model failed too: {error.args[0]}")
        await end_with_error(self.request.dialect, failure, self.send)
        return replace(outcome, mode="failed", error=str(failure), pending=False)

    def _label(self) -> Body:
        label: dict[str, object] = {"mode": "degraded", "model": self.model, "reason": self.broken.failure.kind}
        if self.request.upstream:
            label["upstream"] = self.request.upstream
        if self._is_continued:
            label["continued"] = True
        return label | ({"ignored": dict(self.ignored)} if self.ignored else {})

    @property
    def _is_continued(self) -> bool:
        """Whether the beginning is the large model's."""
        return self.broken.progress is not None and self.broken.progress.has_content

    def _elapsed_s(self) -> float:
        return self.now() - self.request.started_s

    def _outcome(self, response: Body | None, usage: Usage, first_s: float) -> RequestOutcome:
        return RequestOutcome("degraded", 200, self.model, response, usage, self.fingerprint, str(self.broken.failure),
                              first_s, pending=self.request.is_captured, is_continued=self._is_continued)


def obstacle(request: ClientRequest, progress: Progress) -> str | None:
    """Why no model can continue an answer, or None. The client has read what `progress` says."""
    fields = request.fields or {}
    if not request.streams:
        return "the large model sent a stream, for which the client did not ask"
    if progress.error is not None:
        return "the large model has reported an error to the client"
    if progress.num_choices > 1 or fields.get("n") not in (None, 1):
        return "the answer has several choices"
    if progress.has_calls:
        return "the answer calls a function"
    if progress.has_refusal:
        return "the large model began to decline"
    if progress.unreadable is not None:
        return f"the answer holds {progress.unreadable}"
    if not request.dialect.continues and progress.num_events:
        return f"an answer of the kind {request.kind!r} cannot be continued"
    return None
