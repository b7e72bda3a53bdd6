"""The sides of parity: hidden states, logits and named values of a batch; and the side of the served model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from brise.backends.pages import packed_pages
from brise.data.example import EncodedRow
from brise.engine.adapter_loading import dora_gains
from brise.models import decoder
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.config import Config
from brise.models.lora import LowRanks, adapted
from brise.models.ops import Backend, CacheFormat, Runner
from brise.models.weights import Array, Weights

GROUP_TOKENS = 2048  # of several rows that go through a model together
LOGITS = 1 << 21  # numbers of logits at a time: comparing two models makes a dozen arrays of so many


class ParitySide(Protocol):
    """One side of a comparison. Arrays are NumPy's, float32."""

    @property
    def config(self) -> Config: ...
    def hidden(self, batch: Batch) -> Array:
        """Normalised last hidden states (R, D) of the tokens in batch.rows."""
    def logits(self, hidden_RD: Array) -> Array:
        """(R, V)."""
    def trace(self, batch: Batch) -> dict[str, Array]:
        """Every value that the model names (ops.named), in order."""


class GuidedSide(ParitySide, Protocol):
    """A side that can continue from another side's values, so that no error affects later values."""

    def guided_trace(self, batch: Batch, guide: Mapping[str, Array]) -> dict[str, Array]:
        """As `trace`, but each value is computed from the values of `guide` before it."""


def groups(rows: Sequence[EncodedRow], max_tokens: int = GROUP_TOKENS) -> Iterator[list[EncodedRow]]:
    """Rows in order, grouped up to `max_tokens`; a longer row is a group of its own."""
    group: list[EncodedRow] = []
    for row in rows:
        if group and sum(len(own.tokens) for own in group) + len(row.tokens) > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def pieces(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices of hidden states, small enough for their logits."""
    step = max(1, LOGITS // vocab_size)
    for first in range(0, num_rows, step):
        yield slice(first, min(first + step, num_rows))


@dataclass(frozen=True)
class NativeSide:
    """A model as the engine runs it: recorded, with keys and values in pages of the engine's format.

    `is_adapted`: every token uses the adapter in slot 0 of the runner's table.
    """

    backend: Backend
    config: Config
    weights: Weights
    runner: Runner
    cache_format: CacheFormat = "f16"
    is_adapted: bool = False

    @classmethod
    def of(cls, backend: Backend, config: Config, weights: Weights) -> NativeSide:
        """The side of placed weights."""
        return cls(backend, config, weights, backend.runner(config, weights, GROUP_TOKENS))

    def with_adapter(self, low_ranks: LowRanks) -> NativeSide:
        """The same model with an adapter, as requests use one; the base's weights are shared."""
        if not low_ranks:
            return self
        table = self.backend.adapters(self.config, self.weights, 1, max(len(low.a) for low in low_ranks.values()))
        table.put(0, table.prepare(low_ranks, dora_gains(table, low_ranks)))
        return replace(self, weights=adapted(self.weights, low_ranks), is_adapted=True,
                       runner=self.backend.runner(self.config, self.weights, GROUP_TOKENS, table))

    def hidden(self, batch: Batch) -> Array:
        """See ParitySide."""
        paged, num_pages = packed_pages(batch)
        if self.is_adapted:
            paged = replace(paged, adapters=np.zeros(len(paged.tokens), np.int32))
        return self.runner.hidden(paged, self.backend.new_cache(self.config, num_pages, PAGE_SIZE, self.cache_format))

    def logits(self, hidden_RD: Array) -> Array:
        """See ParitySide."""
        return self.backend.ops().linear(hidden_RD, self.weights.output)

    def trace(self, batch: Batch) -> dict[str, Array]:
        """See ParitySide."""
        values: dict[str, Array] = {}
        decoder.forward(self.backend.ops(values), self.config, self.weights, batch)
        return values
