"""What goes wrong with the large model, and how far its answer had come by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Dialect, Progress
from brise.gateway.request import Headers

# refused: no connection. connect_timeout, first_byte_timeout, stalled: too slow to begin, to answer, in the middle.
# cut: the connection ended, or the stream did before its answer was complete. malformed: no HTTP, no events, or no
# answer in a body of status 200. status: an answer that says "not now" (429, 5xx). error_event: a stream, or a body of
# status 200, that says so. open: not even tried, because the circuit breaker is open. ended: this server shuts down.
# limited: not sent, because the rate limit that all gateways keep for it is used up.
FailureKind = Literal["refused", "connect_timeout", "first_byte_timeout", "stalled", "cut", "malformed", "status",
                      "error_event", "open", "ended", "limited"]
STATUS: Mapping[FailureKind, int] = {  # what the client is told where nobody else answers
    "refused": 502, "connect_timeout": 504, "first_byte_timeout": 504, "stalled": 504, "cut": 502, "malformed": 502,
    "error_event": 502, "open": 503, "ended": 503, "limited": 429}


@dataclass(frozen=True)
class Refusal:
    """An answer of the large model that says "not now", as it came."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class UpstreamFailure:
    """Why the large model did not answer."""

    kind: FailureKind
    detail: str
    status: int | None = None  # of its answer, or that its error names, if it gave one
    retry_after_s: float | None = None
    may_repeat: bool | None = None  # what the server says of that, if it does
    refusal: Refusal | None = None
    is_stale: bool = False  # a connection that had waited was ended as we used it: that says nothing of the server

    @property
    def client_status(self) -> int:
        """The status that the client sees."""
        return self.status if self.status is not None and self.kind == "status" else STATUS[self.kind]

    @property
    def message(self) -> str:
        """What the client reads."""
        return self.detail if self.kind == "ended" else f"the upstream model did not answer ({self})"

    @property
    def code(self) -> str:
        """The machine-readable reason."""
        return "shutting_down" if self.kind == "ended" else f"upstream_{self.kind}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class UpstreamError(Exception):
    """The large model did not answer, or not to the end. It stays in the gateway: a client sees an answer of ours."""

    def __init__(self, failure: UpstreamFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.delivery: Delivery | None = None  # what the client has of the answer, when it is given up


@dataclass
class Delivery:
    """What the client got of an attempt's answer.

    `body` is that of a stream without its content encoding; else as it came. `fault` is the failure that the answer
    itself reports: it reached the client as it was, because nobody else could answer.
    """

    status: int = 0
    headers: Headers = ()
    is_stream: bool = False
    is_encoded: bool = False  # the client's stream is compressed: no event of ours can follow
    has_begun: bool = False  # status and headers are with the client
    body: bytearray = field(default_factory=bytearray)
    unkept: str | None = None  # why `body` is not all of it
    followed: Progress = field(default_factory=Progress)  # what the client has read of a stream
    fields: Body | None = None  # of a whole answer, if it was read before it was passed on
    why: str | None = None  # these fields are no answer, if they are none
    fault: UpstreamFailure | None = None
    first_s: float | None = None  # monotonic, of the first token or piece
    usage: Usage | None = None  # where the body does not have it
    lost: Sequence[Usage] = ()  # of attempts before that failed, as far as they counted their tokens: they are paid too

    @property
    def takes_event(self) -> bool:
        """Whether an event of ours can follow what the client has."""
        return self.is_stream and not self.is_encoded

    def progress(self, dialect: Dialect) -> Progress | None:
        """What the client has read of a stream; None if the answer has not begun, or is no stream that can be read."""
        return self.followed if self.has_begun and self.takes_event and self.unkept is None else None


@dataclass(frozen=True)
class BrokenAttempt:
    """An attempt that failed for good, at the moment when another model may continue.

    `progress` is what the client has read of the large model's stream, all of it in whole events. It is None if the
    answer has not begun: then status and headers are still to be sent.
    """

    failure: UpstreamFailure
    progress: Progress | None = None
    read: bytes = b""  # the stream so far
