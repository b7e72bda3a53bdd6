"""Requests that are no conversations: embeddings, and all paths that no dialect knows."""

from __future__ import annotations

from collections.abc import Sequence

from brise.dialects import bodies, failures, sse, token_counts
from brise.dialects.bodies import Body, Fields, Kind, Usage
from brise.dialects.chat_form import Message
from brise.dialects.dialect import Progress
from brise.dialects.items import ConversationItem


class Opaque:
    """Implements `Dialect` for bodies of which nothing but model, person, tokens and errors can be told."""

    is_switched = continues = names_events = counts_on_request = False
    has_small_models = False  # another model's vectors are of no use to a client

    def __init__(self, name: Kind, path: str, *, is_read: bool, is_served: bool) -> None:
        self.name: Kind = name
        self.path, self.is_read, self.is_served = path, is_read, is_served
        self.is_deployed = is_read  # of the two that there are, embeddings
        self.operation: str = "embeddings" if is_read else name
        self.provider = "openai"

    def key_header(self, key: bytes) -> tuple[bytes, bytes]:
        return b"authorization", b"Bearer " + key

    def conversation(self, request: Body) -> list[ConversationItem]:
        return []

    def continued_id(self, request: Body) -> None:
        return None

    def context_digest(self, request: Body) -> str | None:
        return bodies.context_digest(request)

    def with_prefix(self, request: Body, prefix: str) -> None:
        return None

    def answers(self, response: Body) -> list[list[ConversationItem]]:
        return []

    def answer_id(self, response: Body) -> None:
        return None

    def failure(self, response: object) -> str | None:
        """A list of vectors is checked; of other answers nothing is known."""
        if not self.is_read:
            return None
        why = failures.of_body(response)
        if why is None and not (isinstance(response, dict) and response.get("data")):
            return "the body has no data"
        return why

    def finish_reason(self, response: Body) -> None:
        return None

    def usage(self, response: Body) -> Usage | None:
        return token_counts.of_openai(response)

    def error_body(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def error_event(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def advance(self, progress: Progress, event_type: str, event: Body) -> None:
        """Events say nothing that is known here."""

    def assemble(self, events: Sequence[Fields]) -> tuple[Body | None, bool]:
        return ({"events": list(events)} if events else None), True

    def encode(self, event: Body) -> bytes:
        return sse.encode(event)

    def stream_end(self) -> bytes:
        return b""

    def is_last(self, event: Body) -> bool:
        return False

    def continuation(self, event: Body, progress: Progress) -> Body:
        return event

    def chat_messages(self, request: Body) -> list[Message]:
        raise ValueError(f"a request of kind {self.name!r} is no chat")

    def chat_answer(self, response: Body) -> Message:
        raise ValueError(f"an answer of kind {self.name!r} is no chat")

    def chat_tools(self, request: Body) -> list[Message]:
        raise ValueError(f"a request of kind {self.name!r} is no chat")
