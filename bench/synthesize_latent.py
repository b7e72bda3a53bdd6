"""Tensors and keys of a synthetic Mistral Large 3: latent attention, experts, a shared expert, dense first layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Latent:
    """Sizes beside those of every shape; a query head is nope + rope wide."""

    query_rank: int
    rank: int
    nope: int
    rope: int
    value: int
    num_experts: int
    experts_per_token: int
    expert_width: int
    num_dense: int


LARGE3 = Latent(query_rank=1536, rank=512, nope=128, rope=64, value=128, num_experts=128, experts_per_token=4,
                expert_width=4096, num_dense=3)
# Like Large 3 in every proportion that memory depends on, but small: nearly all of it is experts.
MINI = Latent(query_rank=256, rank=256, nope=64, rope=64, value=64, num_experts=32, experts_per_token=4,
              expert_width=2048, num_dense=1)


def keys(latent: Latent) -> Mapping[str, str | int | float]:
    """What replaces or joins the keys of a dense model."""
    return {"attention.q_lora_rank": latent.query_rank, "attention.kv_lora_rank": latent.rank,
            "attention.key_length": latent.rank + latent.rope, "attention.value_length": latent.rank,
            "attention.key_length_mla": latent.nope + latent.rope, "attention.value_length_mla": latent.value,
            "rope.dimension_count": latent.rope, "expert_count": latent.num_experts,
            "expert_used_count": latent.experts_per_token, "expert_shared_count": 1,
            "expert_feed_forward_length": latent.expert_width, "leading_dense_block_count": latent.num_dense,
            "expert_weights_scale": 1.0, "expert_weights_norm": True, "expert_gating_func": 1,
            "rope.scaling.type": "yarn", "rope.scaling.factor": 36.0, "rope.scaling.original_context_length": 8192,
            "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.1, "attention.temperature_scale": 0.1,
            "attention.temperature_length": 8192}


def block(latent: Latent, layer: int, width: int, num_heads: int, ffn_width: int) -> Iterator[tuple[str, Dims]]:
    """One layer's tensors, row-major; experts are tensors of three dims."""
    yield "attn_norm.weight", (width,)
    yield "attn_q_a.weight", (latent.query_rank, width)
    yield "attn_q_a_norm.weight", (latent.query_rank,)
    yield "attn_q_b.weight", (num_heads * (latent.nope + latent.rope), latent.query_rank)
    yield "attn_kv_a_mqa.weight", (latent.rank + latent.rope, width)
    yield "attn_kv_a_norm.weight", (latent.rank,)
    yield "attn_k_b.weight", (num_heads, latent.rank, latent.nope)
    yield "attn_v_b.weight", (num_heads, latent.value, latent.rank)
    yield "attn_output.weight", (width, num_heads * latent.value)
    yield "ffn_norm.weight", (width,)
    if layer < latent.num_dense:
        yield from _feed_forward("", ffn_width, width)
        return
    count, inner = latent.num_experts, latent.expert_width
    yield "ffn_gate_inp.weight", (count, width)
    yield "ffn_gate_exps.weight", (count, inner, width)
    yield "ffn_up_exps.weight", (count, inner, width)
    yield "ffn_down_exps.weight", (count, width, inner)
    yield from _feed_forward("_shexp", inner, width)


def _feed_forward(tail: str, inner: int, width: int) -> Iterator[tuple[str, Dims]]:
    yield f"ffn_gate{tail}.weight", (inner, width)
    yield f"ffn_up{tail}.weight", (inner, width)
    yield f"ffn_down{tail}.weight", (width, inner)
