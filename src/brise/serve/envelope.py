"""What chat and legacy completions have in common on the way out: a stream of chunks, or one body."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from brise.engine.request import Delta
from brise.serve.generation import Job, deltas, usage
from brise.serve.sse import DONE, encode, event

Entry = dict[str, object]


class Choice(Protocol):
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


async def collect(job: Job, envelope: Envelope, choices: Sequence[Choice]) -> Entry:
    """Waits for all answers. `choices` has the `n` answers of the first prompt, then the second's, ..."""
    async with aclosing(_entries(job, choices)) as entries:
        async for _ in entries:
            pass
    return {**envelope.fields(envelope.kind), "choices": [choice.final() for choice in choices],
            "usage": usage(job.ticket)}


async def stream(job: Job, envelope: Envelope, choices: Sequence[Choice], include_usage: bool,
                 ) -> AsyncGenerator[bytes, None]:
    """The same as server-sent events. What is equal in all chunks is encoded once."""
    head = encode(envelope.fields(envelope.chunk_kind))[:-1]
    before, after = f"data: {head},\"choices\":[", ("],\"usage\":null}\n\n" if include_usage else "]}\n\n")
    async with aclosing(_entries(job, choices)) as entries:
        async for entry in entries:
            yield f"{before}{encode(entry)}{after}".encode()
    if include_usage:
        yield event({**envelope.fields(envelope.chunk_kind), "choices": [], "usage": usage(job.ticket)})
    yield DONE


async def _entries(job: Job, choices: Sequence[Choice]) -> AsyncGenerator[Entry, None]:
    num_answers = job.requests[0].n
    async with aclosing(deltas(job)) as news:
        async for prompt, delta in news:
            for entry in choices[prompt * num_answers + delta.index].push(delta):
                yield entry
