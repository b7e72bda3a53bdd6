"""The processes that train one model together, as the trainer sees them; by default one. Needs the extra `tune`.

tune/fsdp.py has those of torchrun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from brise.backends.torch.ops import LayerRunner
from brise.models.weights import Weights
from brise.tune.adapters import Trained
from brise.tune.optimizer import clip_gradients

Tensor = torch.Tensor
T = TypeVar("T")


class Ranks(Protocol):
    """Every rank makes the same calls in the same order: most of them wait for the other ranks."""

    rank: int
    count: int

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of a step's rows."""

    def even(self, packs: Iterable[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        """The same number of packs on every rank, as they compute together; `spare` makes packs that do not count."""

    def loss(self, weights: Weights, compute: Callable[[Weights], Tensor]) -> Tensor:
        """compute(weights) with the weights outside of layers gathered."""

    def runner(self, run: LayerRunner) -> LayerRunner:
        """`run` with the weights of the layer gathered."""

    def clip(self, parameters: Mapping[str, torch.nn.Parameter], max_norm: float) -> float:
        """Adds up the gradients of all ranks, then as optimizer.clip_gradients over all of them."""

    def total(self, *numbers: float) -> tuple[float, ...]:
        """The sums over all ranks."""

    def whole(self, share: Tensor) -> Tensor:
        """The shares of all ranks, concatenated along their first dimension."""

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        """The part of `whole` that is this rank's; `like` is a share of that size."""


class Alone:
    """One process has everything."""

    rank = 0
    count = 1

    def own(self, items: Sequence[T]) -> Sequence[T]:
        return items

    def even(self, packs: Iterable[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        return ((pack, True) for pack in packs)

    def loss(self, weights: Weights, compute: Callable[[Weights], Tensor]) -> Tensor:
        return compute(weights)

    def runner(self, run: LayerRunner) -> LayerRunner:
        return run

    def clip(self, parameters: Mapping[str, torch.nn.Parameter], max_norm: float) -> float:
        return clip_gradients(parameters.values(), max_norm)

    def total(self, *numbers: float) -> tuple[float, ...]:
        return numbers

    def whole(self, share: Tensor) -> Tensor:
        return share

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        return whole


def whole_of(trained: Trained, ranks: Ranks) -> dict[str, Tensor]:
    """The trained tensors by path, gathered from all ranks."""
    return {name: ranks.whole(parameter.detach()) for name, parameter in trained.parameters.items()}
