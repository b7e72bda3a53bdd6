"""Describes a decoder: its sizes, rope, and the small differences of its family."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from brise.models.rope import LongRope, Rope

# What the gate of a feed-forward goes through; gelu is the approximation by tanh.
Activation = Literal["silu", "gelu"]


@dataclass(frozen=True)
class QueryTemperature:
    """Queries at position p are multiplied by 1 + beta * ln(1 + floor(p / period)) (Llama 4, Ministral 3)."""

    beta: float
    period: int


@dataclass(frozen=True)
class Latent:
    """Latent attention (DeepSeek-V2, 2405.04434). A query head is `nope_dim` numbers, then `rope.dim` rotated ones."""

    query_rank: int
    rank: int  # of the latent that is cached in place of keys and values
    nope_dim: int
    value_dim: int


@dataclass(frozen=True)
class Experts:
    """Feed-forward of experts: softmax over all, the best `per_token`, divided by their sum, times `scale`."""

    count: int
    per_token: int
    width: int
    shared_width: int = 0  # of the expert that every token goes through; 0: none
    num_dense_layers: int = 0  # the first layers have a plain feed-forward
    scale: float = 1.0


@dataclass(frozen=True)
class Config:
    """Sizes of a decoder. `width` is the residual stream; q and o are num_heads * head_dim wide.

    With latent attention `head_dim` is that of a query (nope_dim + rope.dim) and `num_kv_heads` is 1: all heads read
    one cached vector, the latent and the rotated key.
    """

    family: str  # a key of models/families.py
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float
    rope: Rope
    max_context: int
    sliding_window: int | None = None
    query_temperature: QueryTemperature | None = None
    latent: Latent | None = None
    experts: Experts | None = None
    softmax_scale: float | None = None  # None: head_dim ** -0.5
    layers_without_rope: tuple[int, ...] = ()
    layers_without_window: tuple[int, ...] = ()  # the others have `sliding_window`
    window_rope: Rope | None = None  # of layers with a window, where it is another
    activation: Activation = "silu"
    embedding_scale: float = 1.0  # embeddings of tokens are multiplied by it, features of images are not
    residual_scale: float = 1.0  # and so is what attention and feed-forward add to the residual stream
    logits_divisor: float = 1.0

    def for_context(self, context: int) -> Config:
        """This model opened with `context`: with LongRoPE the factors are the long ones beyond the original context."""
        scaling = self.rope.scaling
        if not isinstance(scaling, LongRope):
            return self
        chosen = replace(scaling, is_long=context > scaling.original_context)
        return replace(self, rope=replace(self.rope, scaling=chosen))

    @property
    def short_context(self) -> int | None:
        """The longest context with LongRoPE's short factors; None where context and factors have nothing to do."""
        scaling = self.rope.scaling
        return scaling.original_context if isinstance(scaling, LongRope) else None

    @property
    def attention_scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim) if self.softmax_scale is None else self.softmax_scale

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer."""
        return None if layer in self.layers_without_window else self.sliding_window

    def rope_of(self, layer: int) -> Rope | None:
        """The rotation of a layer's queries and keys."""
        if layer in self.layers_without_rope:
            return None
        return self.rope if self.window_rope is None or self.window(layer) is None else self.window_rope

    @property
    def cache_heads(self) -> int:
        """Heads of the cache: each holds `cache_dim` numbers a token, and without a latent as many for the value."""
        return self.num_kv_heads

    @property
    def cache_dim(self) -> int:
        return self.head_dim if self.latent is None else self.latent.rank + self.rope.dim

    @property
    def cache_values_per_token(self) -> int:
        """Numbers kept for each token over all layers: keys and values, or latents and rotated keys."""
        sides = 2 if self.latent is None else 1
        return sides * self.num_layers * self.cache_heads * self.cache_dim
