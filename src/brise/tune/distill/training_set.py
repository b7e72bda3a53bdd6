"""The training set of a run: rows of the data, with a teacher's predictions if there is one, or rounds on policy.

Needs the extra `tune`. The teacher predicts before the student is read; only on policy are both in memory together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brise.checkpoint.open import Checkpoint
from brise.data.example import EncodedRow, Teacher
from brise.data.prepare import Dataset
from brise.models.weights import Array
from brise.text.load import Tokens
from brise.tune.distill import on_policy, open_teacher
from brise.tune.distill.on_policy import Prompt, Rounds
from brise.tune.distill.open_teacher import OpenedTeacher, OpenTeacher
from brise.tune.distill.student import Student
from brise.tune.options import RoundOptions, TuneOptions
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Plain
from brise.tune.train import ComputeOptions, Trainer
from brise.tune.watch import StepWatcher
from brise.watch import Watcher

ANSWERS, SCRATCH = "answers", ".student"  # of a run


@dataclass(frozen=True)
class RoundPrompts:
    """What rounds are made of, and the folder that keeps their answers."""

    plan: RoundOptions
    seed: int
    student: Student
    teacher: OpenTeacher
    prompts: Sequence[Prompt]
    folder: Path


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on and held-out rows. With `round_prompts`, rounds replace the rows to train on."""

    rows: Sequence[EncodedRow]
    held_out: Sequence[EncodedRow]
    round_prompts: RoundPrompts | None = None


@dataclass(frozen=True)
class TrainingSource:
    """What the training set of a run is made from."""

    checkpoint: Checkpoint
    tokens: Tokens
    teacher: OpenedTeacher | None
    dataset: Dataset
    recipe: Recipe
    compute: ComputeOptions
    folder: Path
    threads: int
    settings: Mapping[str, Plain]


def prepared(options: TuneOptions, source: TrainingSource, watcher: Watcher) -> TrainingSet:
    """The training set, with the predictions of the teacher if there is one."""
    rows, held_out = source.dataset.train, evenly_picked(source.dataset.held_out, options.eval_rows)
    if source.teacher is None:
        return TrainingSet(rows, held_out)
    plan = options.on_policy
    teacher = open_teacher.ready(source.teacher, source.folder, source.threads, source.settings)
    own = open_teacher.own_rows(options.data, source.teacher, rows if plan is None else (*rows, *held_out),
                                options.data_options(source.checkpoint.config.max_context))
    if plan is None:
        return TrainingSet(open_teacher.taught(teacher, rows, own, watcher), held_out)
    prompts = on_policy.prompts_of(rows, own[:len(rows)], plan,
                                   lambda row, teachers: _room(source, teacher, row, teachers))
    student = Student(source.checkpoint, source.tokens, source.recipe, source.folder / SCRATCH, source.threads,
                      plan.temperature)
    return TrainingSet(rows, open_teacher.taught(teacher, held_out, own[len(rows):], watcher) if held_out else (),
                       RoundPrompts(plan, options.seed, student, teacher, prompts, source.folder / ANSWERS))


def evenly_picked(rows: tuple[EncodedRow, ...], count: int) -> tuple[EncodedRow, ...]:
    """At most so many rows, evenly picked."""
    return rows if len(rows) <= count else tuple(rows[index * len(rows) // count] for index in range(count))


def _room(source: TrainingSource, teacher: OpenTeacher, prompt: EncodedRow, teachers: EncodedRow) -> int:
    """The tokens that contexts and microbatches leave for an answer."""
    own = min(source.checkpoint.config.max_context, source.compute.max_tokens) - len(prompt.tokens)
    return min(own, teacher.checkpoint.config.max_context - len(teachers.tokens))


@dataclass
class RoundFeeder:
    """Makes the rounds of a run as it needs them, and gives their rows to the trainer."""

    round_prompts: RoundPrompts
    trainer: Trainer
    watcher: StepWatcher
    clock: Callable[[], float] = time.perf_counter
    number: int | None = None  # of the round whose rows the trainer has

    def ready(self) -> bool:
        """Gets the rows of the trainer's next step; False if the run was stopped before they were there."""
        number = self.trainer.step // self.round_prompts.plan.steps
        if number == self.number:
            return True
        start = self.clock()
        made = self._rounds(number).of(number)
        if made is None:
            return False
        self.trainer.rows, self.number = made.rows, number
        self.watcher.rounded(number, len(made.rows), made.answer_tokens, self.clock() - start)
        return True

    def _rounds(self, number: int) -> Rounds:
        source = self.round_prompts

        def sample(prompts: Sequence[Prompt], seed: int) -> list[Array] | None:
            done = 0

            def ended(count: int) -> None:
                nonlocal done
                done += count
                self.watcher.answering(number, done, len(prompts))

            return source.student.answers(self.trainer.trained, prompts, seed, self.watcher.is_stopped, ended)

        def record(rows: Sequence[EncodedRow]) -> Sequence[Teacher]:
            return source.teacher.predict(rows, lambda count: None)

        tokenizer = source.student.tokens.tokenizer
        return Rounds(source.prompts, sample, record, source.plan, source.seed, source.folder,
                      lambda answer: tokenizer.decode(answer.tolist(), show_control=True))


def settings_of(plan: RoundOptions | None) -> dict[str, Plain]:
    """The settings of the rounds that decide the resulting weights."""
    if plan is None:
        return {}
    return {"on_policy": True, "rounds": plan.rounds, "round_prompts": plan.prompts, "round_steps": plan.steps,
            "round_tokens": plan.max_tokens, "round_temperature": plan.temperature}
