"""Mistral Large 3 in a GGUF file: latent attention and experts, under llama.cpp's architecture `deepseek2`.

The architecture is that of DeepSeek-V2 and V3 too, which route and scale in other ways: what they do and Large 3 does
not is refused by name.

The softmax scale is (nope + rope) ** -0.5. llama.cpp multiplies it by (0.1 ln(factor) + 1) ** 2 for every model of
this architecture with YaRN, in converted Large 3 files too: `rope.scaling.yarn_log_multiplier` is 0.1 there, and ten
times it is the multiplier of DeepSeek. Mistral's params.json says `apply_scale: false`, and other engines found
the accuracy better without. Whoever has a model that wants another scale gives it: the key `attention.scale` of the
file, or `softmax_scale` of the Config.
"""

from __future__ import annotations

from dataclasses import dataclass

from brise.checkpoint.gguf.read_keys import GgufKeys
from brise.checkpoint.gguf.tensors import GgufTensors
from brise.checkpoint.safetensors.latent_split import split
from brise.errors import UnsupportedError, bad_value
from brise.models.config import Config, Experts, Latent, QueryTemperature
from brise.models.rope import Rope, Yarn
from brise.models.weights import FeedForward, LatentAttention, Layer, Mixture, Stack

SOFTMAX_GATING = 1  # of llama.cpp's expert_gating_func; 0 is "not said", which for this architecture means softmax


@dataclass(frozen=True)
class LatentKeys:
    """What the keys of a file say beside the sizes that every decoder has."""

    latent: Latent
    head_dim: int
    experts: Experts
    rope: Rope
    query_temperature: QueryTemperature
    softmax_scale: float | None


def read_keys(keys: GgufKeys, num_layers: int, num_heads: int) -> LatentKeys:
    """The keys of latent attention, experts, rope and temperature; UnsupportedError names what Large 3 has not."""
    num_kv_heads = keys.integer("attention.head_count_kv", default=num_heads)
    rank = keys.integer("attention.kv_lora_rank")
    rope_dim = keys.integer("rope.dimension_count")
    if rope_dim % 2:
        raise bad_value("rope.dimension_count", rope_dim, "an even number")
    head_dim, value_dim = _head_dims(keys, rank, rope_dim)
    if num_kv_heads not in (1, num_heads):
        raise bad_value("attention.head_count_kv", num_kv_heads, f"1 or the {num_heads} query heads")
    if rope_dim >= head_dim:
        raise bad_value("rope.dimension_count", rope_dim, f"less than the head's {head_dim}")
    query_rank = keys.integer("attention.q_lora_rank")
    scale = keys.number("attention.scale", default=0.0, may_be_zero=True)
    return LatentKeys(Latent(query_rank, rank, head_dim - rope_dim, value_dim), head_dim, _experts(keys, num_layers),
                      _rope(keys, rope_dim), _temperature(keys), scale or None)


def read_layer(tensors: GgufTensors, config: Config, index: int) -> Layer:
    """One block: dense in the first layers, a mixture after them."""
    assert config.experts is not None
    name = f"blk.{index}"
    is_dense = index < config.experts.num_dense_layers
    return Layer(
        attention_norm=tensors.vector(f"{name}.attn_norm.weight", config.width),
        attention=_attention(tensors, config, name),
        ffn_norm=tensors.vector(f"{name}.ffn_norm.weight", config.width),
        feed_forward=(_feed_forward(tensors, config, f"{name}.ffn", "", config.ffn_width) if is_dense
                      else _mixture(tensors, config, config.experts, f"{name}.ffn")))


def _head_dims(keys: GgufKeys, rank: int, rope_dim: int) -> tuple[int, int]:
    """Numbers of a query and of a value. Newer files call them ..._mla, and give the cached vector's without."""
    key_length, value_length = keys.integer("attention.key_length"), keys.integer("attention.value_length")
    if not keys.has("attention.key_length_mla"):
        return key_length, value_length
    if (key_length, value_length) != (rank + rope_dim, rank):
        raise bad_value("attention.key_length and value_length", f"{key_length} and {value_length}",
                        f"{rank + rope_dim} and {rank}: the latent with and without the rotated key")
    return keys.integer("attention.key_length_mla"), keys.integer("attention.value_length_mla")


def _experts(keys: GgufKeys, num_layers: int) -> Experts:
    gating = keys.integer("expert_gating_func", default=SOFTMAX_GATING, least=0) or SOFTMAX_GATING
    if gating != SOFTMAX_GATING:
        raise UnsupportedError(f"expert_gating_func is {gating}, brise implements {SOFTMAX_GATING}, softmax")
    if not keys.flag("expert_weights_norm", default=False):
        raise UnsupportedError("expert_weights_norm is False, brise divides the gates of the chosen experts by their "
                               "sum, as Mistral Large 3 does")
    for key in ("expert_group_count", "expert_group_used_count"):
        groups = keys.integer(key, default=1, least=0)
        if groups > 1:
            raise UnsupportedError(f"{key} is {groups}, brise picks experts from all at once: 1")
    count, per_token = keys.integer("expert_count"), keys.integer("expert_used_count")
    if per_token > count:
        raise bad_value("expert_used_count", per_token, f"up to the {count} experts")
    width = keys.integer("expert_feed_forward_length")
    num_dense = keys.integer("leading_dense_block_count", default=0, least=0)
    if num_dense > num_layers:
        raise bad_value("leading_dense_block_count", num_dense, f"up to the {num_layers} layers")
    shared = keys.integer("expert_shared_count", default=0, least=0)
    return Experts(count, per_token, width, keys.integer("expert_shared_feed_forward_length", default=shared * width,
                                                         least=0),
                   num_dense, keys.number("expert_weights_scale", default=1.0))


def _rope(keys: GgufKeys, dim: int) -> Rope:
    theta = keys.number("rope.freq_base", default=10000.0)
    if theta <= 1:
        raise bad_value("rope.freq_base", theta, "a number over 1")
    kind = keys.text("rope.scaling.type", default="none")
    if kind == "none":
        return Rope(theta, dim, "interleaved")
    if kind != "yarn":
        raise UnsupportedError(f"rope.scaling.type is {kind!r}, allowed are 'none' and 'yarn'")
    factor = keys.number("rope.scaling.factor")
    if factor < 1:
        raise bad_value("rope.scaling.factor", factor, "at least 1")
    # Read so that it counts as known: it is about the softmax scale, and cosines stay as they are at any value.
    keys.number("rope.scaling.yarn_log_multiplier", default=0.0, may_be_zero=True)
    return Rope(theta, dim, "interleaved", Yarn(
        factor, keys.integer("rope.scaling.original_context_length"),
        keys.number("rope.scaling.yarn_beta_fast", default=32.0),
        keys.number("rope.scaling.yarn_beta_slow", default=1.0), attention_factor=1.0))


def _temperature(keys: GgufKeys) -> QueryTemperature:
    """Large 3 has it, DeepSeek has not: how a file without it wants its softmax scaled, we would have to guess."""
    if not keys.has("attention.temperature_scale"):
        raise UnsupportedError("the model has no attention.temperature_scale; of the architecture deepseek2 brise runs "
                               "Mistral Large 3, which has it")
    period = ("attention.temperature_length" if keys.has("attention.temperature_length")
              else "rope.scaling.original_context_length")
    return QueryTemperature(keys.number("attention.temperature_scale"), keys.integer(period))


def _attention(tensors: GgufTensors, config: Config, name: str) -> LatentAttention:
    assert config.latent is not None
    latent, heads = config.latent, config.num_heads
    wk_b, wv_b = _key_value(tensors, latent, heads, name)
    return LatentAttention(
        wq_a=tensors.matrix(f"{name}.attn_q_a.weight", latent.query_rank, config.width),
        q_a_norm=tensors.vector(f"{name}.attn_q_a_norm.weight", latent.query_rank),
        wq_b=tensors.matrix(f"{name}.attn_q_b.weight", heads * config.head_dim, latent.query_rank),
        wkv_a=tensors.matrix(f"{name}.attn_kv_a_mqa.weight", config.cache_dim, config.width),
        kv_a_norm=tensors.vector(f"{name}.attn_kv_a_norm.weight", latent.rank), wk_b=wk_b, wv_b=wv_b,
        wo=tensors.matrix(f"{name}.attn_output.weight", config.width, heads * latent.value_dim))


def _key_value(tensors: GgufTensors, latent: Latent, heads: int, name: str) -> tuple[Stack, Stack]:
    """Newer files have the keys' half turned already, older ones both halves in one matrix."""
    if not tensors.has(f"{name}.attn_kv_b.weight"):
        return (tensors.stack(f"{name}.attn_k_b.weight", heads, latent.rank, latent.nope_dim),
                tensors.stack(f"{name}.attn_v_b.weight", heads, latent.value_dim, latent.rank))
    rows = heads * (latent.nope_dim + latent.value_dim)
    whole = tensors.matrix(f"{name}.attn_kv_b.weight", rows, latent.rank)
    return split(whole, heads, latent.nope_dim, latent.value_dim)


def _mixture(tensors: GgufTensors, config: Config, experts: Experts, name: str) -> Mixture:
    count, width, inner = experts.count, config.width, experts.width
    return Mixture(
        router=tensors.matrix(f"{name}_gate_inp.weight", count, width),
        w1=tensors.stack(f"{name}_gate_exps.weight", count, inner, width),
        w2=tensors.stack(f"{name}_down_exps.weight", count, width, inner),
        w3=tensors.stack(f"{name}_up_exps.weight", count, inner, width),
        shared=_feed_forward(tensors, config, name, "_shexp", experts.shared_width) if experts.shared_width else None)


def _feed_forward(tensors: GgufTensors, config: Config, name: str, tail: str, inner: int) -> FeedForward:
    return FeedForward(
        w1=tensors.matrix(f"{name}_gate{tail}.weight", inner, config.width),
        w2=tensors.matrix(f"{name}_down{tail}.weight", config.width, inner),
        w3=tensors.matrix(f"{name}_up{tail}.weight", inner, config.width))
