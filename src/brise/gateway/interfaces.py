"""The parts of a gateway as it sees them: who decides, who answers, who observes, who writes down.

Each may be missing. None may block the event loop, because every client waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from starlette.types import Send

from brise.dialects.bodies import Body, Usage
from brise.gateway.failure import BrokenAttempt, Delivery
from brise.gateway.request import ClientRequest
from brise.traffic.records import Exchange, Mode, Pending, RecordedAnswer


@dataclass(frozen=True)
class RequestOutcome:
    """How a request was answered, whoever did it."""

    mode: Mode
    status: int
    served_by: str | None = None
    response: Body | None = None  # of a stream, the body that it adds up to
    usage: Usage | None = None
    fingerprint: str | None = None
    error: str | None = None
    first_token_s: float | None = None  # since the request came
    cost_usd: float | None = None
    lost: Sequence[Usage] = ()  # of attempts that failed, which are paid too
    is_continued: bool = False  # the beginning is the large model's, which is paid too, and nobody knows how much
    signals: Mapping[str, float] = field(default_factory=dict)
    audit_probability: float | None = None
    answers: Sequence[RecordedAnswer] = ()  # others that belong to the request, such as a draft
    pending: bool = False  # the large model is to answer it later
    unread: Delivery | None = None  # what the client got; `exchange.with_response` reads the rest of the fields from it


@dataclass(frozen=True)
class Declined:
    """Nobody answered instead: nothing was sent. The client is told `why`, beside how the large model failed."""

    why: str


@dataclass(frozen=True)
class Decision:
    """Who is to answer. `small` is the small model (or adapter) that answers instead of the large one."""

    where: Literal["hosted", "small"] = "hosted"
    small: str | None = None
    step: str = ""  # why, such as the number of the switch that decided


@dataclass(frozen=True)
class Escalated:
    """The small model was unsure, or could not answer: nothing has been sent, the large one is to answer."""

    draft: RecordedAnswer | None = None
    signals: Mapping[str, float] = field(default_factory=dict)


class Router(Protocol):
    """Decides from the state of the task's switch (switch/route.py)."""

    def decide(self, request: ClientRequest) -> Decision: ...


class SwitchedModel(Protocol):
    """Answers with the small model where a switch says so (switch/small_model.py)."""

    async def answer(self, request: ClientRequest, decision: Decision, send: Send) -> RequestOutcome | Escalated:
        """Sends the whole answer, or nothing."""


class Fallback(Protocol):
    """Answers where the large model cannot (gateway/fallback.py)."""

    def can_answer(self, request: ClientRequest) -> bool:
        """Whether it could answer this request at all."""

    async def answer(self, request: ClientRequest, broken: BrokenAttempt, send: Send) -> RequestOutcome | Declined:
        """Sends a whole answer, or the rest of a stream that has begun; or nothing."""


class Observer(Protocol):
    """Sees every answered request soon after its client has the answer: the shadow, the audit."""

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Called in the event loop, so it only takes note; the work is done in the background."""


class Background(Protocol):
    """Works beside the requests, as long as the gateway runs."""

    async def run(self) -> None:
        """Until it is cancelled."""


class CaptureSink(Protocol):
    """Writes down (traffic/capture.py). Never blocks, never raises: what cannot be kept is counted as dropped."""

    def record(self, exchange: Exchange | None = None, answers: Sequence[RecordedAnswer] = (),
               pending: Sequence[Pending] = ()) -> None:
        """An exchange and what belongs to it, or what came later to one."""

    def skip(self, reason: str) -> None:
        """Counts a request that is not to be written down ("off", "sampled"), or got no shadow answer."""
