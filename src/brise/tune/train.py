"""The trainer: steps are functions of (seed, step), so that a run can stop anywhere and resume to the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from brise.backends.torch.linear import RowNormCache
from brise.backends.torch.ops import TorchOps
from brise.data.example import EncodedRow
from brise.errors import UnsupportedError
from brise.memory.training_plan import Offload
from brise.models import decoder
from brise.models.config import Config
from brise.models.weights import Layer, Weights
from brise.tune import losses
from brise.tune.adamw_state import Bits
from brise.tune.adapters import Trained
from brise.tune.distill.distill import Blend, lumped_kl
from brise.tune.optimizer import AdamW
from brise.tune.packing import FeaturesOf, Pack, pack, packs
from brise.tune.process_group import Alone, Ranks
from brise.tune.recipe import Recipe
from brise.tune.watch import Step

Tensor = torch.Tensor
HOST = torch.device("cpu")


@dataclass(frozen=True)
class ComputeOptions:
    """How the computation is carried out; nothing here changes the result, up to rounding."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    max_tokens: int = 2048  # computed tokens of a microbatch
    checkpointing: bool = False  # recomputes layers for the gradient, to keep less in memory
    shares_prompts: bool = True
    features_of: FeaturesOf | None = None
    offload: Offload = ()  # what lies on the host of a GPU between uses


@dataclass
class Trainer:
    """A model, its trained tensors, and the state of the run: `step` is the number of steps done."""

    config: Config
    trained: Trained
    recipe: Recipe
    compute: ComputeOptions
    rows: Sequence[EncodedRow]
    held_out: Sequence[EncodedRow] = ()
    ranks: Ranks = field(default_factory=Alone)
    stop_at: int | None = None
    step: int = 0
    num_skipped: int = 0
    optimizer: AdamW = field(init=False)
    _row_norms: RowNormCache = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise UnsupportedError("there is no example to train on")
        bits: Bits = 8 if self.recipe.optimizer == "adamw8" else 32
        self.optimizer = AdamW(self.trained.parameters, betas=self.recipe.betas, eps=self.recipe.eps,
                               weight_decay=self.recipe.weight_decay, bits=bits, seed=self.recipe.seed,
                               home=HOST if "optimizer" in self.compute.offload else None)

    @property
    def steps_an_epoch(self) -> int:
        return self.recipe.steps_an_epoch(len(self.rows))

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self.recipe.num_steps(len(self.rows))

    @property
    def end_step(self) -> int:
        """After which it ends: all of its steps, or fewer. Fewer change nothing in those that are taken."""
        return self.num_steps if self.stop_at is None else min(self.num_steps, self.stop_at)

    @property
    def is_done(self) -> bool:
        return self.step >= self.end_step

    def run_step(self) -> Step:
        """Takes one step of the optimizer."""
        rows = self.rows_of(self.step)
        num_targets = max(1, sum(row.num_targets for row in rows))
        total, computed = 0.0, 0.0
        for number, (part, counts) in enumerate(self._packs(rows)):
            draw = number * self.ranks.count + self.ranks.rank
            torch.manual_seed(_seed(self.recipe.seed, self.step, draw))  # of dropout
            loss = self._loss(self._ops(trains=True), part) / num_targets
            (loss if counts else loss * 0).backward()  # type: ignore[no-untyped-call]
            if counts:
                total += float(loss.detach())
                computed += part.num_tokens
        norm = self.ranks.clip(self.trained.parameters, self.recipe.clip)
        total, computed = self.ranks.total(total, computed)
        rate = learning_rate(self.recipe, self.step, self.num_steps)
        is_finite = math.isfinite(norm)
        if is_finite:
            self.optimizer.step(rate)
        self.optimizer.zero_grad()
        self.num_skipped = 0 if is_finite else self.num_skipped + 1
        self.step += 1
        return Step(self.step, total, rate, norm, sum(len(row.tokens) for row in rows), int(computed), num_targets,
                    len(rows), not is_finite)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the learned tokens of the held-out rows."""
        total = 0.0
        for part, counts in self._packs(self.held_out):
            loss = float(self._loss(self._ops(trains=False), part))
            total += loss if counts else 0.0
        (total,) = self.ranks.total(total)
        return total / max(1, sum(row.num_targets for row in self.held_out))

    def rows_of(self, step: int) -> list[EncodedRow]:
        """The examples of a step: each epoch has its own order, drawn from (seed, epoch)."""
        epoch, place = divmod(step, self.steps_an_epoch)
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.rows))
        size = self.recipe.batch_size
        return [self.rows[int(index)] for index in order[place * size:(place + 1) * size]]

    def _packs(self, rows: Sequence[EncodedRow]) -> Iterator[tuple[Pack, bool]]:
        """The microbatches of this rank, and whether they count: all ranks compute together, so all have as many."""
        own = packs(self.ranks.own(rows), self.compute.max_tokens, shares=self.compute.shares_prompts,
                    features_of=self.compute.features_of)
        return self.ranks.even(own, lambda: pack(rows[:1], features_of=self.compute.features_of))

    def _loss(self, ops: TorchOps, pack: Pack) -> Tensor:
        """Sum over the pack's targets."""
        return self.ranks.loss(self.trained.weights, lambda weights: self._loss_with(weights, ops, pack))

    def _loss_with(self, weights: Weights, ops: TorchOps, pack: Pack) -> Tensor:
        hidden_RD = decoder.hidden(ops, self.config, weights, pack.batch)
        targets = torch.from_numpy(pack.targets).to(self.compute.device)
        teacher = pack.teacher
        if teacher is None:
            return losses.cross_entropy(hidden_RD, weights.output, targets, ops.dropout)
        blend = Blend(self.recipe.distill_weight, self.recipe.distill_temperature, self.recipe.distill_direction)
        tokens, logprobs = (torch.from_numpy(array).to(self.compute.device)
                            for array in (teacher.tokens, teacher.logprobs))
        return lumped_kl(hidden_RD, weights.output, targets, tokens, logprobs, blend, ops.dropout)

    def _ops(self, *, trains: bool) -> TorchOps:
        rate = self.recipe.dropout
        dropout: Callable[[Tensor], Tensor] | None = None
        if trains and rate > 0:
            def dropout(x: Tensor) -> Tensor:
                return torch.nn.functional.dropout(x, rate)
        again = _again_from_host if "activations" in self.compute.offload else _again
        run = self.ranks.runner(again if trains and self.compute.checkpointing else _plain)
        # Gathered weights of a layer are new objects each time.
        row_norms = self._row_norms if isinstance(self.ranks, Alone) else {}
        return TorchOps(self.compute.device, self.compute.dtype, run, dropout, row_norms=row_norms)


def _plain(body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
    return body(x, layer)


def _again(body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
    """Keeps only the layer's input; dropout draws the same numbers the second time."""
    out: Tensor = checkpoint(body, x, layer, use_reentrant=False)
    return out


def _again_from_host(body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
    """The same with the layer's input on the host until its gradient is computed."""
    with torch.autograd.graph.save_on_cpu(pin_memory=x.device.type == "cuda"):
        return _again(body, x, layer)


def _seed(*numbers: int) -> int:
    return int(np.random.default_rng(list(numbers)).integers(1 << 62))


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """The rate of step 0, 1, ... of `num_steps`: it rises linearly to the recipe's rate, then follows the schedule.

    The last step has the lowest rate, and so has every step after it.
    """
    num_warmup = min(math.ceil(recipe.warmup * num_steps), num_steps)
    if step < num_warmup:
        return recipe.learning_rate * (step + 1) / num_warmup
    done = min((step - num_warmup) / max(num_steps - num_warmup - 1, 1), 1.0)
    floor = recipe.min_learning_rate
    match recipe.schedule:
        case "cosine":
            share = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
        case "linear":
            share = floor + (1.0 - floor) * (1.0 - done)
        case "constant":
            share = 1.0
    return recipe.learning_rate * share
