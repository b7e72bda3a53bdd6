"""A training session: steps, evaluations and checkpoints; it can stop anywhere and resume to the same result.

Needs the extra `tune`. A checkpoint holds everything that decides the next step: the trained tensors, the optimizer
state, the step number, and the results of evaluation. It does not hold time, which decides nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from brise.errors import CheckpointError, EvidenceError
from brise.models.weights import Array
from brise.tune.run_folder import Plain, TrainingCheckpoint
from brise.tune.train import Trainer
from brise.tune.watch import End, HeldOutLoss, SessionWatcher

MAX_SKIPPED = 10  # consecutive steps without finite gradients: the run is lost, not unlucky
_TRAINED, _MOMENTS = "trained.", "moments."

class Folder(Protocol):
    """What a session needs of run_folder.RunFolder; of several ranks only one has that (tune/fsdp.py)."""

    def newest(self) -> TrainingCheckpoint | None: ...
    def read(self, step: int) -> TrainingCheckpoint: ...
    def save(self, checkpoint: TrainingCheckpoint, best_step: int | None = None) -> None: ...
    def begin_log(self, step: int) -> None: ...
    def log(self, line: Mapping[str, Plain]) -> None: ...


@dataclass
class TrainingSession:
    """A trainer and its folder. `is_stopped` is asked after each step; `check` may raise (over the memory limit)."""

    trainer: Trainer
    folder: Folder
    watcher: SessionWatcher
    save_every: int
    is_stopped: Callable[[], bool] = lambda: False
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    ready: Callable[[], bool] = lambda: True  # called before each step; False: stopped while making its rows
    before: HeldOutLoss | None = None  # the first step
    best: HeldOutLoss | None = None  # after a step
    num_worse: int = 0
    seconds: float = 0.0
    tokens: int = 0
    evaluated_step: int = -1  # the last that was evaluated

    @property
    def is_worse(self) -> bool:
        """Whether no evaluation was better than the one before the first step."""
        if self.before is None or self.best is None or not math.isfinite(self.before.loss):
            return self.best is not None and not math.isfinite(self.best.loss)
        return not self.best.loss < self.before.loss

    @property
    def eval_every(self) -> int:
        """Steps between evaluations; an epoch by default."""
        return self.trainer.recipe.eval_every or self.trainer.steps_an_epoch

    @property
    def is_early(self) -> bool:
        """Whether evaluation has not improved for as many evaluations as the recipe's patience."""
        return 0 < self.trainer.recipe.patience <= self.num_worse

    def restore(self) -> bool:
        """Restores the newest checkpoint of the folder; False if there is none."""
        newest = self.folder.newest()
        self.folder.begin_log(0 if newest is None else newest.step)
        if newest is None:
            return False
        if "before" not in newest.state:  # of a version that did not evaluate before the first step
            self.evaluate_before()
        self._take(newest)
        return True

    def evaluate_before(self) -> None:
        """Evaluates what the run begins with: whether its steps made anything better is told by this."""
        if not self.trainer.held_out:
            return
        start = self.clock()
        self.before = HeldOutLoss(0, self.trainer.evaluate())
        seconds = self.clock() - start
        self.seconds += seconds
        self.watcher.evaluated(self.before, is_best=False, seconds=seconds)
        self.check()

    def run(self) -> End:
        """Runs to the end, or until it is stopped; it ends with a checkpoint."""
        while not self.trainer.is_done and not self.is_early:
            if not self._is_ready():
                self._save()
                return "interrupted"
            self._step()
            is_stopped = self.trainer.ranks.total(float(self.is_stopped())) > (0.0,)  # if one rank is stopped, all are
            is_last = self.trainer.is_done or self.is_early or is_stopped
            if is_last or self.trainer.step % self.save_every == 0 or self._is_best_now:
                self._save()
            if is_stopped and not (self.trainer.is_done or self.is_early):
                return "interrupted"
        if self.is_early:
            return "early"
        if self.trainer.step >= self.trainer.num_steps:
            return "done"
        if self.trainer.held_out and self.evaluated_step != self.trainer.step:
            self._evaluate()
        return "stopped"

    def take_best(self) -> None:
        """Restores the parameters that evaluated best; without evaluation the last ones stay."""
        if self.best is not None and self.best.step != self.trainer.step:
            self._take_parameters(self.folder.read(self.best.step))

    @property
    def _is_best_now(self) -> bool:
        return self.best is not None and self.best.step == self.trainer.step

    def _is_ready(self) -> bool:
        start = self.clock()
        is_ready = self.ready()
        self.seconds += self.clock() - start
        self.check()
        return is_ready

    def _step(self) -> None:
        start = self.clock()
        step = self.trainer.run_step()
        seconds = self.clock() - start
        self.seconds += seconds
        self.tokens += step.tokens
        self.check()
        self.watcher.stepped(step, seconds)
        evaluated = None
        if self.trainer.held_out and (step.number % self.eval_every == 0 or self.trainer.is_done):
            evaluated = self._evaluate()
        self.folder.log({
            "step": step.number, "loss": _plain(step.loss), "rate": step.learning_rate,
            "norm": _plain(step.gradient_norm), "tokens": step.tokens, "computed": step.computed,
            "targets": step.targets, "examples": step.examples, "skipped": step.is_skipped,
            "seconds": round(seconds, 4), "held_out": None if evaluated is None else _plain(evaluated.loss)})
        if self.trainer.num_skipped >= MAX_SKIPPED:
            raise EvidenceError(f"the gradients' norm was {step.gradient_norm} in {MAX_SKIPPED} steps one after the "
                                "other", hint="take a lower --lr, or --dtype float32")

    def _evaluate(self) -> HeldOutLoss:
        start = self.clock()
        evaluated = HeldOutLoss(self.trainer.step, self.trainer.evaluate())
        is_best = self.best is None or evaluated.loss < self.best.loss or math.isnan(self.best.loss)
        self.evaluated_step = evaluated.step
        self.best = evaluated if is_best else self.best
        self.num_worse = 0 if is_best else self.num_worse + 1
        seconds = self.clock() - start
        self.seconds += seconds
        self.watcher.evaluated(evaluated, is_best=is_best and not self.is_worse, seconds=seconds)
        return evaluated

    def _save(self) -> None:
        trainer = self.trainer
        whole = trainer.ranks.whole
        tensors = {f"{_TRAINED}{name}": _array(whole(parameter.detach()))
                   for name, parameter in trainer.trained.parameters.items()}
        tensors |= {f"{_MOMENTS}{name}": _array(whole(tensor)) for name, tensor in trainer.optimizer.tensors().items()}
        best = None if self.best is None else {"step": self.best.step, "loss": _plain(self.best.loss)}
        before = None if self.before is None else {"step": 0, "loss": _plain(self.before.loss)}
        state = {"optimizer_steps": trainer.optimizer.num_steps, "num_skipped": trainer.num_skipped, "best": best,
                 "before": before, "evaluated_step": self.evaluated_step,
                 "num_worse": self.num_worse, "seconds": round(self.seconds, 3), "tokens": self.tokens}
        self.folder.save(TrainingCheckpoint(trainer.step, tensors, state),
                         None if self.best is None else self.best.step)
        self.watcher.saved(trainer.step)

    def _take(self, checkpoint: TrainingCheckpoint) -> None:
        state = checkpoint.state
        self._take_parameters(checkpoint)
        own = self.trainer.optimizer.tensors()
        moments = {name.removeprefix(_MOMENTS): torch.from_numpy(array)
                   for name, array in checkpoint.tensors.items() if name.startswith(_MOMENTS)}
        self.trainer.optimizer.load({name: self.trainer.ranks.share(tensor, own[name]) if name in own else tensor
                                     for name, tensor in moments.items()}, _count(state, "optimizer_steps"))
        self.trainer.step, self.trainer.num_skipped = checkpoint.step, _count(state, "num_skipped")
        self.num_worse, self.tokens = _count(state, "num_worse"), _count(state, "tokens")
        self.seconds = _number(state, "seconds")
        best, before = state.get("best"), state.get("before")
        if isinstance(best, dict):
            self.best = HeldOutLoss(_count(best, "step"), _loss(best))
        if isinstance(before, dict):
            self.before = HeldOutLoss(0, _loss(before))
        evaluated = state.get("evaluated_step")
        self.evaluated_step = evaluated if type(evaluated) is int else -1

    @torch.no_grad()
    def _take_parameters(self, checkpoint: TrainingCheckpoint) -> None:
        for name, parameter in self.trainer.trained.parameters.items():
            array = checkpoint.tensors.get(_TRAINED + name)
            share = None
            if array is not None and array.dtype.name == "float32" and array.ndim == parameter.ndim:
                share = self.trainer.ranks.share(torch.from_numpy(array), parameter)
            if share is None or share.shape != parameter.shape:
                raise CheckpointError(f"the checkpoint of step {checkpoint.step} has no float32 {_TRAINED}{name} of "
                                      f"shape {tuple(parameter.shape)}", field=name)
            parameter.copy_(share)


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def _plain(value: float) -> float | None:
    """JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def _count(state: object, name: str) -> int:
    value = state.get(name) if isinstance(state, dict) else None
    if type(value) is not int or value < 0:
        raise CheckpointError(f"the state's {name} is {value!r}, a number of at least 0 is allowed", field=name)
    return value


def _loss(state: Mapping[str, object]) -> float:
    """A held-out loss; one that was not finite is written as null."""
    return math.nan if state.get("loss") is None else _number(state, "loss")


def _number(state: object, name: str) -> float:
    value = state.get(name) if isinstance(state, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"the state's {name} is {value!r}, a number is allowed", field=name)
    return value
