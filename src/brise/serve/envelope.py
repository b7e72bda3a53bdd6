"""What chat and legacy completions have in common on the way out: a stream of chunks, or one body."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from brise.dialects import sse
from brise.engine.request import Delta
from brise.serve.generation import GenerationTask, deltas, usage

Entry = dict[str, object]


class GrowingChoice(Protocol):
    """One answer that grows."""

    def push(self, delta: Delta) -> list[Entry]:
        """The entries under `choices` that go out for this delta, each in a chunk of its own."""
    def final(self) -> Entry:
        """The whole answer, as one entry."""


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
class Answering:
    """A request that was read, on its way. `choices` has the `n` answers of the first prompt, then the second's, ..."""

    job: GenerationTask
    envelope: Envelope
    choices: Sequence[GrowingChoice]
    include_usage: bool  # in a stream; a body always has it


async def collect(answering: Answering) -> Entry:
    """Waits for all answers."""
    async with aclosing(_entries(answering)) as entries:
        async for _ in entries:
            pass
    envelope = answering.envelope
    return {**envelope.fields(envelope.kind), "choices": [choice.final() for choice in answering.choices],
            "usage": usage(answering.job.ticket)}


async def chunks(answering: Answering) -> AsyncGenerator[Entry, None]:
    """The same piece by piece, as the objects that a stream's events hold."""
    fields, more = _chunk_fields(answering), {"usage": None} if answering.include_usage else {}
    async with aclosing(_entries(answering)) as entries:
        async for entry in entries:
            yield {**fields, "choices": [entry], **more}
    if answering.include_usage:
        yield {**fields, "choices": [], "usage": usage(answering.job.ticket)}


async def stream(answering: Answering) -> AsyncGenerator[bytes, None]:
    """The same as server-sent events. What is equal in all chunks is encoded once."""
    head = sse.json_text(_chunk_fields(answering))[:-1]
    before = f"data: {head},\"choices\":["
    after = "],\"usage\":null}\n\n" if answering.include_usage else "]}\n\n"
    async with aclosing(_entries(answering)) as entries:
        async for entry in entries:
            yield f"{before}{sse.json_text(entry)}{after}".encode()
    if answering.include_usage:
        yield sse.encode({**_chunk_fields(answering), "choices": [], "usage": usage(answering.job.ticket)})
    yield sse.END


def _chunk_fields(answering: Answering) -> Entry:
    return answering.envelope.fields(answering.envelope.chunk_kind)


async def _entries(answering: Answering) -> AsyncGenerator[Entry, None]:
    num_answers = answering.job.requests[0].n
    async with aclosing(deltas(answering.job)) as news:
        async for prompt, delta in news:
            for entry in answering.choices[prompt * num_answers + delta.index].push(delta):
                yield entry
