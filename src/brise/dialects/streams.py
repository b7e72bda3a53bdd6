"""Streams of server-sent events in any dialect: how far they have come, and the body that they add up to."""

from __future__ import annotations

from dataclasses import dataclass

from brise.dialects import sse
from brise.dialects.bodies import Body, Fields
from brise.dialects.dialect import Dialect, Progress

ERRORS = ("error", "response.failed")  # types of events that report one; a tuple: a type may be a list too


@dataclass(frozen=True)
class AssembledStream:
    """`body` is None if the stream had nothing in it; `error` says what is missing or wrong."""

    body: Body | None
    error: str | None = None


def follow(dialect: Dialect, progress: Progress, event: sse.ServerSentEvent) -> None:
    """Takes one event of a stream into account. What cannot be read changes nothing."""
    progress.num_events += 1
    if event.data == sse.DONE:
        progress.is_done = True
        return
    fields = event.fields
    if fields is None:
        return
    event_type = str(fields.get("type") or event.name)
    if fields.get("error") or event_type in ERRORS:
        progress.error = fields
    dialect.advance(progress, event_type, fields)


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
    events, notes, is_done = list[Fields](), list[str](), False
    for number, event in enumerate(sse.events(stream.removeprefix(b"\xef\xbb\xbf")), 1):
        if event.data == sse.DONE:
            is_done = True
            continue
        fields = event.fields
        if fields is None:
            notes.append(f"event {number} is no JSON object")
            continue
        events.append({"type": event.name, **fields} if event.name and dialect.names_events else dict(fields))
    notes += [_error_message(event) for event in events if event.get("error") or event.get("type") in ERRORS]
    body, is_complete = dialect.assemble(events)
    if not (is_complete or is_done):
        notes.append("the stream ended before its answer did" if body is not None else "the stream holds no answer")
    return AssembledStream(body, "; ".join(dict.fromkeys(notes)) or None)


def _error_message(event: Fields) -> str:
    response = event.get("response")
    error = event.get("error") or (response.get("error") if isinstance(response, dict) else None) or event
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else "an error event"
