"""What a run of `brise tune` trains on and evaluates on: rows of the data, with what a teacher says of them.

Needs the extra `tune`. A teacher is asked before the student is read: both are never in memory together but where the
student answers itself (tune_rounds.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brise.checkpoint.open import Checkpoint
from brise.cli import tune_options, tune_rounds, tune_teacher
from brise.cli.tune_rounds import RoundPrompts
from brise.cli.tune_teacher import Opened, OpenTeacher
from brise.data.example import EncodedRow
from brise.data.prepare import Dataset
from brise.text.load import Tokens
from brise.tune.distill import on_policy
from brise.tune.distill.on_policy import RoundPlan
from brise.tune.distill.student import Student
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Plain
from brise.tune.train import ComputeOptions


@dataclass(frozen=True)
class TrainingSet:
    """With `material`, the rows are only prompts: what is trained on is made of them in rounds."""

    rows: Sequence[EncodedRow]
    held_out: Sequence[EncodedRow]
    material: RoundPrompts | None = None


@dataclass(frozen=True)
class Run:
    """What of a run decides about its lesson."""

    checkpoint: Checkpoint
    tokens: Tokens
    teacher: Opened | None
    dataset: Dataset
    recipe: Recipe
    machinery: ComputeOptions
    folder: Path
    threads: int
    settings: Mapping[str, Plain]


def prepared(args: argparse.Namespace, run: Run) -> TrainingSet:
    """The rows, after the teacher was asked where there is one."""
    rows, held_out = run.dataset.train, spread(run.dataset.held_out, args.eval_rows)
    if run.teacher is None:
        return TrainingSet(rows, held_out)
    options = tune_options.data_options_of(args, run.checkpoint.config.max_context)
    plan = tune_rounds.plan_of(args)
    asked = tune_teacher.ready(args, run.teacher, run.folder, run.threads, run.settings)
    own = tune_teacher.own_rows(args, run.teacher, rows if plan is None else (*rows, *held_out), options)
    if plan is None:
        return TrainingSet(tune_teacher.taught(asked, rows, own), held_out)
    prompts = on_policy.prompts_of(rows, own[:len(rows)], plan, lambda one, other: _room(run, asked, one, other))
    return TrainingSet(rows, tune_teacher.taught(asked, held_out, own[len(rows):]) if held_out else (),
                       RoundPrompts(plan, _student(run, plan), asked, prompts, run.folder / tune_rounds.FOLDER))


def spread(rows: tuple[EncodedRow, ...], count: int) -> tuple[EncodedRow, ...]:
    """At most so many rows, evenly picked."""
    return rows if len(rows) <= count else tuple(rows[index * len(rows) // count] for index in range(count))


def _student(run: Run, plan: RoundPlan) -> Student:
    return Student(run.checkpoint, run.tokens, run.recipe, run.folder / tune_rounds.SCRATCH, run.threads,
                   plan.temperature)


def _room(run: Run, asked: OpenTeacher, prompt: EncodedRow, teachers: EncodedRow) -> int:
    """What contexts and microbatches leave for an answer."""
    own = min(run.checkpoint.config.max_context, run.machinery.max_tokens) - len(prompt.tokens)
    return min(own, asked.checkpoint.config.max_context - len(teachers.tokens))
