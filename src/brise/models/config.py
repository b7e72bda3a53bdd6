"""What a decoder is: sizes, rope, and which of the family's small differences it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from brise.models.rope import Rope

Family = Literal["llama", "mistral", "ministral3", "qwen2", "qwen3"]


@dataclass(frozen=True)
class QueryTemperature:
    """Queries at position p are multiplied by 1 + beta * ln(1 + floor(p / period)) (Llama 4, Ministral 3)."""

    beta: float
    period: int


@dataclass(frozen=True)
class Config:
    """Sizes of a dense decoder. `width` is the residual stream; q and o are num_heads * head_dim wide."""

    family: Family
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

    @property
    def attention_scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def cache_values_per_token(self) -> int:
        """Numbers kept for each token over all layers: keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
