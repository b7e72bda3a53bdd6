"""A sequence: the tokens of one answer, and the cache pages that hold their keys and values."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from brise.engine.pages import chained_key
from brise.models.weights import Array
from brise.text.inputs import ChunkInput, ImageInput


@dataclass(eq=False)
class Span:
    """An image or a chunk of audio in a prompt, at tokens start to end; `rows` says which row of its features each
    token takes.

    The features are present from the time they are needed until the span has been computed.
    """

    start: int
    end: int
    source: ImageInput | ChunkInput
    rows: Array  # (end - start,); -1: none, -2: the vision encoder's own row for a break
    features: Array | None = None
    sees_itself: bool = False  # each row sees all others, so all of them go into one step

    @property
    def seen(self) -> tuple[int, int]:
        """Its first token with a row, and the one behind its last."""
        places = np.flatnonzero(self.rows != -1)
        return self.start + int(places[0]), self.start + int(places[-1]) + 1


class Sequence:
    """Grows by one token per step. Arrays grow by doubling, so that most steps copy nothing.

    `order` is (arrival, index): lower goes first, urgent ones before all others. Tokens before `num_computed` have
    their keys and values in the cache. With `scores_prompt`, the logits of every prompt position are needed; those
    before `num_scored` are done. `spans` are the prompt's images and chunks of audio, in order. `adapter` is the slot
    of its adapter (-1: none), and `root` the digest of that adapter, which keys its pages because an adapter changes
    keys and values.
    """

    __slots__ = ("order", "tokens", "num_tokens", "num_prompt", "num_computed", "num_cached", "table",
                 "num_pages", "num_registered", "was_admitted", "scores_prompt", "num_scored", "spans",
                 "adapter", "root", "is_urgent", "_keys")

    def __init__(self, order: tuple[int, int], prompt: Seq[int], *, scores_prompt: bool = False,
                 spans: tuple[Span, ...] = (), is_urgent: bool = False) -> None:
        self.order, self.is_urgent = order, is_urgent
        self.spans = spans
        self.num_prompt = self.num_tokens = len(prompt)
        self.tokens: Array = np.empty(self.num_prompt + 64, np.int32)
        self.tokens[:self.num_prompt] = prompt
        self.num_computed = 0
        self.num_cached = 0  # of the prompt, found in the prefix cache when first admitted
        self.table: Array = np.zeros(8, np.int32)
        self.num_pages = 0
        self.num_registered = 0
        self.was_admitted = False
        self.scores_prompt = scores_prompt
        self.num_scored = 0
        self.adapter, self.root = -1, b""
        self._keys: list[bytes] = []  # of full pages; they outlive preemption

    @property
    def wants_scores(self) -> bool:
        """Whether prompt positions are still to be scored; then its pages cannot come from the prefix cache."""
        return self.scores_prompt and self.num_scored < self.num_prompt

    @property
    def limit(self) -> int:
        """How far its tokens can be computed: up to the first image or chunk without features."""
        for span in self.spans:
            if span.end > self.num_computed and span.features is None:
                return max(span.start, self.num_computed)
        return self.num_tokens

    def whole(self, end: int) -> tuple[int, int]:
        """Where a chunk that shall end at `end` may end: before it and behind it, so that no span that sees itself is
        cut; both are `end` where none would be."""
        for span in self.spans:
            if not span.sees_itself:
                continue
            first, last = span.seen
            if max(first, self.num_computed) < end < last:
                return max(first, self.num_computed), last
        return end, end

    @property
    def awaited(self) -> Span | None:
        """The image or chunk whose features are needed to compute any further."""
        for span in self.spans:
            if span.end > self.num_computed:
                return span if span.features is None and span.start <= self.num_computed else None
        return None

    @property
    def has_features(self) -> bool:
        """Whether it holds features that have not been used yet."""
        return any(span.features is not None for span in self.spans)

    def mark_computed(self, end: int) -> None:
        """Records that tokens before `end` have been computed, and drops the features that stood for them."""
        self.num_computed = end
        for span in self.spans:
            if span.end <= end:
                span.features = None

    def append(self, token: int) -> None:
        if self.num_tokens == len(self.tokens):
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.num_tokens] = token
        self.num_tokens += 1

    def place_draft(self, tokens: Seq[int]) -> None:
        """Writes drafted tokens behind its own, where `append` will overwrite them."""
        end = self.num_tokens + len(tokens)
        if end > len(self.tokens):
            self.tokens = np.concatenate([self.tokens, np.empty(max(len(self.tokens), len(tokens)), np.int32)])
        self.tokens[self.num_tokens:end] = tokens

    def hold(self, pages: Seq[int]) -> None:
        """Appends pages to those that it holds."""
        needed = self.num_pages + len(pages)
        if needed > len(self.table):
            grown = np.zeros(max(2 * len(self.table), needed), np.int32)
            grown[:self.num_pages] = self.table[:self.num_pages]
            self.table = grown
        self.table[self.num_pages:needed] = pages
        self.num_pages = needed

    def drop_pages(self) -> list[int]:
        """Gives up all pages, and with them everything that was computed; returns the pages."""
        held: list[int] = self.table[:self.num_pages].tolist()
        self.num_pages = self.num_computed = self.num_registered = 0
        for span in self.spans:
            span.features = None
        return held

    def drop_pages_behind(self, count: int) -> list[int]:
        """Gives up all but the first `count` pages, which hold nothing of its own; returns them."""
        dropped: list[int] = self.table[count:self.num_pages].tolist()
        self.num_pages = min(count, self.num_pages)
        return dropped

    def keys(self, count: int, page_size: int) -> list[bytes]:
        """The keys of the first `count` pages."""
        while len(self._keys) < count:
            start = len(self._keys) * page_size
            parent = self._keys[-1] if self._keys else self.root
            digests = [span.source.digest for span in self.spans if span.start < start + page_size and start < span.end]
            self._keys.append(chained_key(parent, self.tokens[start:start + page_size], digests))
        return self._keys[:count]

    def key(self, index: int, page_size: int) -> bytes:
        """The key of page `index`."""
        return self._keys[index] if index < len(self._keys) else self.keys(index + 1, page_size)[index]
