"""Latent attention (DeepSeek-V2, 2405.04434) as Mistral Large 3 has it, in its absorbed form.

A token keeps one vector for all heads: its normalised latent and one rotated key. The projections that would make
keys and values from it are moved to the queries and to the outputs, so neither is ever made.

Legend: T tokens, D width, H heads, Q query rank, C latent rank, N unrotated and R rotated numbers of a query,
V numbers of a value.
"""

from __future__ import annotations

from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.weights import Array, LatentAttention
from brise.ops.contract import Cache, Ops


def attention(ops: Ops, config: Config, weights: LatentAttention, h_TD: Array, table_TR: Array, batch: Batch,
              cache: Cache | None, index: int) -> Array:
    """Attention of one layer on normalised hidden states (T, D); gives (T, D)."""
    assert config.latent is not None, "a layer with latent attention in a model without"
    nope_dim, rank = config.latent.nope_dim, config.latent.rank
    query_TQ, key_TC = ops.linears(h_TD, (weights.wq_a, weights.wkv_a))
    query_TQ = ops.rms_norm(query_TQ, weights.q_a_norm, config.norm_eps)
    q_THE = ops.heads(ops.linear(query_TQ, weights.wq_b), config.num_heads)
    turned_THR = ops.rope(ops.columns(q_THE, nope_dim, nope_dim + config.rope.dim), table_TR, config.rope.layout)
    absorbed_THC = ops.heads_linear(ops.columns(q_THE, 0, nope_dim), weights.wk_b)
    q_THC = ops.concat(absorbed_THC, turned_THR)
    if config.query_temperature is not None:
        temperature = config.query_temperature
        q_THC = ops.scale_queries(q_THC, batch.positions, temperature.beta, temperature.period)
    kv_T1C = ops.heads(key_TC, 1)
    latent_T1C = ops.rms_norm(ops.columns(kv_T1C, 0, rank), weights.kv_a_norm, config.norm_eps)
    key_T1R = ops.rope(ops.columns(kv_T1C, rank, rank + config.rope.dim), table_TR, config.rope.layout)
    o_THC = ops.attend_latent(q_THC, ops.concat(latent_T1C, key_T1R), batch, cache, index, config.attention_scale,
                              rank)
    return ops.linear(ops.flat(ops.heads_linear(o_THC, weights.wv_b)), weights.wo)
