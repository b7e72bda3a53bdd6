"""The probe of a remote small model: 16 fixed prompts, whose first tokens and log-probabilities tell models apart.

Nothing else that a server says is bound to its weights: a path, a name and a version stay when a file is replaced. So
the same prompts are asked again every few minutes, and compared with the ones that stand in the ledger.

**Distance.** Of two answers to one prompt, the positions up to the first token that differs are compared, that one
included, as both are conditioned on the same text. At each, half the sum of the differences of probability over the
tokens that either shows (total variation; a token that one does not show has at most the least probability that it
shows). The distance of two probes is the mean over positions and prompts: 0 is the same, 1 is nothing in common.

**Tolerance.** One server's probes differ, because a batch changes the order in which numbers are added. The
first probe is made three times, one prompt after the other and all at a time, and four times the largest distance of
them is tolerated, at least `FLOOR` and at most `CEILING`. FLOOR: bfloat16 rounds to 1 part in 256, so sums of
some 20 nats differ by up to 0.04 nats, which moves a probability by 0.04 x p (1 - p) <= 0.01. CEILING: below the
distance of SmolLM2 from itself in 4 or 5 bits, 0.06 to 0.13 (docs/dev/LOG.md).

Without log-probabilities the texts are compared: the share of prompts with another text. Such a probe is weaker, and
its tolerance is coarser.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brise.dialects.bodies import Body, first_choice, objects

PROMPTS: Sequence[str] = (
    "Name the wind that blows from the north down the valley of the Rhone.",
    "What is 17 times 23? Answer with the number only.",
    "Translate into French: The harbour is closed until Monday.",
    "Complete: The quick brown fox",
    'Give JSON with the fields "city" and "country" for Lisbon.',
    "Write a Python function that reverses a string.",
    "Is a tomato a fruit or a vegetable? One word.",
    "Summarize in five words: The meeting was moved to Thursday because the room was taken.",
    "Turn the heating in the back of the car to 21 degrees.",
    "Classify the mood as positive or negative: The delivery was late again.",
    "Quelle est la capitale de l'Australie ?",
    "Nenne drei Winde.",
    "Extract the date: Your invoice of 3 May 2024 is due.",
    "Which is larger, 9.11 or 9.9?",
    "Continue the list: Monday, Tuesday, Wednesday,",
    "Say hello to a new colleague in one short sentence.")
NUM_TOKENS, NUM_TOP = 4, 5
LEAST = -100.0  # of log-probabilities, where a server says minus infinity
TEXT_TOKENS = 16  # where there are no log-probabilities
ROUNDS = 3  # of the first probe
FACTOR, FLOOR, CEILING = 4.0, 0.01, 0.05
TEXT_FLOOR, TEXT_CEILING = 1.5 / 16, 4.5 / 16  # one text may differ, at most four

Ask = Callable[[Body], Awaitable[Body]]  # a chat completion; raises RequestError


@dataclass(frozen=True)
class ProbedToken:
    """A token, and the probabilities' logarithms of the best ones at its place."""

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Probe:
    """Answers to the prompts: tokens, or texts where `has_logprobs` is False. `seen` is what the answers say of their
    model: its name and its system_fingerprint, if all say the same."""

    tokens: tuple[tuple[ProbedToken, ...], ...] = ()
    texts: tuple[str, ...] = ()
    seen: tuple[str | None, str | None] = (None, None)

    @property
    def has_logprobs(self) -> bool:
        return bool(self.tokens)

    def to_body(self) -> Body:
        """As the ledger has it."""
        if not self.has_logprobs:
            return {"texts": list(self.texts)}
        return {"tokens": [[[token.text, {name: round(value, 4) for name, value in token.top.items()}]
                            for token in answer] for answer in self.tokens]}


@dataclass(frozen=True)
class ProbeNoise:
    """How far probes of one server differ, and how far they may."""

    noise: float
    tolerance: float

    @property
    def is_steady(self) -> bool:
        """Whether a probe tells anything: its noise is within what is tolerated."""
        return self.noise <= self.tolerance


def from_body(body: Body) -> Probe:
    """A probe of the ledger; ValueError if it is none."""
    try:
        if "texts" in body:
            return Probe(texts=tuple(map(str, body["texts"])))
        return Probe(tuple(tuple(ProbedToken(str(said), {str(name): float(value) for name, value in top.items()})
                                 for said, top in answer) for answer in body["tokens"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a probe cannot be read: {error!r}") from None


async def probe(ask: Ask, model: str, *, has_logprobs: bool = True, is_batched: bool = False) -> Probe:
    """Asks all prompts, one after the other or all at a time."""
    bodies = [_asked(model, prompt, has_logprobs=has_logprobs) for prompt in PROMPTS]
    answers = (await asyncio.gather(*map(ask, bodies)) if is_batched else [await ask(body) for body in bodies])
    names = {(_text(answer.get("model")), _text(answer.get("system_fingerprint"))) for answer in answers}
    seen = names.pop() if len(names) == 1 else (None, None)
    if not has_logprobs:
        return Probe(texts=tuple(_said(answer) for answer in answers), seen=seen)
    return Probe(tuple(_tokens(answer) for answer in answers), seen=seen)


async def gives_logprobs(ask: Ask, model: str) -> bool:
    """Whether an answer has log-probabilities with alternatives."""
    tokens = _tokens(await ask(_asked(model, PROMPTS[0], has_logprobs=True)))
    return bool(tokens) and all(token.top for token in tokens)


def distance(one: Probe, other: Probe) -> float:
    """How far two probes differ, from 0 to 1."""
    if one.has_logprobs != other.has_logprobs:
        return 1.0
    if not one.has_logprobs:
        return sum(map(str.__ne__, one.texts, other.texts)) / len(PROMPTS)
    return sum(map(_distance, one.tokens, other.tokens)) / len(PROMPTS)


def steadiness(probes: Sequence[Probe]) -> ProbeNoise:
    """From repeated probes of one server."""
    noise = max((distance(probes[0], other) for other in probes[1:]), default=0.0)
    floor, ceiling = (FLOOR, CEILING) if probes[0].has_logprobs else (TEXT_FLOOR, TEXT_CEILING)
    return ProbeNoise(noise, min(max(FACTOR * noise, floor), ceiling))


def _asked(model: str, prompt: str, *, has_logprobs: bool) -> Body:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                            "max_tokens": NUM_TOKENS if has_logprobs else TEXT_TOKENS}
    return body | ({"logprobs": True, "top_logprobs": NUM_TOP} if has_logprobs else {})


def _tokens(answer: Body) -> tuple[ProbedToken, ...]:
    logprobs = (first_choice(answer) or {}).get("logprobs")
    entries = objects(logprobs.get("content")) if isinstance(logprobs, dict) else []
    return tuple(ProbedToken(str(entry.get("token")), {
        str(top.get("token")): max(float(top["logprob"]), LEAST) for top in objects(entry.get("top_logprobs"))
        if isinstance(top.get("logprob"), int | float) and top["logprob"] <= 0}) for entry in entries)


def _said(answer: Body) -> str:
    choice = first_choice(answer) or {}
    message = choice.get("message")
    return str(message.get("content") or "") if isinstance(message, dict) else ""


def _distance(one: Sequence[ProbedToken], other: Sequence[ProbedToken]) -> float:
    """The mean over the positions that both reached by the same tokens."""
    distances = list[float]()
    for left, right in zip(one, other, strict=False):
        distances.append(_variation(left.top, right.top))
        if left.text != right.text:
            break
    return sum(distances) / len(distances) if distances else float(bool(one) != bool(other))


def _variation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation, as much as is certain: what is not shown is at most as probable as the least that is."""
    left, right = ({name: _exp(value) for name, value in top.items()} for top in (one, other))
    least_left, least_right = min(left.values(), default=1.0), min(right.values(), default=1.0)
    total = 0.0
    for name in left.keys() | right.keys():
        p, q = left.get(name), right.get(name)
        if p is None:
            total += max((q or 0.0) - least_left, 0.0)
        else:
            total += max(p - least_right, 0.0) if q is None else abs(p - q)
    return min(total / 2, 1.0)


def _exp(value: float) -> float:
    return math.exp(min(max(value, LEAST), 0.0))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
