"""On-policy distillation: the student answers, the teacher says what it would have said, the student learns that.

Answers of others teach a student what to do where others have been; its own lead it where it goes itself (GKD,
2306.13649). A round: sample answers to some prompts with the student as it stands, record the teacher on them, train
for a few steps. All that is drawn is drawn from (seed, round, prompt), so a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel
from brise.engine.request import Request, Sampling
from brise.errors import EvidenceError
from brise.models.weights import Array
from brise.tune.example import Row, Teacher
from brise.tune.teacher import taught


@dataclass(frozen=True)
class Prompt:
    """What is answered, as the student and as the teacher read it (with a system prompt that the student lacks)."""

    tokens: Array  # (T,)
    teacher_tokens: Array
    place: str


@dataclass(frozen=True)
class Plan:
    """How much a round is. `temperature` is that of the student's answers."""

    rounds: int = 8
    prompts: int = 64
    steps: int = 8
    max_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """What a round did: tokens that the student wrote, and the loss of its steps."""

    number: int
    answer_tokens: int
    losses: tuple[float, ...]


Sample = Callable[[Sequence[Array], int], Sequence[Array]]  # prompts, seed: an answer to each
Record = Callable[[Sequence[Row]], Sequence[Teacher]]
Train = Callable[[Sequence[Row], int], Sequence[float]]  # rows, steps: the loss of each


def prompts_of(students: Sequence[Row], teachers: Sequence[Row]) -> list[Prompt]:
    """The prompts of the rows' last answers; `teachers` are the teacher's rows beside them (absorb.aligned)."""
    return [Prompt(row.tokens[:_last_answer(row)], other.tokens[:_last_answer(other)], row.place)
            for row, other in zip(students, teachers, strict=True) if row.num_targets]


def run(prompts: Sequence[Prompt], sample: Sample, record: Record, train: Train, plan: Plan) -> Iterator[Round]:
    """Round after round; each is done when it comes out."""
    if not prompts:
        raise EvidenceError("there is no prompt that the student could answer")
    for number in range(plan.rounds):
        order = np.random.default_rng([plan.seed, number]).permutation(len(prompts))[:plan.prompts]
        chosen = [prompts[int(index)] for index in order]
        answers = sample([prompt.tokens for prompt in chosen], _seed(plan.seed, number))
        teachers = record([_row(prompt.teacher_tokens, answer, prompt.place)
                           for prompt, answer in zip(chosen, answers, strict=True)])
        rows = [_row(prompt.tokens, answer, prompt.place) for prompt, answer in zip(chosen, answers, strict=True)]
        losses = train(taught(rows, teachers), plan.steps)
        yield Round(number, sum(map(len, answers)), tuple(losses))


def sampled(model: LoadedModel, prompts: Sequence[Array], seed: int, plan: Plan) -> list[Array]:
    """An answer to each prompt by the engine, with the token that ends it if it came to an end."""
    longest = max(map(len, prompts)) + plan.max_tokens
    engine = Engine(model, EngineSettings(max_context=min(longest, model.config.max_context),
                                          max_waiting=len(prompts)))
    answers: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        sampling = Sampling(temperature=plan.temperature, seed=_seed(seed, index))
        limit = min(plan.max_tokens, engine.max_context - len(prompt))
        answers[engine.submit(Request(tuple(map(int, prompt)), max_tokens=limit, sampling=sampling))] = []
    while engine.has_work:
        for delta in engine.step():
            if delta.error is not None:
                raise EvidenceError(f"the student could not answer: {delta.error}")
            answers[delta.request_id].extend(delta.tokens)
    return [np.array(answer, np.int32) for answer in answers.values()]


def _last_answer(row: Row) -> int:
    """Where the last run of targets begins."""
    begins = row.is_target & ~np.concatenate([[False], row.is_target[:-1]])
    return int(np.flatnonzero(begins)[-1])


def _row(prompt: Array, answer: Array, place: str) -> Row:
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    return Row(tokens, np.arange(len(tokens)) >= len(prompt), place)


def _seed(*numbers: int) -> int:
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")
