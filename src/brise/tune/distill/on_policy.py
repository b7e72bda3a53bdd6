"""On-policy distillation: the student answers, and learns what the teacher would have said at each of its tokens.

Answers of others train a student on states that others reach; its own answers train it on the states that it reaches
itself (GKD, 2306.13649). In a round the current student answers some of the prompts, the teacher's predictions on these
answers are recorded, and the student trains on them for a few steps. Every random draw depends on (seed, round, index
of the prompt), so that the same weights give the same rounds.

The answers of a round are written before its first step, in a folder of the run:

    round-00000003.jsonl        one line for each answer: {"place", "tokens", "text"}

A run that resumes inside the round trains on them again; the teacher's recorded predictions are found by their digest
(teacher.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from brise.data.example import EncodedRow, Teacher
from brise.errors import CheckpointError, EvidenceError, UnsupportedError
from brise.files.atomic import output_errors, staged_file
from brise.files.fields import Fields, errors_of
from brise.files.json_file import parse_json
from brise.models.weights import Array
from brise.tune.distill.teacher import taught
from brise.tune.options import RoundOptions

_MAX_ANSWERS = 1 << 30  # bytes of a round's file


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer, as the student and as the teacher reads it (with a system prompt that the student lacks)."""

    tokens: Array  # (T,)
    teacher_tokens: Array
    place: str
    room: int  # most tokens of an answer


@dataclass(frozen=True)
class Round:
    """The answers of a round as rows, with the teacher's predictions."""

    number: int
    rows: tuple[EncodedRow, ...]

    @property
    def answer_tokens(self) -> int:
        """The number of tokens that the student wrote."""
        return sum(row.num_targets for row in self.rows)


Sample = Callable[[Sequence[Prompt], int], Sequence[Array] | None]  # prompts, seed: an answer to each; None: stopped
Record = Callable[[Sequence[EncodedRow]], Sequence[Teacher]]
Rooms = Callable[[EncodedRow, EncodedRow], int]  # the most tokens that an answer to these two prompts may have


@dataclass(frozen=True)
class Rounds:
    """Makes the rounds of a run, or reads their answers from `folder`."""

    prompts: Sequence[Prompt]
    sample: Sample
    record: Record
    plan: RoundOptions
    seed: int
    folder: Path
    text_of: Callable[[Array], str]

    def of(self, number: int) -> Round | None:
        """Round `number`; the current student answers, unless its answers are in the folder. None: it was stopped."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.prompts))[:self.plan.prompts]
        chosen = [self.prompts[int(index)] for index in order]
        answers: Sequence[Array] | None = self._read(number, chosen)
        if answers is None:
            answers = self.sample(chosen, _seed(self.seed, number))
            if answers is None:
                return None
            self._write(number, chosen, answers)
        pairs = list(zip(chosen, answers, strict=True))
        said = self.record([_row(prompt.teacher_tokens, answer, prompt.place) for prompt, answer in pairs])
        return Round(number, tuple(taught([_row(prompt.tokens, answer, prompt.place) for prompt, answer in pairs],
                                          said)))

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:08}.jsonl"

    def _write(self, number: int, chosen: Sequence[Prompt], answers: Sequence[Array]) -> None:
        """Writes the whole file or none."""
        with output_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        lines = [json.dumps({"place": prompt.place, "tokens": answer.tolist(), "text": self.text_of(answer)}) + "\n"
                 for prompt, answer in zip(chosen, answers, strict=True)]
        text = "".join(lines).encode()
        with staged_file(self._path(number), len(text), mode=0o600) as file:
            file.write(text)

    def _read(self, number: int, chosen: Sequence[Prompt]) -> list[Array] | None:
        """None if there is no such file."""
        path = self._path(number)
        if not path.exists():
            return None
        with errors_of(path.name), path.open("rb") as file:
            lines = file.read(_MAX_ANSWERS).splitlines()
            if len(lines) != len(chosen):
                raise CheckpointError(f"it has {len(lines)} answers, the round {len(chosen)} prompts", field="lines",
                                      hint=f"remove {path}, and the student answers again")
            return [_answer(Fields(parse_json(line, path.name), ""), prompt, path)
                    for line, prompt in zip(lines, chosen, strict=True)]


def prompts_of(students: Sequence[EncodedRow], teachers: Sequence[EncodedRow], plan: RoundOptions,
               room: Rooms) -> list[Prompt]:
    """The prompts of the rows' last answers; `teachers` are the teacher's rows for them (open_teacher.aligned)."""
    prompts = []
    for row, other in zip(students, teachers, strict=True):
        own, theirs = before_last_answer(row), before_last_answer(other)
        prompt = Prompt(own.tokens, theirs.tokens, row.place, min(plan.max_tokens, room(own, theirs)))
        if prompt.room < 1:
            raise UnsupportedError(f"the prompt of {row.place} has {len(own.tokens)} tokens for the student and "
                                   f"{len(theirs.tokens)} for the teacher, which leaves no room for an answer",
                                   hint="leave out long rows: --max-length")
        prompts.append(prompt)
    if not prompts:
        raise EvidenceError("there is no prompt that the student could answer")
    return prompts


def longest_row(rows: Sequence[EncodedRow], plan: RoundOptions, max_context: int) -> int:
    """Tokens of the longest row that a round may make."""
    return max((min(len(before_last_answer(row).tokens) + plan.max_tokens, max_context) for row in rows), default=0)


def before_last_answer(row: EncodedRow) -> EncodedRow:
    """The row up to its last run of targets, with nothing to learn."""
    begins = row.is_target & ~np.concatenate([[False], row.is_target[:-1]])
    last = int(np.flatnonzero(begins)[-1])
    return EncodedRow(row.tokens[:last], np.zeros(last, bool), row.place)


def _answer(fields: Fields, prompt: Prompt, path: Path) -> Array:
    tokens = fields.value("tokens")
    if fields.text("place") != prompt.place or not isinstance(tokens, list) or not tokens or not all(
            type(token) is int and 0 <= token < 1 << 31 for token in tokens):
        raise CheckpointError(f"a line is no answer to {prompt.place}", field="tokens",
                              hint=f"remove {path}, and the student answers again")
    return np.array(tokens, np.int32)


def _row(prompt: Array, answer: Array, place: str) -> EncodedRow:
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    return EncodedRow(tokens, np.arange(len(tokens)) >= len(prompt), place)


def _seed(*numbers: int) -> int:
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")
