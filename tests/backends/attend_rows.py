"""The rows of the case table for attention: sequences with a past, in pages of every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brise.models.config import Config, Latent
from brise.models.ops import Backend, Cache, CacheFormat, Ops
from brise.models.rope import Rope
from brise.models.weights import Array
from tests import tolerances
from tests.backends.inputs import Precision, off_ties, packed_batch

LAYER, NUM_LAYERS = 1, 2


@dataclass(frozen=True)
class Attend:
    """Sequences (past tokens, new tokens). `format` None: no cache, no past. `size` scales the queries.

    `rank` is of latent attention, where a key's first numbers are its value; 0: plain attention.
    """

    sequences: tuple[tuple[int, int], ...]
    heads: int
    kv_heads: int
    head_dim: int
    format: CacheFormat | None = None
    window: int | None = None
    page_size: int = 16
    size: float = 1.0
    rank: int = 0

    def run(self, ops: Ops, backend: Backend, precision: Precision) -> Array:
        cache, pages = None, None
        if self.format is not None:
            cache = backend.new_cache(self._config(), self._num_pages(), self.page_size, self.format)
            pages = self._pages()
            past = [i for i, (length, _) in enumerate(self.sequences) if length]
            if past:
                # What the past itself attends to is not looked at: one key each is least work.
                self._step(ops, cache, past, [(0, self.sequences[i][0]) for i in past], pages, precision, window=1)
        return self._step(ops, cache, range(len(self.sequences)), self.sequences, pages, precision, self.window)

    def allowed(self, expected: Array) -> Array:
        tensors = [self._tensors(i) for i in range(len(self.sequences))]
        scale = self.head_dim**-0.5
        plain = max(tolerances.attend(q, k, v, scale) for q, k, v in tensors)
        if self.format is None or self.format == "f32":
            return np.full(1, plain)
        return np.full(1, plain + max(tolerances.attend_whole(q, k, v, scale, self.format) for q, k, v in tensors))

    def _step(self, ops: Ops, cache: Cache | None, which: Sequence[int], spans: Sequence[tuple[int, int]],
              pages: Sequence[Sequence[int]] | None, precision: Precision, window: int | None) -> Array:
        """One call of attend with the tokens at `spans` (first, new) of the sequences `which`."""
        parts = [[x[first:first + new] for x in self._tensors(i)]
                 for i, (first, new) in zip(which, spans, strict=True)]
        q, k, v = (np.concatenate(side).astype(precision, copy=False) for side in zip(*parts, strict=True))
        batch = packed_batch(spans, None if pages is None else [pages[i] for i in which], self.page_size)
        if self.rank:
            return ops.attend_latent(q, k, batch, cache, LAYER, self.head_dim**-0.5, self.rank)
        return ops.attend(q, k, v, batch, cache, LAYER, self.head_dim**-0.5, window)

    def _tensors(self, sequence: int) -> tuple[Array, Array, Array]:
        """q, k, v of one whole sequence; keys and values keep off the ties of q8."""
        past, new = self.sequences[sequence]
        rng = np.random.default_rng((sequence, past, new, self.head_dim))
        q = rng.standard_normal((past + new, self.heads, self.head_dim)).astype(np.float32)
        shape = (past + new, self.kv_heads, self.head_dim)
        k = off_ties(rng, shape, self.head_dim)
        return q * np.float32(self.size), k, k if self.rank else off_ties(rng, shape, self.head_dim)

    def _pages(self) -> list[list[int]]:
        """Pages of each sequence, in no order."""
        order = np.random.default_rng(0).permutation(self._num_pages()).tolist()
        return [[order.pop() for _ in range(_pages_for(sum(lengths), self.page_size))]
                for lengths in self.sequences]

    def _num_pages(self) -> int:
        return 2 + sum(_pages_for(sum(lengths), self.page_size) for lengths in self.sequences)

    def _config(self) -> Config:
        rope = Rope(theta=10000.0, dim=self.head_dim - self.rank, layout="half")
        latent = Latent(query_rank=8, rank=self.rank, nope_dim=8, value_dim=8) if self.rank else None
        return Config("llama", 32, self.heads * self.head_dim, NUM_LAYERS, self.heads, self.kv_heads,
                      self.head_dim, 32, 1e-5, rope, 1024, latent=latent)


def _pages_for(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size)
