"""Configuration and weights of a decoder from a GGUF file.

Sources: llama.cpp's naming of keys and tensors; for mistral3 also the other spellings that Ollama writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from brise.checkpoint.gguf import read_mla
from brise.checkpoint.gguf.file import GgufFile, StringArray
from brise.checkpoint.gguf.read_keys import GgufKeys
from brise.checkpoint.gguf.tensors import GgufTensors, missing
from brise.errors import UnsupportedError, bad_value
from brise.models.config import Config, Family, QueryTemperature
from brise.models.rope import Factors, Layout, Linear, Rope, Scaling, Yarn
from brise.models.weights import Attention, FeedForward, Layer, Weights

Architecture = Literal["llama", "mistral3", "deepseek2", "qwen2", "qwen3"]

# Converters permute q and k of Llama and Mistral so that rotated pairs are neighbours; Qwen's stay.
LAYOUTS: Mapping[Architecture, Layout] = MappingProxyType({
    "llama": "interleaved", "mistral3": "interleaved", "deepseek2": "interleaved", "qwen2": "half", "qwen3": "half"})

# The vision tower that Ollama packs into the same file; brise reads the text model.
VISION_KEYS = ("vision.", "mm.", "image_token_index", "spatial_merge_size")
VISION_TENSORS = ("v.", "mm.")

ROPE_FACTORS = "rope_freqs.weight"


def read_config(gguf: GgufFile) -> Config:
    """The decoder's sizes; UnsupportedError names an architecture or key that brise does not run."""
    architecture = _architecture(gguf)
    keys = GgufKeys(gguf.metadata, architecture)
    if architecture == "deepseek2":
        return _latent_config(gguf, keys)
    width, num_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = _head_dim(keys, width, num_heads)
    num_kv_heads = keys.integer("attention.head_count_kv", default=num_heads)
    if num_heads % num_kv_heads:
        raise bad_value("attention.head_count_kv", num_kv_heads, f"a divisor of the {num_heads} query heads")
    max_context = keys.integer("context_length")
    window = _sliding_window(keys, architecture, max_context)
    config = Config(
        family=_family(architecture, window), vocab_size=_vocab_size(gguf, keys), width=width,
        num_layers=keys.integer("block_count"), num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim, ffn_width=keys.integer("feed_forward_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(gguf, keys, architecture, head_dim), max_context=max_context, sliding_window=window,
        query_temperature=_query_temperature(keys) if architecture == "mistral3" else None)
    keys.refuse_rest(*(VISION_KEYS if architecture == "mistral3" else ()))
    return config


def read_weights(gguf: GgufFile, config: Config) -> Weights:
    """All weights as views over the file; a missing, misshapen or unknown tensor is an error naming it."""
    tensors = GgufTensors(gguf)
    read_layer = _layer if config.latent is None else read_mla.read_layer
    table = tensors.matrix("token_embd.weight", config.vocab_size, config.width)
    tied = "output.weight" not in gguf.tensors
    weights = Weights(
        tok_embeddings=table,
        layers=tuple(read_layer(tensors, config, index) for index in range(config.num_layers)),
        norm=tensors.vector("output_norm.weight", config.width),
        output=table if tied else tensors.matrix("output.weight", config.vocab_size, config.width))
    tensors.refuse_rest(ROPE_FACTORS, *(VISION_TENSORS if config.family == "ministral3" else ()))
    return weights


def _architecture(gguf: GgufFile) -> Architecture:
    name = gguf.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise bad_value("general.architecture", name, "a string")
    parts = gguf.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedError(f"the model is split over {parts} files (split.count), brise reads one",
                               hint="join them with llama-gguf-split --merge")
    for architecture in LAYOUTS:
        if name == architecture:
            return architecture
    raise UnsupportedError(f"the model's architecture is {name!r}, allowed are {', '.join(LAYOUTS)}")


def _latent_config(gguf: GgufFile, keys: GgufKeys) -> Config:
    num_layers, num_heads = keys.integer("block_count"), keys.integer("attention.head_count")
    read = read_mla.read_keys(keys, num_layers, num_heads)
    config = Config(
        family="mistral4", vocab_size=_vocab_size(gguf, keys), width=keys.integer("embedding_length"),
        num_layers=num_layers, num_heads=num_heads, num_kv_heads=1, head_dim=read.head_dim,
        ffn_width=keys.integer("feed_forward_length"), norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope=read.rope, max_context=keys.integer("context_length"), query_temperature=read.query_temperature,
        latent=read.latent, experts=read.experts, softmax_scale=read.softmax_scale)
    keys.refuse_rest()
    return config


def _family(architecture: Architecture, window: int | None) -> Family:
    match architecture:
        case "llama":
            return "llama" if window is None else "mistral"
        case "mistral3":
            return "ministral3"
        case "deepseek2":
            return "mistral4"
        case "qwen2" | "qwen3":
            return architecture


def _head_dim(keys: GgufKeys, width: int, num_heads: int) -> int:
    """Width of a head: of keys and values alike, which the attention op relies on."""
    if not keys.has("attention.key_length") and width % num_heads:
        raise bad_value("attention.head_count", num_heads, f"a divisor of the width {width}")
    head_dim = keys.integer("attention.key_length", default=width // num_heads)
    value_dim = keys.integer("attention.value_length", default=head_dim)
    if value_dim != head_dim:
        raise UnsupportedError(
            f"attention.value_length is {value_dim}, allowed is {head_dim}, the key length")
    if head_dim % 2:
        raise bad_value("attention.key_length", head_dim, "an even number")
    return head_dim


def _vocab_size(gguf: GgufFile, keys: GgufKeys) -> int:
    """Rows of the embedding; the key and the tokenizer must agree where they are there."""
    if "token_embd.weight" not in gguf.tensors:
        raise missing("token_embd.weight")
    rows = gguf.tensors["token_embd.weight"].shape[0]
    if keys.integer("vocab_size", default=rows) != rows:
        raise bad_value("vocab_size", keys.integer("vocab_size"), f"{rows}, the rows of token_embd.weight")
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, StringArray) and len(tokens) != rows:
        raise bad_value("length of tokenizer.ggml.tokens", len(tokens), f"{rows}, the rows of token_embd.weight")
    return rows


def _sliding_window(keys: GgufKeys, architecture: Architecture, max_context: int) -> int | None:
    """The window where it is smaller than the context.

    Qwen's spares the first layers, and the file does not say how many.
    """
    window = keys.integer("attention.sliding_window", default=0, least=0)
    if window == 0 or window >= max_context:
        return None
    if architecture in ("qwen2", "qwen3"):
        raise UnsupportedError(f"the model sets {architecture}.attention.sliding_window to {window}, "
                               f"allowed are 0 and the context of {max_context} or more")
    return window


def _query_temperature(keys: GgufKeys) -> QueryTemperature | None:
    beta = keys.number("attention.temperature_scale", "rope.scaling_beta", default=0.0, may_be_zero=True)
    if beta == 0:
        return None
    if keys.has("attention.temperature_length"):
        return QueryTemperature(beta, keys.integer("attention.temperature_length"))
    return QueryTemperature(beta, keys.integer("rope.scaling.original_context_length"))


def _rope(gguf: GgufFile, keys: GgufKeys, architecture: Architecture, head_dim: int) -> Rope:
    dim = keys.integer("rope.dimension_count", default=head_dim)
    if dim % 2 or dim > head_dim:
        raise bad_value("rope.dimension_count", dim, f"an even number up to the head's {head_dim}")
    theta = keys.number("rope.freq_base", default=10000.0)
    if theta <= 1:
        raise bad_value("rope.freq_base", theta, "a number over 1")
    return Rope(theta, dim, LAYOUTS[architecture], _scaling(gguf, keys, architecture, dim))


def _scaling(gguf: GgufFile, keys: GgufKeys, architecture: Architecture, dim: int) -> Scaling:
    # Ollama writes factor 0 and type "" where there is no scaling; llama.cpp takes a lone factor as linear.
    factor = keys.number("rope.scaling.factor", "rope.scale_linear", default=1.0, may_be_zero=True) or 1.0
    kind = keys.text("rope.scaling.type", default="") or ("none" if factor == 1 else "linear")
    if ROPE_FACTORS in gguf.tensors:
        if kind != "none":
            raise UnsupportedError(f"rope.scaling.type is {kind!r} beside {ROPE_FACTORS}, allowed is 'none'")
        return Factors(_rope_factors(gguf, dim // 2))
    match kind:
        case "none" | "default":
            return None
        case "linear":
            return Linear(factor) if factor != 1 else None
        case "yarn":
            return _yarn(keys, architecture, factor)
    raise UnsupportedError(f"rope.scaling.type is {kind!r}, allowed are 'none', 'linear' and 'yarn'")


def _yarn(keys: GgufKeys, architecture: Architecture, factor: float) -> Yarn:
    if factor < 1:
        raise bad_value("rope.scaling.factor", factor, "at least 1")
    original = keys.integer("rope.scaling.original_context_length")
    if architecture != "mistral3":  # the log multiplier means something else there, see NEUTRAL
        return Yarn(factor, original, _beta(keys, "fast", 32.0), _beta(keys, "slow", 1.0))
    return Yarn(
        factor, original, _beta(keys, "fast", 32.0), _beta(keys, "slow", 1.0),
        mscale=keys.number("rope.scaling.mscale", default=1.0, may_be_zero=True),
        mscale_all_dim=keys.number("rope.scaling.yarn_log_multiplier", "rope.scaling.mscale_all_dim",
                                   default=0.0, may_be_zero=True))


def _beta(keys: GgufKeys, speed: str, default: float) -> float:
    return keys.number(f"rope.scaling.yarn_beta_{speed}", f"rope.scaling.beta_{speed}", default=default)


def _rope_factors(gguf: GgufFile, count: int) -> tuple[float, ...]:
    tensor = gguf.tensors[ROPE_FACTORS]
    if tensor.format != "F32" or tensor.shape != (count,):
        raise bad_value(ROPE_FACTORS, f"{tensor.format} {tensor.shape}", f"F32 ({count},)")
    factors = tuple(float(factor) for factor in gguf.array(ROPE_FACTORS).astype(np.float64))
    for factor in factors:
        if not (factor > 0 and math.isfinite(factor)):
            raise bad_value(ROPE_FACTORS, factor, "finite numbers over 0")
    return factors


def _layer(tensors: GgufTensors, config: Config, index: int) -> Layer:
    name = f"blk.{index}"
    width, ffn_width = config.width, config.ffn_width
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    has_bias, has_norms = config.family == "qwen2", config.family == "qwen3"
    return Layer(
        attention_norm=tensors.vector(f"{name}.attn_norm.weight", width),
        attention=Attention(
            wq=tensors.matrix(f"{name}.attn_q.weight", q_width, width),
            wk=tensors.matrix(f"{name}.attn_k.weight", kv_width, width),
            wv=tensors.matrix(f"{name}.attn_v.weight", kv_width, width),
            wo=tensors.matrix(f"{name}.attn_output.weight", width, q_width),
            bq=tensors.vector(f"{name}.attn_q.bias", q_width) if has_bias else None,
            bk=tensors.vector(f"{name}.attn_k.bias", kv_width) if has_bias else None,
            bv=tensors.vector(f"{name}.attn_v.bias", kv_width) if has_bias else None,
            q_norm=tensors.vector(f"{name}.attn_q_norm.weight", config.head_dim) if has_norms else None,
            k_norm=tensors.vector(f"{name}.attn_k_norm.weight", config.head_dim) if has_norms else None),
        ffn_norm=tensors.vector(f"{name}.ffn_norm.weight", width),
        feed_forward=FeedForward(
            w1=tensors.matrix(f"{name}.ffn_gate.weight", ffn_width, width),
            w2=tensors.matrix(f"{name}.ffn_down.weight", width, ffn_width),
            w3=tensors.matrix(f"{name}.ffn_up.weight", ffn_width, width)))
