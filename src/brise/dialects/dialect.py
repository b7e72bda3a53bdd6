"""What the gateway asks of a dialect: one API's way of putting requests, answers, streams and errors into JSON.

A dialect is pure: it reads and makes JSON objects, and does no I/O. Its methods take whatever a stranger sent; those
that raise say so. `table.py` lists the dialects that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from brise.dialects.bodies import Body, Fields, Kind, Usage
from brise.dialects.chat_form import Message
from brise.dialects.failures import ReportedError
from brise.dialects.items import ConversationItem
from brise.text.finish_reasons import FinishReason


@dataclass
class Progress:
    """How far a stream has come."""

    texts: list[str] = field(default_factory=list)  # what the client has read of the first choice, in pieces
    has_content: bool = False  # a token of text, of a call, of reasoning reached the client
    has_calls: bool = False  # it began to call functions; such an answer cannot be continued
    has_refusal: bool = False  # it began to decline; nor can that be continued, with content
    unreadable: str | None = None  # what the client got that is neither text nor reasoning, such as audio
    num_choices: int = 1
    is_done: bool = False  # [DONE] came, whatever was before it
    is_complete: bool = False  # the event came with which the dialect ends an answer
    finish: str | None = None
    id: str | None = None
    model: str | None = None
    created: int | None = None
    fingerprint: str | None = None
    error: ReportedError | None = None
    num_events: int = 0
    finished: set[object] = field(default_factory=set)  # indexes of the choices that have ended

    @property
    def text(self) -> str:
        """What the client has read of the first choice."""
        return "".join(self.texts)

    @property
    def is_whole(self) -> bool:
        """Whether the answer has come to its own end."""
        return self.is_complete or (self.finish is not None and len(self.finished) in (0, self.num_choices))

    @property
    def has_ended(self) -> bool:
        """Whether the answer is complete, or ended with an error. What follows is no part of it."""
        return self.is_done or self.is_whole or self.error is not None


class Dialect(Protocol):
    """One API. `name` is how records call it; a POST to `path` uses it.

    `is_read`: the gateway reads its bodies; others pass through as they are. `is_served`: so do
    the routes of this server. `is_switched`: a switch may give its
    requests to a small model. `has_small_models`: a small model can answer instead of the large one. `continues`: it
    can also continue an answer that has begun. `names_events`: each event of a stream has a type, which stands in
    `type` or only in the event's name. `counts_on_request`: a stream has its tokens only if `stream_options` asks for
    them. `operation` and `provider`: how OpenTelemetry's conventions for generative AI call what it does, and whose API
    it is. `is_deployed`: Azure has its requests under the path of a model's deployment.
    """

    name: Kind
    path: str
    operation: str
    provider: str
    is_read: bool
    is_served: bool
    is_switched: bool
    has_small_models: bool
    continues: bool
    names_events: bool
    counts_on_request: bool
    is_deployed: bool

    # Requests.

    def key_header(self, key: bytes) -> tuple[bytes, bytes]:
        """The header in which a key goes to the server."""

    def conversation(self, request: Body) -> list[ConversationItem]:
        """The messages of a request but its system prompt; empty if it has no messages that could be continued."""

    def continued_id(self, request: Body) -> str | None:
        """The id of a stored answer or conversation that the request continues."""

    def context_digest(self, request: Body) -> str | None:
        """SHA-256 of the system prompt and the tools; None if there are none."""

    def with_prefix(self, request: Body, prefix: str) -> Body | None:
        """The same request with the beginning of its answer at the end of its prompt; None if that cannot be said."""

    # Answers.

    def answers(self, response: Body) -> list[list[ConversationItem]]:
        """The answers in a body, each as the items that a client sends back."""

    def answer_id(self, response: Body) -> str | None:
        """The id by which a later request can continue this answer (see `continued_id`)."""

    def failure(self, response: object) -> str | None:
        """Why this body, or that of a stream, is no answer, such as an error; None if it is one.

        An answer may be empty, cut, filtered, or a refusal. None and whatever is no JSON object are no answers.
        """

    def finish_reason(self, response: Body) -> FinishReason | None:
        """Why the first answer stopped; None if the body does not say, or gives a reason that is not known."""

    def usage(self, response: Body) -> Usage | None:
        """The tokens that the server counted."""

    def error_body(self, message: str, code: str) -> Body:
        """An error of the gateway as a whole answer."""

    def error_event(self, message: str, code: str) -> Body:
        """The same as the last event of a stream."""

    # Streams.

    def advance(self, progress: Progress, event_type: str, event: Body) -> None:
        """Takes one event of a stream into account."""

    def assemble(self, events: Sequence[Fields]) -> tuple[Body | None, bool]:
        """The body that the same request without `stream` would have got, and whether the stream was complete."""

    def encode(self, event: Body) -> bytes:
        """An event as bytes of a stream."""

    def stream_end(self) -> bytes:
        """What follows the last event of a stream."""

    def is_last(self, event: Body) -> bool:
        """Whether this event ends a choice or the stream."""

    def continuation(self, event: Body, progress: Progress) -> Body | None:
        """A small model's event as one of the stream that the client is reading; None if it adds nothing to it."""

    # As a chat completion, which is what training and evaluation read. ValueError says why something has no such form.

    def chat_messages(self, request: Body) -> list[Message]:
        """The messages of a request."""

    def chat_answer(self, response: Body) -> Message:
        """The first answer in a body."""

    def chat_tools(self, request: Body) -> list[Message]:
        """The functions that a request offers."""
