"""Computes a decoder (every family of models/families.py), written once over the ops.

Legend: T tokens, D width, H query heads, K key/value heads, E numbers a head, F ffn width, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

from brise.models.batch import Batch
from brise.models.config import Activation, Config
from brise.models.ops import Cache, Ops
from brise.models.rope import Rope, frequencies
from brise.models.weights import Array, Attention, FeedForward, LatentAttention, Layer, Mixture, Weight, Weights

Tables = Mapping[Rope, Array]  # (T, E): of each rotation that the model has


def forward(ops: Ops, config: Config, weights: Weights, batch: Batch, cache: Cache | None = None) -> Array:
    """Logits (R, V) of the tokens in batch.rows; writes this step's keys and values into the cache."""
    return ops.named(ops.linear(hidden(ops, config, weights, batch, cache), weights.output), "logits")


def hidden(ops: Ops, config: Config, weights: Weights, batch: Batch, cache: Cache | None = None) -> Array:
    """Normalised last hidden states (R, D) of the tokens in batch.rows, over the divisor of the logits: whoever
    multiplies them by the output matrix has logits."""
    ropes = dict.fromkeys(config.rope_of(index) for index in range(config.num_layers))
    tables = {rope: ops.rope_table(batch.positions, *frequencies(rope)) for rope in ropes if rope is not None}
    x_TD = _scaled(ops, ops.embed(weights.tok_embeddings, batch.tokens), config.embedding_scale)
    x_TD = ops.named(ops.put_rows(x_TD, batch.features, batch.feature_rows), "embedding")
    for index, layer in enumerate(weights.layers):
        def block(x_TD: Array, layer: Layer, index: int = index) -> Array:
            a_TD = _attention(ops, config, layer, x_TD, tables, batch, cache, index)
            a_TD = _scaled(ops, ops.named(a_TD, f"layers.{index}.attention.out"), config.residual_scale)
            x_TD = ops.add(x_TD, a_TD)
            f_TD = ops.named(_feed_forward(ops, config, layer, x_TD), f"layers.{index}.feed_forward.out")
            return ops.add(x_TD, _scaled(ops, f_TD, config.residual_scale))

        x_TD = ops.layer(block, x_TD, layer)
    h_RD = ops.rms_norm(ops.take_rows(x_TD, batch.rows), weights.norm, config.norm_eps)
    return _scaled(ops, h_RD, 1.0 / config.logits_divisor)


def _scaled(ops: Ops, x: Array, factor: float) -> Array:
    return x if factor == 1.0 else ops.scale(x, factor)


def _attention(ops: Ops, config: Config, layer: Layer, x_TD: Array, tables: Tables, batch: Batch, cache: Cache | None,
               index: int) -> Array:
    h_TD = ops.rms_norm(x_TD, layer.attention_norm, config.norm_eps)
    match layer.attention:
        case Attention():
            a_TD = _grouped_attention(ops, config, layer.attention, h_TD, tables, batch, cache, index)
        case LatentAttention():
            a_TD = _latent_attention(ops, config, layer.attention, h_TD, tables, batch, cache, index)
    return _normalized(ops, config, a_TD, layer.attention_post_norm)


def _normalized(ops: Ops, config: Config, x_TD: Array, norm: Weight | None) -> Array:
    """What is added to the residual stream, which some families normalize first."""
    return x_TD if norm is None else ops.rms_norm(x_TD, norm, config.norm_eps)


def _grouped_attention(ops: Ops, config: Config, weights: Attention, h_TD: Array, tables: Tables, batch: Batch,
                       cache: Cache | None, index: int) -> Array:
    q_TD, k_TD, v_TD = ops.linears(h_TD, (weights.wq, weights.wk, weights.wv))
    if weights.bq is not None and weights.bk is not None and weights.bv is not None:
        q_TD, k_TD, v_TD = ops.bias(q_TD, weights.bq), ops.bias(k_TD, weights.bk), ops.bias(v_TD, weights.bv)
    q_THE, k_TKE = ops.heads(q_TD, config.num_heads), ops.heads(k_TD, config.num_kv_heads)
    if weights.q_norm is not None and weights.k_norm is not None:
        q_THE = ops.rms_norm(q_THE, weights.q_norm, config.norm_eps)
        k_TKE = ops.rms_norm(k_TKE, weights.k_norm, config.norm_eps)
    rope = config.rope_of(index)
    if rope is not None:
        q_THE = ops.rope(q_THE, tables[rope], rope.layout)
        k_TKE = ops.rope(k_TKE, tables[rope], rope.layout)
    q_THE = _scaled_queries(ops, config, q_THE, batch)
    v_TKE = ops.heads(v_TD, config.num_kv_heads)
    o_TD = ops.attend(q_THE, k_TKE, v_TKE, batch, cache, index, config.attention_scale, config.window(index))
    return ops.linear(o_TD, weights.wo)


def _latent_attention(ops: Ops, config: Config, weights: LatentAttention, h_TD: Array, tables: Tables, batch: Batch,
                      cache: Cache | None, index: int) -> Array:
    """Attention to latents in place of keys and values (R rotated numbers of a head, C of a latent and its key)."""
    assert config.latent is not None, "a layer with latent attention in a model without"
    nope_dim, rank, rope = config.latent.nope_dim, config.latent.rank, config.rope
    table_TR = tables[rope]
    query_TQ, key_TC = ops.linears(h_TD, (weights.wq_a, weights.wkv_a))
    query_TQ = ops.rms_norm(query_TQ, weights.q_a_norm, config.norm_eps)
    q_THE = ops.heads(ops.linear(query_TQ, weights.wq_b), config.num_heads)
    rotated_THR = ops.rope(ops.columns(q_THE, nope_dim, nope_dim + rope.dim), table_TR, rope.layout)
    absorbed_THC = ops.heads_linear(ops.columns(q_THE, 0, nope_dim), weights.wk_b)
    q_THC = _scaled_queries(ops, config, ops.concat(absorbed_THC, rotated_THR), batch)
    kv_T1C = ops.heads(key_TC, 1)
    latent_T1C = ops.rms_norm(ops.columns(kv_T1C, 0, rank), weights.kv_a_norm, config.norm_eps)
    key_T1R = ops.rope(ops.columns(kv_T1C, rank, rank + rope.dim), table_TR, rope.layout)
    o_THC = ops.attend_latent(q_THC, ops.concat(latent_T1C, key_T1R), batch, cache, index, config.attention_scale,
                              rank)
    return ops.linear(ops.flat(ops.heads_linear(o_THC, weights.wv_b)), weights.wo)


def _scaled_queries(ops: Ops, config: Config, q_THE: Array, batch: Batch) -> Array:
    temperature = config.query_temperature
    if temperature is None:
        return q_THE
    return ops.scale_queries(q_THE, batch.positions, temperature.beta, temperature.period)


def _feed_forward(ops: Ops, config: Config, layer: Layer, x_TD: Array) -> Array:
    h_TD = ops.rms_norm(x_TD, layer.ffn_norm, config.norm_eps)
    match layer.feed_forward:
        case FeedForward():
            f_TD = gated(ops, layer.feed_forward, h_TD, config.activation)
        case Mixture():
            f_TD = _mixture(ops, config, layer.feed_forward, h_TD)
    return _normalized(ops, config, f_TD, layer.ffn_post_norm)


def _mixture(ops: Ops, config: Config, weights: Mixture, h_TD: Array) -> Array:
    """Sum of the chosen experts, each times its gate, and the shared expert, which has none."""
    assert config.experts is not None, "a layer with experts in a model without"
    gates_TX = ops.route(ops.linear(h_TD, weights.router), config.experts.per_token, config.experts.scale)
    y_TD = ops.experts(h_TD, gates_TX, weights.w1, weights.w2, weights.w3)
    return y_TD if weights.shared is None else ops.add(y_TD, gated(ops, weights.shared, h_TD, config.activation))


def gated(ops: Ops, weights: FeedForward, h_TD: Array, activation: Activation) -> Array:
    """w2 (activation(w1 h) * w3 h)."""
    gate_TF, up_TF = ops.linears(h_TD, (weights.w1, weights.w3))
    inner_TF = ops.silu_mul(gate_TF, up_TF) if activation == "silu" else ops.gelu_mul(gate_TF, up_TF)
    return ops.linear(inner_TF, weights.w2)
