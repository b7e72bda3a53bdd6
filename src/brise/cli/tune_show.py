"""What a training run shows while it goes on: a bar on a terminal, lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import rich.console
import rich.progress

from brise.cli import terminal
from brise.tune.distill.on_policy import Round
from brise.tune.session import Evaluation, Watcher
from brise.tune.train import Step

ESTIMATE_AFTER = 3  # steps: the first are slower
LINE_S = 15.0  # between lines where there is no terminal
_RECENT = 0.9  # what the mean time of a step keeps of the steps before


class TrainingEvents(Watcher, Protocol):
    """A watcher that also hears of everything else, as an event with values."""

    def event(self, name: str, **values: object) -> None:
        """Something happened that machines may want to know."""

    def answering(self, number: int, done: int, total: int) -> None:
        """In round `number` so many answers of the student have ended."""

    def rounded(self, found: Round, seconds: float) -> None:
        """The round begins: student and teacher have spoken."""


@dataclass
class Clock:
    """How long is left: evaluations and rounds are still to come over `num_steps`."""

    num_steps: int
    eval_every: int
    round_steps: int | None = None  # on policy
    round_s: float = 0.0
    step_s: float = 0.0
    eval_s: float = 0.0
    tokens_s: float = 0.0
    num_seen: int = 0

    def stepped(self, step: Step, seconds: float) -> None:
        """Takes the time of a step."""
        keep = _RECENT if self.num_seen >= ESTIMATE_AFTER else 0.0 if not self.num_seen else 0.5
        self.step_s = keep * self.step_s + (1 - keep) * seconds
        self.tokens_s = keep * self.tokens_s + (1 - keep) * step.tokens / max(seconds, 1e-9)
        self.num_seen += 1

    def left_s(self, step: int) -> float | None:
        """Seconds to the end after `step` steps; None before there is an estimate."""
        if self.num_seen < ESTIMATE_AFTER:
            return None
        evaluations = -(-self.num_steps // self.eval_every) - step // self.eval_every
        rounds = 0 if self.round_steps is None else -(-self.num_steps // self.round_steps) + -step // self.round_steps
        return self.step_s * (self.num_steps - step) + self.eval_s * evaluations + self.round_s * rounds


class Silent:
    """Shows nothing."""

    def stepped(self, step: Step, seconds: float) -> None:
        """See Watcher."""

    def evaluated(self, found: Evaluation, *, is_best: bool, seconds: float) -> None:
        """See Watcher."""

    def saved(self, step: int) -> None:
        """See Watcher."""

    def event(self, name: str, **values: object) -> None:
        """See Show."""

    def answering(self, number: int, done: int, total: int) -> None:
        """See Show."""

    def rounded(self, found: Round, seconds: float) -> None:
        """See Show."""


class Lines:
    """JSON on stdout, one object a line."""

    def __init__(self, clock: Clock, memory: Callable[[], int]) -> None:
        self._clock, self._memory = clock, memory

    def stepped(self, step: Step, seconds: float) -> None:
        """See Watcher."""
        self._clock.stepped(step, seconds)
        left = self._clock.left_s(step.number)
        self.event("step", step=step.number, steps=self._clock.num_steps, loss=_number(step.loss),
                   rate=step.learning_rate, norm=_number(step.gradient_norm), skipped=step.is_skipped,
                   tokens=step.tokens, tokens_per_s=round(step.tokens / max(seconds, 1e-9), 1),
                   seconds=round(seconds, 3), memory=self._memory(), left_s=None if left is None else round(left, 1))

    def evaluated(self, found: Evaluation, *, is_best: bool, seconds: float) -> None:
        """See Watcher."""
        self._clock.eval_s = seconds
        self.event("eval", step=found.step, loss=_number(found.loss), best=is_best, seconds=round(seconds, 3))

    def saved(self, step: int) -> None:
        """See Watcher."""
        self.event("checkpoint", step=step)

    def event(self, name: str, **values: object) -> None:
        """See Show."""
        print_event(name, **values)

    def answering(self, number: int, done: int, total: int) -> None:
        """Machines hear of whole rounds."""

    def rounded(self, found: Round, seconds: float) -> None:
        """See Show."""
        self._clock.round_s = seconds
        self.event("round", round=found.number + 1, answers=len(found.rows), answer_tokens=found.answer_tokens,
                   seconds=round(seconds, 3))


class TrainingBar:
    """A bar on stderr where that is a terminal; else a line now and then."""

    def __init__(self, clock: Clock, memory: Callable[[], int], first: int) -> None:
        self._clock, self._memory = clock, memory
        self._loss: float | None = None
        self._held_out, self._said = "", -LINE_S
        console = rich.console.Console(stderr=True)
        self._is_terminal = console.is_terminal
        self.progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(), rich.progress.TextColumn("{task.fields[figures]}"), console=console,
            disable=not console.is_terminal)
        self._task = self.progress.add_task("training", total=clock.num_steps, completed=first, figures="")

    def stepped(self, step: Step, seconds: float) -> None:
        """See Watcher."""
        self._clock.stepped(step, seconds)
        self._loss = step.loss if self._loss is None else 0.8 * self._loss + 0.2 * step.loss
        left = self._clock.left_s(step.number)
        figures = (f"loss {self._loss:.3f}{self._held_out}  {self._clock.tokens_s:.0f} tokens/s  "
                   f"{terminal.size(self._memory())}{'' if left is None else f'  {duration(left)} left'}")
        self.progress.update(self._task, completed=step.number, figures=figures)
        if step.is_skipped:
            self._note(f"step {step.number} is skipped: its gradient is not finite")
        is_due = time.monotonic() - self._said >= LINE_S or step.number == self._clock.num_steps
        if not self._is_terminal and is_due:
            self._said = time.monotonic()
            self._note(f"step {step.number}/{self._clock.num_steps}  {figures}")
        if self._clock.num_seen == ESTIMATE_AFTER and left is not None:
            self._note(f"about {duration(left)} for the {self._clock.num_steps - step.number} steps that are left")

    def evaluated(self, found: Evaluation, *, is_best: bool, seconds: float) -> None:
        """See Watcher."""
        self._clock.eval_s = seconds
        self._held_out = f", held out {found.loss:.3f}"
        self._note(f"step {found.step}: held-out loss {found.loss:.4f}{' (the best so far)' if is_best else ''}")

    def saved(self, step: int) -> None:
        """A checkpoint is nothing to read about."""

    def event(self, name: str, **values: object) -> None:
        """People have been told in words."""

    def answering(self, number: int, done: int, total: int) -> None:
        """See Show."""
        self.progress.update(self._task, figures=f"round {number + 1}: {done} of {total} answers")

    def rounded(self, found: Round, seconds: float) -> None:
        """See Show."""
        self._clock.round_s = seconds
        self._note(f"round {found.number + 1}: {len(found.rows)} answers of {found.answer_tokens} tokens in "
                   f"{duration(seconds)}")

    def _note(self, text: str) -> None:
        if self._is_terminal:
            self.progress.console.print(text, highlight=False, markup=False)
        else:
            terminal.note(text)


@contextmanager
def shown(clock: Clock, memory: Callable[[], int], first: int, *, as_json: bool,
          is_first: bool = True) -> Iterator[TrainingEvents]:
    """Whoever shows the steps after `first`; of several processes only the first shows any."""
    if not is_first:
        yield Silent()
        return
    if as_json:
        yield Lines(clock, memory)
        return
    bar = TrainingBar(clock, memory, first)
    with bar.progress:
        yield bar


def print_event(name: str, **values: object) -> None:
    """A JSON line on stdout."""
    terminal.stream(json.dumps({"event": name, **values}, allow_nan=False) + "\n")


def duration(seconds: float) -> str:
    """90 as '1 min 30 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _number(value: float) -> float | None:
    """JSON has neither infinity nor NaN."""
    return value if abs(value) < float("inf") else None
