"""Requests to the engine, and the deltas that come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from brise.text.inputs import AudioInput, Grammar, ImageInput

FinishReason = Literal["stop", "length", "late", "cancelled", "preempted", "error"]


@dataclass(frozen=True)
class Sampling:
    """How a token is picked from logits. The defaults change nothing; temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    repeat_last_n: int = -1  # the repetition penalty looks at so many of the last tokens; 0: none, -1: all
    penalizes_prompt: bool = True  # else the repetition penalty looks at the answer alone


# Temperature and top_p are those of SmolLM2's model card: small models are sure of little, and wander off when more
# than their best guesses may be chosen. The penalty ends the loops that they fall into. It looks at the last tokens of
# the answer only: over all of it, long texts lose their common words, and over the prompt, answers do not name what the
# prompt names (SmolLM2, 12 choices among words of the question: 14 of 24 right without, 10 with, 13 like this).
USUAL_SAMPLING = Sampling(temperature=0.2, top_p=0.9, repetition_penalty=1.1, repeat_last_n=64, penalizes_prompt=False)
# Of answers with a grammar: JSON repeats its quotes and keys, and ends.
STRUCTURED_SAMPLING = Sampling(temperature=0.2, top_p=0.9)
# A small model that has begun to repeat itself would go on until its context is full, minutes later.
USUAL_MAX_TOKENS = 1024


@dataclass(frozen=True)
class Request:
    """One prompt and `n` answers. `logprobs` is the number of alternatives for each token (None: no logprobs)."""

    prompt: tuple[int, ...]
    max_tokens: int | None = None  # None: as many as the context has room for
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    n: int = 1
    grammar: Grammar | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False  # for benchmarks
    min_tokens: int = 0  # before them the answer does not end by a token, unless its grammar wants it to
    stop_tokens: frozenset[int] = frozenset()  # they end the answer as the model's own end does
    keeps_stop: bool = False  # the stop string is part of the text
    sentinels: Mapping[int, str] = field(default_factory=dict)  # for special tokens (text/special_tokens.py)
    images: tuple[ImageInput, ...] = ()  # in the order of their tokens in the prompt
    audios: tuple[AudioInput, ...] = ()  # likewise
    begins_text: bool = False  # the answer is a text of its own, as in chats, and does not go on from the prompt's
    background: bool = False  # nobody waits for it: accepted while there is no other request, ended when one arrives
    adapter: str | None = None  # the name of an adapter of the engine (engine/adapters.py)
    token_choices: tuple[tuple[int, ...], ...] = ()  # those allowed at each place of an answer of this length
    deadline_s: float | None = None  # after it has arrived, the answer ends as "late", with what there is
    is_urgent: bool = False  # at the next step, others wait until it has ended
    prediction: tuple[int, ...] = ()  # what the answer may be; where it is, the answer comes sooner


@dataclass
class DraftCounts:
    """Tokens of one source of drafts: computed in steps, and accepted."""

    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """One token, its log-probability after temperature-free softmax and constraint, and the best others."""

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What is new of one answer: text that is safe to show, and at the end the reason why it ended.

    `text` never ends in the middle of a character and never holds part of a stop string.
    """

    request_id: str
    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    stop_string: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    completion_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # with the first delta only; [0] is None
    prediction: DraftCounts | None = None  # with the last delta: how much of the request's prediction was right
