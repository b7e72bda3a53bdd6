"""One answer's tokens and the cache pages that hold their keys and values."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from brise.engine.pages import chained_key
from brise.models.weights import Array
from brise.text.inputs import ImageInput


@dataclass(eq=False)
class Span:
    """Tokens start to end of a prompt are an image; `rows` says which row of its features each of them takes.

    The features are there from when they are needed until the span has been computed.
    """

    start: int
    end: int
    image: ImageInput
    rows: Array  # (end - start,); -1: none, -2: the tower's own row for a break
    features: Array | None = None


class Sequence:
    """Grows by a token a step. Arrays grow by doubling, so that a step rebuilds nothing.

    `order` is (arrival, index): older is more important. Tokens before `num_computed` have their keys and
    values in the cache. With `scores_prompt`, the logits of every prompt position are wanted, those before
    `num_scored` have been had. `spans` are the prompt's images, in order. `adapter` is the slot of the adapter that
    its tokens go through (-1: none) and `root` that adapter's digest, as it changes keys and values.
    """

    __slots__ = ("order", "tokens", "num_tokens", "num_prompt", "num_computed", "num_cached", "table",
                 "num_pages", "num_registered", "was_admitted", "scores_prompt", "num_scored", "spans",
                 "adapter", "root", "_keys")

    def __init__(self, order: tuple[int, int], prompt: Seq[int], *, scores_prompt: bool = False,
                 spans: tuple[Span, ...] = ()) -> None:
        self.order = order
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
        """Whether logits inside the prompt are still to come: its pages cannot be taken from the cache."""
        return self.scores_prompt and self.num_scored < self.num_prompt

    @property
    def limit(self) -> int:
        """How far its tokens can be computed: to the first image whose features are not there."""
        for span in self.spans:
            if span.end > self.num_computed and span.features is None:
                return max(span.start, self.num_computed)
        return self.num_tokens

    @property
    def awaited(self) -> Span | None:
        """The image without whose features nothing more can be computed."""
        for span in self.spans:
            if span.end > self.num_computed:
                return span if span.features is None and span.start <= self.num_computed else None
        return None

    @property
    def has_features(self) -> bool:
        """Whether features of an image are there and not used up."""
        return any(span.features is not None for span in self.spans)

    def compute(self, end: int) -> None:
        """Tokens before `end` have been computed: features of images among them are not needed any more."""
        self.num_computed = end
        for span in self.spans:
            if span.end <= end:
                span.features = None

    def append(self, token: int) -> None:
        if self.num_tokens == len(self.tokens):
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.num_tokens] = token
        self.num_tokens += 1

    def hold(self, pages: Seq[int]) -> None:
        """Puts pages behind the ones held already."""
        needed = self.num_pages + len(pages)
        if needed > len(self.table):
            grown = np.zeros(max(2 * len(self.table), needed), np.int32)
            grown[:self.num_pages] = self.table[:self.num_pages]
            self.table = grown
        self.table[self.num_pages:needed] = pages
        self.num_pages = needed

    def let_go(self) -> list[int]:
        """Forgets all pages, and with them what was computed; returns them."""
        held: list[int] = self.table[:self.num_pages].tolist()
        self.num_pages = self.num_computed = self.num_registered = 0
        for span in self.spans:
            span.features = None
        return held

    def keys(self, count: int, page_size: int) -> list[bytes]:
        """The keys of the first `count` pages."""
        while len(self._keys) < count:
            start = len(self._keys) * page_size
            parent = self._keys[-1] if self._keys else self.root
            images = [span.image.digest for span in self.spans if span.start < start + page_size and start < span.end]
            self._keys.append(chained_key(parent, self.tokens[start:start + page_size], images))
        return self._keys[:count]

    def key(self, index: int, page_size: int) -> bytes:
        """The key of page `index`."""
        return self._keys[index] if index < len(self._keys) else self.keys(index + 1, page_size)[index]
