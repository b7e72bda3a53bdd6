"""`brise tune --on-policy`: its options, and the rounds in which the student answers and the teacher corrects.

Needs the extra `tune` once a run begins.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from brise.cli import chat_options
from brise.data.example import EncodedRow, Teacher
from brise.errors import UnsupportedError
from brise.models.weights import Array
from brise.tune.distill import on_policy
from brise.tune.distill.on_policy import Prompt, Round, RoundPlan, Rounds

if TYPE_CHECKING:
    from brise.cli.tune_teacher import OpenTeacher
    from brise.tune.distill.student import Student
    from brise.tune.run_folder import Plain
    from brise.tune.train import Trainer

FOLDER, SCRATCH = "answers", ".student"  # of a run
EVALUATIONS = 5  # of a run, where nothing else is asked for
_USUAL = RoundPlan()
_OPTIONS: Mapping[str, str] = {"rounds": "rounds", "prompts": "round-prompts", "steps": "round-steps",
                               "max_tokens": "round-tokens", "temperature": "round-temperature"}


class RoundWatcher(Protocol):
    """Who hears of a round."""

    def answering(self, number: int, done: int, total: int) -> None: ...
    def rounded(self, found: Round, seconds: float) -> None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--on-policy and what belongs to it."""
    parser.add_argument("--on-policy", action="store_true",
                        help="with --teacher: the student answers the prompts of DATA, and learns what the teacher "
                             "would have said at each of its tokens; the answers in DATA serve evaluation")
    parser.add_argument("--rounds", metavar="N", type=chat_options.count,
                        help=f"how often the student answers, with --on-policy (default: {_USUAL.rounds})")
    parser.add_argument("--round-prompts", metavar="N", type=chat_options.count,
                        help=f"prompts that it answers in a round (default: {_USUAL.prompts})")
    parser.add_argument("--round-steps", metavar="N", type=chat_options.count,
                        help=f"steps of training on a round's answers (default: {_USUAL.steps})")
    parser.add_argument("--round-tokens", metavar="N", type=chat_options.count,
                        help=f"longest answer (default: {_USUAL.max_tokens})")
    parser.add_argument("--round-temperature", metavar="T", type=float,
                        help=f"at which it answers; 0: the likeliest token each time (default: {_USUAL.temperature:g})")


def plan_of(args: argparse.Namespace) -> RoundPlan | None:
    """How much a round is; None without --on-policy."""
    asked = {"rounds": args.rounds, "prompts": args.round_prompts, "steps": args.round_steps,
             "max_tokens": args.round_tokens, "temperature": args.round_temperature}
    given = {name: value for name, value in asked.items() if value is not None}
    if not args.on_policy:
        for name in given:
            raise UnsupportedError(f"--{_OPTIONS[name]} needs --on-policy")
        return None
    if args.teacher is None:
        raise UnsupportedError("--on-policy needs --teacher MODEL")
    for name, value in (("--steps", args.steps), ("--epochs", args.epochs)):
        if value is not None:
            raise UnsupportedError(f"{name} and --on-policy do not go together",
                                   hint="a run is --rounds times --round-steps")
    if args.teacher_weight != 1:
        raise UnsupportedError(f"--teacher-weight is {args.teacher_weight:g}, with --on-policy allowed is 1",
                               hint="the rest would teach the student its own answers")
    if args.learn != "assistant":
        raise UnsupportedError(f"--learn is {args.learn}, with --on-policy allowed is assistant")
    return replace(_USUAL, seed=args.seed, **given)


def settings_of(plan: RoundPlan | None) -> dict[str, Plain]:
    """What of the rounds decides about the weights that come out."""
    if plan is None:
        return {}
    return {"on_policy": True, "rounds": plan.rounds, "round_prompts": plan.prompts, "round_steps": plan.steps,
            "round_tokens": plan.max_tokens, "round_temperature": plan.temperature}


def longest(rows: Sequence[EncodedRow], plan: RoundPlan, max_context: int) -> int:
    """Tokens of the longest row that a round may make."""
    return max((min(len(on_policy.before_last_answer(row).tokens) + plan.max_tokens, max_context) for row in rows),
               default=0)


@dataclass(frozen=True)
class RoundPrompts:
    """What rounds are made of, and the folder that keeps their answers."""

    plan: RoundPlan
    student: Student
    teacher: OpenTeacher
    prompts: Sequence[Prompt]
    folder: Path


@dataclass
class RoundFeeder:
    """Makes rounds while a run goes on, and puts their rows before the trainer."""

    material: RoundPrompts
    trainer: Trainer
    is_stopped: Callable[[], bool]
    show: RoundWatcher
    number: int | None = None  # of the round whose rows the trainer has

    def ready(self) -> bool:
        """Gets the rows of the trainer's next step; False if it was stopped before they were there."""
        number = self.trainer.step // self.material.plan.steps
        if number == self.number:
            return True
        start = time.perf_counter()
        found = self._rounds(number).of(number)
        if found is None:
            return False
        self.trainer.rows, self.number = found.rows, number
        self.show.rounded(found, time.perf_counter() - start)
        return True

    def _rounds(self, number: int) -> Rounds:
        material = self.material

        def sample(prompts: Sequence[Prompt], seed: int) -> list[Array] | None:
            done = 0

            def ended(count: int) -> None:
                nonlocal done
                done += count
                self.show.answering(number, done, len(prompts))

            return material.student.answers(self.trainer.trained, prompts, seed, self.is_stopped, ended)

        def record(rows: Sequence[EncodedRow]) -> Sequence[Teacher]:
            return material.teacher.says(rows, lambda count: None)

        tokenizer = material.student.tokens.tokenizer
        return Rounds(material.prompts, sample, record, material.plan, material.folder,
                      lambda answer: tokenizer.decode(answer.tolist(), show_control=True))
