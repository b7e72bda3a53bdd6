"""A stream of server-sent events -> the body that the same request without `stream` would have got.

Nothing here raises: a stream that was cut or is not what it should be gives what there was, and a note of what is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brise.dialects import sse
from brise.dialects.bodies import Body, Kind
from brise.dialects.reassemble_chunks import chat_body, completion_body
from brise.dialects.reassemble_typed import messages_body, responses_body

Fields = dict[str, Any]
TYPED = frozenset({"responses", "messages"})  # dialects whose events have names; the data repeat them as their type
ERRORS = ("error", "response.failed")


@dataclass(frozen=True)
class Reassembled:
    """`body` is None if the stream had nothing in it; `error` says what is missing or wrong."""

    body: Body | None
    error: str | None = None


DIALECTS: Mapping[Kind, Callable[[list[Fields]], tuple[Fields | None, bool]]] = {
    "chat": chat_body, "completion": completion_body, "responses": responses_body, "messages": messages_body}


def reassemble(kind: Kind, stream: bytes) -> Reassembled:
    """The body in the bytes of a whole stream, or of what came of it."""
    events, notes, is_done = list[Fields](), list[str](), False
    for number, event in enumerate(sse.events(stream.removeprefix(b"\xef\xbb\xbf")), 1):
        if event.data == sse.DONE:
            is_done = True
            continue
        fields = event.fields
        if fields is None:
            notes.append(f"event {number} is no JSON object")
            continue
        events.append({"type": event.name, **fields} if event.name and kind in TYPED else dict(fields))
    notes += [_said(event) for event in events if event.get("error") or event.get("type") in ERRORS]
    put = DIALECTS.get(kind)
    body, is_complete = (({"events": events} if events else None), True) if put is None else put(events)
    if not (is_complete or is_done):
        notes.append("the stream ended before its answer did" if body is not None else "the stream holds no answer")
    return Reassembled(body, "; ".join(dict.fromkeys(notes)) or None)


def _said(event: Fields) -> str:
    """What an error event says."""
    response = event.get("response")
    error = event.get("error") or (response.get("error") if isinstance(response, dict) else None) or event
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else "an error event"
