"""How far a stream of a hosted model has come: what its client has read, and whether it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brise.dialects.bodies import Body, Kind
from brise.dialects.sse import DONE, ServerSentEvent, events

# Of responses and messages: the events that carry what a client reads.
TEXT_EVENTS = frozenset({"response.output_text.delta", "response.refusal.delta"})
CALL_EVENTS = frozenset({"response.function_call_arguments.delta"})
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop"})
ERROR_EVENTS = frozenset({"error", "response.failed"})


@dataclass
class Progress:
    """Grows with every event. `text` is what the first choice's client has read so far."""

    kind: Kind
    text: str = ""
    has_content: bool = False  # a token of text, of a call, of reasoning reached the client
    has_calls: bool = False  # it began to call functions; such an answer cannot be gone on with
    num_choices: int = 1
    is_done: bool = False  # it ended as the dialect says that it ends
    finish: str | None = None
    id: str | None = None
    model: str | None = None
    created: int | None = None
    fingerprint: str | None = None
    error: Body | None = None  # an event that says so
    num_events: int = 0
    finished: set[object] = field(default_factory=set)  # the choices that have come to their end

    @property
    def has_ended(self) -> bool:
        """Whether the answer is complete, or ended with an error: what comes behind it is none of it."""
        is_finished = self.finish is not None and len(self.finished) in (0, self.num_choices)
        return self.is_done or is_finished or self.error is not None

    def push(self, event: ServerSentEvent) -> None:
        """Takes one event in. What cannot be read changes nothing."""
        self.num_events += 1
        if event.data == DONE:
            self.is_done = True
            return
        fields = event.fields
        if fields is None:
            return
        kind = str(fields.get("type") or event.name)
        if fields.get("error") or kind in ERROR_EVENTS:
            self.error = fields
        if self.kind in ("chat", "completion"):
            self._chunk(fields)
        else:
            self._typed(kind, fields)

    def _chunk(self, fields: Body) -> None:
        self.id = self.id or _text(fields.get("id"))
        self.model = self.model or _text(fields.get("model"))
        self.fingerprint = self.fingerprint or _text(fields.get("system_fingerprint"))
        created = fields.get("created")
        if self.created is None and isinstance(created, int):
            self.created = created
        for choice in _objects(fields.get("choices")):
            index = choice.get("index")
            self.num_choices = max(self.num_choices, index + 1 if isinstance(index, int) else 1)
            delta = choice.get("delta")
            piece: Body = delta if isinstance(delta, dict) else {"content": choice.get("text")}
            text = piece.get("content") or piece.get("refusal")
            if isinstance(text, str) and not index:
                self.text += text
            self.has_calls |= bool(piece.get("tool_calls") or piece.get("function_call"))
            self.has_content |= bool(text or piece.get("reasoning_content") or piece.get("reasoning")) or self.has_calls
            if finish := _text(choice.get("finish_reason")):
                self.finish = self.finish or finish
                self.finished.add(index if isinstance(index, int) else 0)

    def _typed(self, kind: str, fields: Body) -> None:
        """An event of the Responses or the Messages API."""
        about = fields.get("response") or fields.get("message")
        if isinstance(about, dict):
            self.id, self.model = self.id or _text(about.get("id")), self.model or _text(about.get("model"))
        delta = fields.get("delta")
        if kind in TEXT_EVENTS and isinstance(delta, str):
            self.text, self.has_content = self.text + delta, True
        elif kind in CALL_EVENTS:
            self.has_content = self.has_calls = True
        elif kind == "content_block_delta" and isinstance(delta, dict):
            self.text += _text(delta.get("text")) or ""
            self.has_calls |= "partial_json" in delta
            self.has_content = True
        elif kind == "message_delta" and isinstance(delta, dict):
            self.finish = _text(delta.get("stop_reason"))
        self.is_done |= kind in LAST_EVENTS


def so_far(kind: Kind, stream: bytes) -> Progress:
    """What of a stream that began with `stream` its client has read."""
    progress = Progress(kind)
    for event in events(stream):
        progress.push(event)
    return progress


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
