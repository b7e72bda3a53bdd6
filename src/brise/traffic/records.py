"""Records of captured traffic: plain values, the same for every store.

An `Exchange` is one request with the answer that its client got. A `RecordedAnswer` is another answer to the same
request, which no client saw: the small model's in the shadow, the large model's in an audit. A `Label` is an opinion
about an exchange's answers, of a person or a program. A `LedgerEntry` is a line of the ledger.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from brise.dialects import table
from brise.dialects.bodies import Body, Kind, Usage

# Who answered: the large model; the small one by a switch; the large one because the small one was unsure; the small
# one because the large one was out of reach; nobody (an error that the client saw).
Mode = Literal["hosted", "small", "escalated", "degraded", "failed"]
# shadow: the small model, in the background. audit: the large model on a kept request. reask: the large model asked
# the same again. reanswer: the large model after an outage. draft: the small model's, which was escalated.
Role = Literal["shadow", "audit", "reask", "reanswer", "draft"]

CLIENT_GONE = 499  # nginx's number for a client that left; no client ever sees it


@dataclass(frozen=True)
class Exchange:
    """One request, and the answer that its client got.

    `request` and `response` are bodies in the dialect of `kind`, that of a stream assembled into the body that the same
    request without `stream` would have got; both are None where content is not kept. `task` is the workflow
    that is switched as one: the header x-brise-task, else the model's name as asked. `context_digest` is the SHA-256
    of system prompt and tools, to which a certificate is bound. Times are in seconds, `at_s` since the epoch.
    """

    id: str
    at_s: float
    task: str
    kind: Kind
    path: str
    model: str  # as asked
    mode: Mode
    status: int  # of HTTP, as the client saw it; 499: the client left
    conversation: str
    parent: str | None = None  # the exchange whose answer this request continues
    subject: str | None = None  # whose data these are, to be forgotten together
    labels: Mapping[str, str] = field(default_factory=dict)  # headers x-brise-label-NAME
    served_by: str | None = None  # the model that answered, as it calls itself
    fingerprint: str | None = None  # a large model's system_fingerprint, or what SmallModels.fingerprint gives
    context_digest: str | None = None
    error: str | None = None
    streamed: bool = False
    usage: Usage | None = None
    cost_usd: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    signals: Mapping[str, float] = field(default_factory=dict)  # of the small model's confidence, if it was asked
    audit_probability: float | None = None  # with which an audit of a kept request was drawn
    upstream: str | None = None  # the name of the one that the request was for, if it has one
    request: Body | None = None
    response: Body | None = None


@dataclass(frozen=True)
class RecordedAnswer:
    """Another answer to the request of `exchange`."""

    id: str
    exchange: str
    at_s: float
    role: Role
    served_by: str | None = None
    fingerprint: str | None = None
    status: int = 200
    error: str | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    signals: Mapping[str, float] = field(default_factory=dict)
    probability: float | None = None  # with which this answer was drawn (audit, shadow)
    response: Body | None = None


@dataclass(frozen=True)
class Label:
    """What is known of the quality of an exchange's answers, and from which label source (`rung`, see stats/labels.py).

    Scores are in [0, 1]; `answer_score` is of the answer with the id `answer` (the small model's), `score` of the
    exchange's own. Either may be missing.
    """

    id: str
    exchange: str
    at_s: float
    rung: Literal["outcome", "human", "judge", "fidelity"]
    who: str
    score: float | None = None
    answer: str | None = None
    answer_score: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Pending:
    """A request that was answered in an outage and waits for the large model's answer."""

    exchange: str
    at_s: float
    attempts: int = 0


@dataclass(frozen=True)
class ConversationEnd:
    """How the next request of a conversation is recognised: by a digest of the messages up to its answer."""

    digest: str
    exchange: str
    conversation: str
    at_s: float


@dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger. `digest` is the SHA-256 over the line before's digest and this line's own content."""

    number: int  # from 1, without gaps
    at_s: float
    kind: str
    body: Body
    previous: str
    digest: str


def no_answer(exchange: Exchange) -> str | None:
    """Why what the client got is no whole answer, in few words that can be counted; None if it is one.

    Rows of older versions, or of other systems, may have an error in the body and nothing else that says so.
    """
    if exchange.status >= 300:
        return f"status {exchange.status}"
    why = None if exchange.response is None else table.named(exchange.kind).failure(exchange.response)
    if why is not None:
        return why.partition(":")[0]
    return None if exchange.error is None else "it failed or was not kept whole"


@dataclass(frozen=True)
class KnownSum:
    """USD of `known` of `number` answers; a lower bound if some are unknown, None if all are."""

    usd: float | None
    known: int
    number: int

    @property
    def share(self) -> float | None:
        """Of how many the cost is known; None if there are none."""
        return self.known / self.number if self.number else None


def new_id(now_s: float | None = None) -> str:
    """A unique id that sorts by time: 12 hexadecimal digits of milliseconds, 20 random ones."""
    milliseconds = int((time.time() if now_s is None else now_s) * 1000)
    return f"{milliseconds & 0xFFFFFFFFFFFF:012x}{secrets.token_hex(10)}"


# Why a request that the large model answered got no shadow answer: counted in the store beside what was not written.
NOT_DRAWN, SHED = "not drawn for the shadow", "drawn for the shadow and shed: its queue was full, or clients came first"


def shadow_skip(why: str, task: str) -> str:
    """The reason under which the store counts a request without a shadow answer."""
    return f"{why}: {task}"


def shadow_skipped(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Of the store's counts by reason those of the shadow: by task, then by reason."""
    found = dict[str, dict[str, int]]()
    for reason, number in counts.items():
        for why in (NOT_DRAWN, SHED):
            if reason.startswith(f"{why}: "):
                found.setdefault(reason[len(why) + 2:], {})[why] = number
    return found


def not_written(counts: Mapping[str, int]) -> dict[str, int]:
    """The other counts: of requests that were not written."""
    of_shadow = (f"{NOT_DRAWN}: ", f"{SHED}: ")
    return {reason: number for reason, number in counts.items() if not reason.startswith(of_shadow)}
