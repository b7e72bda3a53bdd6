"""An example of an evaluation, a prompt with its reference answer, and a model's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brise.text.protocols import Message


@dataclass(frozen=True)
class AnsweredCall:
    """A function call of an answer. `arguments` is the text that the model wrote, which may not be valid JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class EvalAnswer:
    """A model's answer. `error` says why there is none; it counts as wrong.

    `logprob` is that of the whole answer in nats, where it was asked for. For perplexity, `nll` is the reference's
    negative log-likelihood in nats over `scored_tokens` tokens.
    """

    text: str = ""
    calls: tuple[AnsweredCall, ...] = ()
    finish: str = "stop"
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    nll: float | None = None
    scored_tokens: int = 0
    logprob: float | None = None


@dataclass(frozen=True)
class EvalExample:
    """One example. `place` is file:line; rows of one `conversation` are not independent observations.

    `digest`, of prompt, tools and reference, is the key in a file of answers.
    """

    prompt: tuple[Message, ...]
    reference: EvalAnswer
    place: str
    conversation: str
    digest: str
    tools: tuple[Mapping[str, object], ...] = ()
    provider: str | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
