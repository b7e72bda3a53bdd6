"""Streams of server-sent events in any dialect: how far they have come, and the body that they add up to."""

from __future__ import annotations

from dataclasses import dataclass

from brise.dialects import sse
from brise.dialects.bodies import Body, Fields
from brise.dialects.dialect import Dialect, Progress


@dataclass(frozen=True)
class AssembledStream:
    """`body` is None if the stream had nothing in it; `error` says what is missing or wrong."""

    body: Body | None
    error: str | None = None


def follow(dialect: Dialect, progress: Progress, event: sse.ServerSentEvent) -> None:
    """Takes one event of a stream into account. What cannot be read changes nothing."""
    progress.num_events += 1
    if event.is_done:
        progress.is_done = True
        return
    fields = event.fields
    if fields is None:
        return
    progress.error = progress.error or event.error
    dialect.advance(progress, str(fields.get("type") or event.name), fields)


def progress_of(dialect: Dialect, stream: bytes) -> Progress:
    """What a client has read of a stream that began with these bytes."""
    progress = Progress()
    for event in sse.events(stream):
        follow(dialect, progress, event)
    return progress


def assemble(dialect: Dialect, stream: bytes) -> AssembledStream:
    """The body that the same request without `stream` would have got.

    Nothing here raises: a stream that was cut, or is not what it should be, gives what there was, and a note of what is
    wrong.
    """
    events, notes, has_error = list[Fields](), list[str](), False
    for number, event in enumerate(sse.events(stream), 1):
        if event.is_done:
            continue
        fields = event.fields
        if fields is None:
            notes.append(f"event {number} is no JSON object")
            continue
        events.append({"type": event.name, **fields} if event.name and dialect.names_events else dict(fields))
        if event.error is not None:
            has_error = True
            notes.append(event.error.message)
    body, is_complete = dialect.assemble(events)
    if not is_complete and not has_error:
        notes.append("the stream ended before its answer did" if body is not None else "the stream holds no answer")
    return AssembledStream(body, "; ".join(dict.fromkeys(notes)) or None)
