"""The parts that a gateway is put together from, as it sees them: who decides, who stands in, who writes down.

All of them may be left out. None of them may block the event loop, for every client waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from starlette.types import Send

from brise.dialects.bodies import Body, Usage
from brise.gateway.failure import BrokenAttempt, Relayed
from brise.gateway.request import ClientRequest
from brise.traffic.records import Exchange, Mode, Pending, RecordedAnswer


@dataclass(frozen=True)
class RequestOutcome:
    """How a request was answered, by whom ever."""

    mode: Mode
    status: int
    served_by: str | None = None
    response: Body | None = None  # a stream's put together
    usage: Usage | None = None
    fingerprint: str | None = None
    error: str | None = None
    first_token_s: float | None = None  # since the request came
    cost_usd: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    audit_probability: float | None = None
    answers: Sequence[RecordedAnswer] = ()  # others that belong to the request, such as a draft
    pending: bool = False  # the hosted model is to answer it later
    unread: Relayed | None = None  # what the client got, from which the rest is still to be read (exchange.read)


@dataclass(frozen=True)
class Declined:
    """Nobody stood in: nothing was sent, and `why` is told to the client beside what the hosted model failed of."""

    why: str


@dataclass(frozen=True)
class Decision:
    """Who is to answer. `small` is the local model (or adapter) that stands in for the hosted one."""

    where: Literal["hosted", "small"] = "hosted"
    small: str | None = None
    step: str = ""  # why, for the record: the number of the switch that decided, say


@dataclass(frozen=True)
class Escalated:
    """The small model was unsure, or could not answer: nothing has been sent, the hosted one is to answer."""

    draft: RecordedAnswer | None = None
    signals: Mapping[str, float] = field(default_factory=dict)


class Router(Protocol):
    """Decides from the state of the task's switch (switch/route.py)."""

    def decide(self, asked: ClientRequest) -> Decision: ...


class Small(Protocol):
    """Answers from the local model where a switch says so (switch/small_model.py)."""

    async def answer(self, asked: ClientRequest, decision: Decision, send: Send) -> RequestOutcome | Escalated:
        """Sends the whole answer, or nothing."""


class Fallback(Protocol):
    """Answers where the hosted model cannot (gateway/fallback.py)."""

    def fits(self, asked: ClientRequest) -> bool:
        """Whether it could answer this request at all."""
    async def answer(self, asked: ClientRequest, broken: BrokenAttempt, send: Send) -> RequestOutcome | Declined:
        """Sends a whole answer, or the rest of a stream that has begun; or nothing."""


class Observer(Protocol):
    """Is told of every answered request soon after its client has the answer: the shadow, the audit."""

    def after(self, asked: ClientRequest, exchange: Exchange) -> None:
        """Called in the event loop, so it only takes note; what there is to do is done in the background."""


class Background(Protocol):
    """Works beside the requests, as long as the gateway runs."""

    async def run(self) -> None:
        """Until it is cancelled."""


class CaptureSink(Protocol):
    """Writes down (traffic/capture.py). Never blocks, never raises: what cannot be kept is counted as dropped."""

    def record(self, exchange: Exchange | None = None, answers: Sequence[RecordedAnswer] = (),
               pending: Sequence[Pending] = ()) -> None:
        """An exchange and what belongs to it, or what came later to one."""
    def skip(self, reason: Literal["off", "sampled"]) -> None:
        """Counts a request that is not to be written down."""
