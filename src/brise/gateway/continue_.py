"""A stream that the hosted model began and the small one ends: one id, one role, one choice, no word twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from brise.gateway.asked import Asked
from brise.gateway.local import LocalStream
from brise.gateway.progress import Progress
from brise.gateway.records import Body

CAN_GO_ON = frozenset({"chat", "completion"})


def obstacle(asked: Asked, progress: Progress) -> str | None:
    """Why nobody can go on with an answer, or None. The client has read what `progress` says."""
    fields = asked.fields or {}
    if progress.error is not None:
        return "the hosted model has told the client of an error"
    if progress.num_choices > 1 or fields.get("n") not in (None, 1):
        return "the answer has several choices"
    if progress.has_calls:
        return "the answer calls a function"
    if asked.kind not in CAN_GO_ON and progress.num_events:
        return f"an answer of the kind {asked.kind!r} is not gone on with"
    return None


async def rest(stream: LocalStream, progress: Progress) -> AsyncGenerator[Body, None]:
    """The small model's chunks as the ones that follow the hosted model's."""
    same = {name: value for name, value in (("id", progress.id), ("created", progress.created)) if value is not None}
    async with aclosing(stream.chunks) as chunks:
        async for chunk in chunks:
            choices = [_without_role(choice) for choice in chunk["choices"]] if progress.id else chunk["choices"]
            if any(map(_says_something, choices)) or not choices:
                yield {**chunk, **same, "choices": choices}


def _without_role(choice: Body) -> Body:
    delta = choice.get("delta")
    if not isinstance(delta, dict) or "role" not in delta:
        return choice
    return {**choice, "delta": {name: value for name, value in delta.items() if name != "role"}}


def _says_something(choice: Body) -> bool:
    said = choice["delta"] if "delta" in choice else {"text": choice.get("text")}
    return choice.get("finish_reason") is not None or choice.get("logprobs") is not None or any(said.values())
