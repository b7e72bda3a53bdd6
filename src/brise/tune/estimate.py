"""The plan of one choice of settings, put together from what each part of the trainer takes. Needs the extra `tune`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from brise.backends.torch import attend
from brise.backends.torch.weights import BLOCK_NUMBERS
from brise.memory.training_plan import Keep, MemoryChoice, Needs, TrainingPlan
from brise.models.config import Config
from brise.models.weights import Weight, Weights, place
from brise.tune import probe
from brise.tune.adamw_state import state_bytes
from brise.tune.recipe import Recipe
from brise.tune.train import ComputeOptions

_READ_AHEAD = 32 << 20  # of the model's file, before its pages are let go
_SCORES = 4  # float32 arrays of a block of attention: scores, their softmax, and the gradients of both


@dataclass
class Estimator:
    """Plans for a model of which only shapes and formats are known; what was probed is not probed again."""

    name: str
    config: Config
    weights: Weights
    recipe: Recipe
    machinery: ComputeOptions
    process: int
    proving: int
    limit: int | None
    longest: int  # row
    images: int = 0
    teaching: int = 0
    answering: int = 0
    _costs: dict[tuple[Keep, bool, int], probe.ActivationCosts] = field(default_factory=dict)

    def __call__(self, choice: MemoryChoice) -> TrainingPlan:
        """The plan of a choice."""
        recipe, machinery = chosen(self.recipe, self.machinery, choice)
        sizes = list(trained_sizes(self.weights, recipe))
        head = probe.head_bytes(self.weights, recipe, machinery, choice.keep)
        scores = min(attend.BLOCK_SCORES, self.config.num_heads * self.longest * choice.num_tokens)
        costs = self._probed(recipe, machinery, choice)
        needs = Needs(
            weights=probe.weights_bytes(self.weights, recipe, machinery, choice.keep),
            loading=_READ_AHEAD + 8 * BLOCK_NUMBERS,
            moments=sum(state_bytes(size, 8 if choice.bits == 8 else 32) for size in sizes), gradients=4 * sum(sizes),
            activations=costs.bytes(self.config.num_layers, choice.num_tokens) + 4 * _SCORES * scores, head=head)
        return TrainingPlan(self.name, choice, needs, self.process, self.proving, self.limit, self.images,
                            self.teaching, self.answering)

    def _probed(self, recipe: Recipe, machinery: ComputeOptions, choice: MemoryChoice) -> probe.ActivationCosts:
        key = choice.keep, choice.checkpointing, choice.rank
        if key not in self._costs:
            self._costs[key] = probe.measure(self.config, self.weights, recipe, machinery, choice.keep)
        return self._costs[key]


def chosen(recipe: Recipe, machinery: ComputeOptions, choice: MemoryChoice) -> tuple[Recipe, ComputeOptions]:
    """Recipe and machinery with what was chosen."""
    recipe = replace(recipe, rank=choice.rank or recipe.rank, optimizer="adamw8" if choice.bits == 8 else "adamw")
    return recipe, replace(machinery, max_tokens=choice.num_tokens, checkpointing=choice.checkpointing)


def trained_sizes(weights: Weights, recipe: Recipe) -> Iterator[int]:
    """How many numbers each trained tensor has."""
    found: list[int] = []

    def look(name: str, weight: Weight) -> Weight:
        numbers = torch.Size(weight.shape).numel()
        if recipe.method == "full":
            found.append(numbers)
        elif name.startswith("layers.") and name.split(".", 2)[2] in recipe.paths:
            rows, cols = weight.shape[-2:]
            found.extend([recipe.rank * cols, rows * recipe.rank, *([rows] if recipe.method == "dora" else [])])
        return weight

    place(weights, look)
    yield from found
