"""What a training run tells whoever watches it, and what it comes to. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from brise.data.report import DataReport
from brise.errors import BriseError
from brise.memory.training_plan import TrainingPlan
from brise.tune.curve import Curve
from brise.tune.parity.parity import ParityReport
from brise.tune.run_folder import Plain
from brise.watch import Silent, Watcher

End = Literal["done", "early", "stopped", "interrupted"]  # stopped: finished with fewer steps than it began with


class FirstFailedError(BriseError):
    """The first of several processes, which does something for all, has failed; it says itself why."""


@dataclass(frozen=True)
class Step:
    """What a step did. `tokens` are those of its rows, `computed` those that the model ran on."""

    number: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    computed: int
    targets: int
    examples: int
    is_skipped: bool = False  # the gradient was not finite


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean loss on the held-out rows after `step` steps, in nats a token."""

    step: int
    loss: float


class SessionWatcher(Protocol):
    """Hears of the steps of a training session."""

    def stepped(self, step: Step, seconds: float) -> None:
        """A step is done, and took so long."""

    def evaluated(self, loss: HeldOutLoss, *, is_best: bool, seconds: float) -> None:
        """The held-out rows have been evaluated."""

    def saved(self, step: int) -> None:
        """A checkpoint is on disk."""


class StepWatcher(SessionWatcher, Protocol):
    """Hears of the steps and rounds of a run, and may stop it."""

    def is_stopped(self) -> bool:
        """Whether the run shall save and end after this step."""

    def answering(self, number: int, done: int, total: int) -> None:
        """In round `number` so many answers of the student have ended."""

    def rounded(self, number: int, answers: int, answer_tokens: int, seconds: float) -> None:
        """A round's answers are there, with what the teacher says of them; its steps begin."""


@dataclass(frozen=True)
class TrainingStart:
    """A run that is about to take its first step, or the step after a checkpoint. `memory` gives the bytes in use."""

    folder: Path
    step: int
    num_steps: int
    eval_every: int
    round_steps: int | None  # on policy
    settings: Mapping[str, Plain]
    memory: Callable[[], int]
    is_first: bool  # of several processes, the one that shows and writes


class TuneWatcher(Watcher, Protocol):
    """Hears of a whole run."""

    def data_read(self, report: DataReport) -> None:
        """The data have been read and checked."""

    def planned(self, plan: TrainingPlan, device: str, dtype: str, rates: Mapping[str, float] | None) -> None:
        """The run's memory is planned. `rates`: multiply-adds a second in 10^9 by type, if the type was measured."""

    def training(self, start: TrainingStart) -> AbstractContextManager[StepWatcher]:
        """Surrounds the steps."""

    def failed(self, error: BriseError) -> None:
        """The run has ended with an error, which is raised, too."""


@dataclass(frozen=True)
class SilentSteps:
    """A StepWatcher that shows nothing. `stop` says whether the run shall end."""

    stop: Callable[[], bool] = lambda: False

    def stepped(self, step: Step, seconds: float) -> None:
        """See SessionWatcher."""

    def evaluated(self, loss: HeldOutLoss, *, is_best: bool, seconds: float) -> None:
        """See SessionWatcher."""

    def saved(self, step: int) -> None:
        """See SessionWatcher."""

    def is_stopped(self) -> bool:
        """See StepWatcher."""
        return self.stop()

    def answering(self, number: int, done: int, total: int) -> None:
        """See StepWatcher."""

    def rounded(self, number: int, answers: int, answer_tokens: int, seconds: float) -> None:
        """See StepWatcher."""


class SilentTuning(Silent):
    """A TuneWatcher that shows nothing."""

    def data_read(self, report: DataReport) -> None:
        """See TuneWatcher."""

    def planned(self, plan: TrainingPlan, device: str, dtype: str, rates: Mapping[str, float] | None) -> None:
        """See TuneWatcher."""

    @contextmanager
    def training(self, start: TrainingStart) -> Iterator[StepWatcher]:
        """See TuneWatcher."""
        yield SilentSteps()

    def failed(self, error: BriseError) -> None:
        """See TuneWatcher."""


@dataclass(frozen=True)
class TuneResult:
    """What a run came to. `end` is "planned" after a dry run, "early" if evaluation got no better, and "stopped" if it
    was finished with fewer steps than it began with.

    `adapter` is the folder of the adapter, or `model` the file or folder of a model that was trained whole; both are
    None for a run that was planned or interrupted, or that `is_worse`: no evaluation was better than the one `before`
    the first step. `parity` compares what is served with what was trained.
    """

    folder: Path
    end: End | Literal["planned"]
    data: DataReport
    plan: TrainingPlan
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    before: HeldOutLoss | None = None
    best: HeldOutLoss | None = None
    is_worse: bool = False
    adapter: Path | None = None
    model: Path | None = None
    curve: Curve | None = None
    curve_png: Path | None = None
    parity: ParityReport | None = None
    is_first: bool = True  # of several processes, the one that has written

    @property
    def passed(self) -> bool:
        """Whether what is served is what was trained, as far as it was compared."""
        return self.parity is None or self.parity.passed

    @property
    def metrics(self) -> dict[str, int | float]:
        """Steps, tokens and seconds of training, and the best held-out loss with its step if rows were held out."""
        metrics: dict[str, int | float] = {"steps": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
        return metrics if self.best is None else metrics | {"held_out_loss": self.best.loss,
                                                            "best_step": self.best.step}
