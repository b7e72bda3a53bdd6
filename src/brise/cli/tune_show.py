"""The output of `brise tune`: a bar on a terminal, lines elsewhere, JSON lines for machines; then the result."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import rich.console
import rich.progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.cli import parity, terminal
from brise.cli.progress_bar import TerminalWatcher
from brise.data.ngrams import FILE as NGRAMS_FILE
from brise.data.report import DataReport
from brise.errors import BriseError
from brise.memory.training_plan import TrainingPlan
from brise.tune.options import TuneOptions
from brise.tune.watch import HeldOutLoss, SilentSteps, Step, StepWatcher, TrainingStart, TuneResult

ESTIMATE_AFTER = 3  # steps: the first are slower
LINE_S = 15.0  # between lines where there is no terminal
_RECENT = 0.9  # weight of earlier steps in the mean time of a step


class TuneTerminal(TerminalWatcher):
    """Shows a run on the terminal; see brise.tune.watch.TuneWatcher."""

    def __init__(self, *, as_json: bool, is_dry: bool) -> None:
        self._as_json, self._is_dry = as_json, is_dry

    def data_read(self, report: DataReport) -> None:
        """Shows the report, which is the result of a dry run."""
        if self._as_json:
            print_event("data", **report.to_json())
            return
        for line in report.lines():
            (terminal.result if self._is_dry else terminal.note)(line)

    def planned(self, plan: TrainingPlan, device: str, dtype: str, rates: Mapping[str, float] | None) -> None:
        """Shows the plan as a table."""
        choice = plan.choice
        if self._as_json:
            print_event(
                "plan", total=plan.total_bytes, memory=plan.limit, dtype=dtype, num_tokens=choice.num_tokens,
                checkpointing=choice.checkpointing, keep=choice.base_storage, bits=choice.bits, rank=choice.rank,
                rates=None if rates is None else dict(rates),
                parts=_parts(plan.rows()), **({"offload": list(choice.offload), "host": plan.host_bytes,
                                               "host_parts": _parts(plan.host_rows)} if plan.is_gpu else {}))
            return
        console = Console(stderr=not self._is_dry, highlight=False)
        fits = "" if plan.limit is None else f" of {terminal.size(plan.limit)}, fits"
        console.print(Text(f"{terminal.harmless(plan.model)}: {terminal.size(plan.total_bytes)}{fits}", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for column in ("part", "size", "note"):
            table.add_column(column, justify="right" if column == "size" else "left", no_wrap=column != "note")
        for name, note, nbytes in plan.rows():
            table.add_row(f"  {name}", terminal.size(nbytes), note)
        console.print(table)
        if plan.is_gpu:
            parts = ", ".join(f"{name} {terminal.size(nbytes)}" for name, _, nbytes in plan.host_rows)
            console.print(Text(f"on the host: {terminal.size(plan.host_bytes)}: {parts}"), soft_wrap=True)
        measured = "" if rates is None else " (measured: " + ", ".join(
            f"{name} {2 * rate:.0f} GFLOP/s" for name, rate in rates.items()) + ")"
        console.print(Text(f"computes in {dtype}{measured}, on {device}"), soft_wrap=True)

    @contextmanager
    def training(self, start: TrainingStart) -> Iterator[StepWatcher]:
        """Shows the steps, and lets Ctrl-C end the run after a step; of several processes only the first shows any."""
        with _stop_on_interrupt(says=start.is_first) as stop:
            clock = Clock(start.num_steps, start.eval_every, start.round_steps)
            if not start.is_first:
                yield SilentSteps(lambda: stop.is_asked)
            elif self._as_json:
                print_event("start", folder=str(start.folder), steps=start.num_steps, step=start.step,
                            settings=dict(start.settings))
                yield StepLines(clock, start.memory, stop)
            else:
                bar = TrainingBar(clock, start.memory, stop, start.step)
                with bar.progress:
                    yield bar

    def failed(self, error: BriseError) -> None:
        """Prints the error for machines; people see it when the command ends."""
        if self._as_json:
            print_event("error", message=error.args[0], hint=error.hint)

    def show(self, options: TuneOptions, result: TuneResult) -> None:
        """Shows the result of the run, and how to use it."""
        if result.end == "planned":
            return
        if result.end == "interrupted":
            if self._as_json:
                print_event("interrupted", step=result.step)
            folder = shlex.quote(str(result.folder))
            terminal.note(f"stopped after step {result.step}, which is saved in {result.folder}: go on from there, or "
                          f"make an adapter of its best step so far\nnext: brise tune {folder} --resume\n"
                          f"next: brise tune {folder} --finish")
        elif self._as_json:
            _print_done(result)
        else:
            assert result.curve is not None
            for line in result.curve.lines():
                terminal.note(line)
            if result.parity is not None:
                parity.show(result.parity)
            terminal.result(_words(options, result))


def _parts(rows: Iterable[tuple[str, str, int]]) -> list[Mapping[str, object]]:
    return [{"name": name, "note": note, "bytes": nbytes} for name, note, nbytes in rows]


def _print_done(result: TuneResult) -> None:
    best = None if result.best is None else {"step": result.best.step, "loss": _number(result.best.loss)}
    before = None if result.before is None else {"step": 0, "loss": _number(result.before.loss)}
    made = ({"adapter": None, "worse": True} if result.is_worse else
            {"model": str(result.model)} if result.adapter is None else {"adapter": str(result.adapter)})
    print_event("done", end=result.end, step=result.step, **made, curve=str(result.curve_png), best=best, before=before,
                seconds=round(result.seconds, 3), tokens=result.tokens,
                parity=None if result.parity is None else result.parity.as_json())


def _words(options: TuneOptions, result: TuneResult) -> str:
    why = {"early": " early, as evaluation got no better", "stopped": " before all its steps, as asked"}.get(
        result.end, "")
    lines = [f"ended{why} after {result.step} steps, {result.tokens} tokens in {duration(result.seconds)}"]
    if result.is_worse:
        return "\n".join([*lines, _worse(result), f"curve:   {result.curve_png}"])
    if result.best is not None:
        before = "" if result.before is None else f" (before step 1 it was {result.before.loss:.4f})"
        lines.append(f"held-out loss {result.best.loss:.4f}{before}, after step {result.best.step}: these weights are "
                     "kept")
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in result.folder.resolve().name)
    if result.adapter is not None:
        lines.append(f"adapter: {result.adapter}")
        serves = f"{shlex.quote(options.model)} --adapter {shlex.quote(f'{name}={result.adapter}')}"
    else:
        lines.append(f"model:   {result.model}")
        table = result.folder / NGRAMS_FILE
        drafts = f" --ngrams {shlex.quote(str(table))}" if table.exists() else ""
        serves = f"{shlex.quote(str(result.model))}{drafts}"
    return "\n".join([*lines, f"curve:   {result.curve_png}", f"serve:   brise serve {serves}"])


def _worse(result: TuneResult) -> str:
    assert result.best is not None
    before = "no number" if result.before is None else f"{result.before.loss:.4f}"
    return (f"no step made the model better: its held-out loss was {before} before step 1, and {result.best.loss:.4f} "
            f"at its best, after step {result.best.step}; no adapter is kept\n"
            "hint: a lower --lr, the usual --clip, other or more data; in another folder (--out)")


@dataclass
class Clock:
    """Estimates the remaining time of `num_steps` steps with their evaluations and rounds."""

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


@dataclass
class _Stop:
    """Whether Ctrl-C was pressed."""

    says: bool
    is_asked: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        if self.says:
            terminal.note("\nstopping after this step; Ctrl-C again leaves at once, and loses what came after the last "
                          "checkpoint")


@contextmanager
def _stop_on_interrupt(*, says: bool) -> Iterator[_Stop]:
    stop = _Stop(says)
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class StepLines:
    """JSON on stdout, one object a line."""

    def __init__(self, clock: Clock, memory: Callable[[], int], stop: _Stop) -> None:
        self._clock, self._memory, self._stop = clock, memory, stop

    def stepped(self, step: Step, seconds: float) -> None:
        """See SessionWatcher."""
        self._clock.stepped(step, seconds)
        left = self._clock.left_s(step.number)
        print_event("step", step=step.number, steps=self._clock.num_steps, loss=_number(step.loss),
                    rate=step.learning_rate, norm=_number(step.gradient_norm), skipped=step.is_skipped,
                    tokens=step.tokens, tokens_per_s=round(step.tokens / max(seconds, 1e-9), 1),
                    seconds=round(seconds, 3), memory=self._memory(), left_s=None if left is None else round(left, 1))

    def evaluated(self, loss: HeldOutLoss, *, is_best: bool, seconds: float) -> None:
        """See SessionWatcher."""
        self._clock.eval_s = seconds
        print_event("eval", step=loss.step, loss=_number(loss.loss), best=is_best, seconds=round(seconds, 3))

    def saved(self, step: int) -> None:
        """See SessionWatcher."""
        print_event("checkpoint", step=step)

    def is_stopped(self) -> bool:
        """See StepWatcher."""
        return self._stop.is_asked

    def answering(self, number: int, done: int, total: int) -> None:
        """Does nothing: machines get whole rounds."""

    def rounded(self, number: int, answers: int, answer_tokens: int, seconds: float) -> None:
        """See StepWatcher."""
        self._clock.round_s = seconds
        print_event("round", round=number + 1, answers=answers, answer_tokens=answer_tokens, seconds=round(seconds, 3))


class TrainingBar:
    """A bar on stderr where that is a terminal; else a line now and then."""

    def __init__(self, clock: Clock, memory: Callable[[], int], stop: _Stop, first: int) -> None:
        self._clock, self._memory, self._stop = clock, memory, stop
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
        """See SessionWatcher."""
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

    def evaluated(self, loss: HeldOutLoss, *, is_best: bool, seconds: float) -> None:
        """See SessionWatcher."""
        self._clock.eval_s = seconds
        self._held_out = f", held out {loss.loss:.3f}"
        self._note(f"step {loss.step}: held-out loss {loss.loss:.4f}{' (the best so far)' if is_best else ''}")

    def saved(self, step: int) -> None:
        """Shows nothing."""

    def is_stopped(self) -> bool:
        """See StepWatcher."""
        return self._stop.is_asked

    def answering(self, number: int, done: int, total: int) -> None:
        """See StepWatcher."""
        self.progress.update(self._task, figures=f"round {number + 1}: {done} of {total} answers")

    def rounded(self, number: int, answers: int, answer_tokens: int, seconds: float) -> None:
        """See StepWatcher."""
        self._clock.round_s = seconds
        self._note(f"round {number + 1}: {answers} answers of {answer_tokens} tokens in {duration(seconds)}")

    def _note(self, text: str) -> None:
        if self._is_terminal:
            self.progress.console.print(text, highlight=False, markup=False)
        else:
            terminal.note(text)


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
    """None for infinity and NaN, which JSON does not have."""
    return value if abs(value) < float("inf") else None
