"""Generation for one HTTP request: the engine's deltas become OpenAI's chunks, or one body."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from brise.dialects import sse
from brise.engine.request import Delta, Request, TokenLogprob
from brise.errors import PreemptedError, RequestError
from brise.serve.error_response import GenerationError, UnavailableError
from brise.serve.in_flight import RequestStats
from brise.serve.serving import ModelHandle
from brise.text.protocols import TextTokenizer

Entry = dict[str, object]
_Queued = tuple[int, Delta] | Exception | None  # None: one request is complete


class GrowingChoice(Protocol):
    """One answer that grows."""

    def push(self, delta: Delta) -> list[Entry]:
        """The entries under `choices` for this delta; each is sent in its own chunk."""
    def final(self) -> Entry:
        """The whole answer as one entry."""


@dataclass(frozen=True)
class Envelope:
    """The fields around the choices."""

    prefix: str  # of the id
    kind: str
    chunk_kind: str
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, kind: str) -> Entry:
        return {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created,
                "model": self.model}


@dataclass(frozen=True)
class ChoicesResponder:
    """The response to a chat or legacy completion request: its answers are the entries under `choices`.

    `choices` holds the `n` answers to the first prompt, then those to the second, and so on.
    """

    task: GenerationTask
    envelope: Envelope
    choices: Sequence[GrowingChoice]
    include_usage: bool  # in a stream; a body always has it
    report: Callable[[], Entry] | None = None  # what stands under `brise`, once all answers are whole

    async def collect(self) -> Entry:
        """The body, once all answers are complete."""
        async with aclosing(self._entries()) as entries:
            async for _ in entries:
                pass
        envelope = self.envelope
        return {**envelope.fields(envelope.kind), "choices": [choice.final() for choice in self.choices],
                "usage": usage(self.task.stats), **self._reported()}

    async def chunks(self) -> AsyncGenerator[Entry, None]:
        """The chunks of a stream, as objects."""
        fields, more = self._chunk_fields(), {"usage": None} if self.include_usage else {}
        async with aclosing(self._entries()) as entries:
            async for entry in entries:
                yield {**fields, "choices": [entry], **more}
        if self.include_usage:
            yield {**fields, "choices": [], "usage": usage(self.task.stats)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The chunks as server-sent events. The part that all chunks share is encoded once."""
        head = sse.json_text(self._chunk_fields())[:-1]
        before = f"data: {head},\"choices\":["
        after = "],\"usage\":null}\n\n" if self.include_usage else "]}\n\n"
        num_open = len(self.choices)
        async with aclosing(self._entries()) as entries:
            async for entry in entries:
                num_open -= entry["finish_reason"] is not None
                if not num_open and (reported := self._reported()):  # the last chunk with a choice
                    usage_field = {"usage": None} if self.include_usage else {}
                    yield sse.encode({**self._chunk_fields(), "choices": [entry], **usage_field, **reported})
                else:
                    yield f"{before}{sse.json_text(entry)}{after}".encode()
        if self.include_usage:
            yield sse.encode({**self._chunk_fields(), "choices": [], "usage": usage(self.task.stats)})
        yield sse.END

    def _reported(self) -> Entry:
        report = {} if self.report is None else self.report()
        return {"brise": report} if report else {}

    def _chunk_fields(self) -> Entry:
        return self.envelope.fields(self.envelope.chunk_kind)

    async def _entries(self) -> AsyncGenerator[Entry, None]:
        num_answers = self.task.requests[0].n
        async with aclosing(deltas(self.task)) as numbered:
            async for prompt, delta in numbered:
                for entry in self.choices[prompt * num_answers + delta.index].push(delta):
                    yield entry


@dataclass(frozen=True)
class GenerationTask:
    """The engine requests of one HTTP request: one for a chat, one for each prompt of a completion."""

    served: ModelHandle
    requests: tuple[Request, ...]
    stats: RequestStats
    names: Mapping[str, str]  # the endpoint's names for the engine's fields, for error messages
    watch: Callable[[Delta], None] | None = None  # sees every delta first; an exception from it ends the answer
    asks: bool = True  # False: the answer is known, and the model is not asked


async def deltas(task: GenerationTask) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yields (number of the prompt, delta) in order of arrival. Closing it cancels the requests that still run."""
    if not task.asks:
        known = Delta("known", 0, finish="stop")
        task.stats.count(known)
        yield 0, known
        return
    if len(task.requests) == 1:
        async with aclosing(_checked(task, task.requests[0])) as checked:
            async for delta in checked:
                yield 0, delta
        return
    queue = asyncio.Queue[_Queued]()
    forwarders = [asyncio.create_task(_forward(task, number, queue)) for number in range(len(task.requests))]
    try:
        num_open = len(forwarders)
        while num_open:
            match await queue.get():
                case None:
                    num_open -= 1
                case Exception() as error:
                    raise error
                case item:
                    yield item
    finally:
        for forwarder in forwarders:
            forwarder.cancel()
        await asyncio.gather(*forwarders, return_exceptions=True)


async def _forward(task: GenerationTask, number: int, queue: asyncio.Queue[_Queued]) -> None:
    try:
        async with aclosing(_checked(task, task.requests[number])) as checked:
            async for delta in checked:
                queue.put_nowait((number, delta))
        queue.put_nowait(None)
    except Exception as error:  # raised again by the reader of the queue
        queue.put_nowait(error)


async def _checked(task: GenerationTask, request: Request) -> AsyncGenerator[Delta, None]:
    """The deltas of one engine request. A failed answer is raised, because no finish_reason means failure."""
    is_first = True
    try:
        async with aclosing(task.served.worker.agenerate(replace(request, adapter=task.served.adapter))) as generated:
            async for delta in generated:
                if is_first:
                    is_first = False
                    task.stats.prompt_tokens += delta.prompt_tokens
                    task.stats.cached_tokens += delta.cached_tokens
                task.stats.count(delta)
                if task.watch is not None:
                    task.watch(delta)
                if delta.finish == "error":
                    raise GenerationError(delta.error or "the engine failed", code="generation_failed")
                if delta.finish == "cancelled":
                    raise UnavailableError("the server shut down before the answer was complete",
                                           code="shutting_down")
                if delta.finish == "preempted":
                    raise PreemptedError
                yield delta
    except RequestError as error:
        if error.param is None or error.param not in task.names:
            raise
        name = task.names[error.param]
        raise RequestError(error.args[0], param=name, code=error.code, hint=error.hint) from None


def usage(stats: RequestStats) -> Entry:
    """OpenAI's usage object. Prompt tokens count once, however many answers they got."""
    entry: Entry = {"prompt_tokens": stats.prompt_tokens, "completion_tokens": stats.completion_tokens,
                    "total_tokens": stats.prompt_tokens + stats.completion_tokens,
                    "prompt_tokens_details": {"cached_tokens": stats.cached_tokens}}
    if stats.accepted_prediction_tokens is not None:
        entry["completion_tokens_details"] = {"accepted_prediction_tokens": stats.accepted_prediction_tokens,
                                              "rejected_prediction_tokens": stats.rejected_prediction_tokens}
    return entry


def logprob_entries(tokenizer: TextTokenizer, items: Sequence[TokenLogprob], num_top: int,
                    ) -> list[Entry]:
    """The log-probabilities in the form of chat: each token's text, bytes and value, and `num_top` alternatives."""
    return [_entry(tokenizer, item.token, item.text, item.logprob) | {
        "top_logprobs": [_entry(tokenizer, *other) for other in item.top[:num_top]]} for item in items]


def _entry(tokenizer: TextTokenizer, token: int, text: bytes, logprob: float) -> Entry:
    """A special token is shown by its name and has no bytes, because it is not part of the text."""
    return {"token": text.decode(errors="replace"), "logprob": logprob,
            "bytes": None if tokenizer.is_control(token) else list(text)}
