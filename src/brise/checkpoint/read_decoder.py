"""Reads a decoder, its Config and its Weights, from files of any format.

A format implements two protocols: ConfigSource (its keys, and what it says in a way of its own) and TensorSource (a
weight by its path). Names and differences of the families stand in models/families.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import isfinite, sqrt
from typing import Protocol

from brise.errors import CheckpointError
from brise.files.fields import LARGEST, Fields, IgnoredKey
from brise.models.config import Config, Experts, Latent, QueryTemperature
from brise.models.families import FAMILIES, KEYS, MULTIPLIERS, Format, keys_of
from brise.models.lora import matrix_shapes
from brise.models.rope import Rope, extended_context, frequencies
from brise.models.siglip import ImageConfig
from brise.models.weights import (
    Attention,
    Dense,
    FeedForward,
    LatentAttention,
    Layer,
    Mixture,
    Quant,
    Stack,
    Stored,
    Weight,
    Weights,
    part,
)
from brise.models.whisper import AudioConfig


@dataclass(frozen=True)
class Description:
    """What a config.json or a params.json says about a model.

    `scale_block` is how many rows and columns share a scale, where weights are scaled by blocks; `ignored` are the
    keys that changed nothing; `is_tied` says whether the head is the embedding.
    """

    config: Config
    vision: ImageConfig | None
    scale_block: tuple[int, int] | None
    is_tied: bool | None = field(default=None, compare=False)  # what the file says; None: nothing
    ignored: tuple[IgnoredKey, ...] = field(default=(), compare=False)
    audio: AudioConfig | None = None


class ConfigSource(Protocol):
    """The description of a decoder in one file. Each number is read once, so that no key is overlooked."""

    format: Format
    fields: Fields

    @property
    def family(self) -> str:
        """A key of FAMILIES."""
    def vocab_size(self) -> int: ...
    def max_context(self) -> int: ...
    def head_dim(self, width: int, num_heads: int) -> int:
        """Of grouped-query attention."""
    def latent(self, num_heads: int) -> tuple[Latent, int]:
        """Sizes of latent attention, and how many numbers of a head are rotated."""
    def rope(self, dim: int, head_dim: int, max_context: int) -> tuple[Rope, QueryTemperature | None]: ...
    def window(self, num_layers: int, max_context: int) -> int | None:
        """The sliding window, where it is smaller than the context."""
    def experts(self, num_layers: int) -> Fields:
        """The keys that hold the numbers of the experts."""
    def softmax_scale(self) -> float | None: ...
    def multiplier(self, path: str) -> float:
        """Of a family that has them: what the key of this path in KEYS says, 1 where there is none."""
    def layers_without_rope(self, num_layers: int) -> tuple[int, ...]: ...
    def full_layers(self, num_layers: int) -> tuple[int, ...]:
        """Of a family with windows in some layers: those without."""
    def window_rope(self, dim: int) -> Rope:
        """Of such a family: the rotation in layers with a window."""


class TensorSource(Protocol):
    """The tensors of a decoder by path (layers.3.attention.wq), each of the shape that is asked for, or an error."""

    def has(self, path: str) -> bool:
        """Whether the file has this tensor; `path` may be one of families.JOINED, which not every family has."""
    def vector(self, path: str, size: int) -> Dense | Stored: ...
    def matrix(self, path: str, rows: int, cols: int, num_heads: int | None = None) -> Dense | Quant | Stored:
        """With `num_heads` its rows are heads of rope pairs that lie as neighbours in memory."""
    def key_value(self, path: str, latent: Latent, num_heads: int) -> tuple[Stack, Stack]:
        """wk_b and wv_b of the attention at `path`."""
    def experts(self, path: str, experts: Experts, width: int) -> tuple[Stack, Stack, Stack]:
        """w1, w2 and w3 of all experts of the mixture at `path`."""


def read_config(source: ConfigSource) -> Config:
    """The decoder's sizes; an error names a value that cannot be or is not implemented."""
    family, fields = FAMILIES[source.family], source.fields
    width, num_layers = integer(source, "width"), integer(source, "num_layers")
    num_heads, max_context = integer(source, "num_heads"), source.max_context()
    latent = None
    if family.has_latent_attention:
        latent, rope_dim = source.latent(num_heads)
        head_dim, num_kv_heads = latent.nope_dim + rope_dim, 1
    else:
        head_dim = rope_dim = source.head_dim(width, num_heads)
        num_kv_heads = integer(source, "num_kv_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise fields.wrong(KEYS["num_kv_heads"].of(source.format)[0], f"a divisor of the {num_heads} query heads")
    rope, temperature = source.rope(rope_dim, head_dim, max_context)
    _check_frequencies(source, rope)
    max_context = _longest_context(source, rope, max_context)
    full_layers, window_rope = _layers(source, num_layers, rope.dim)
    return Config(
        family=source.family, vocab_size=source.vocab_size(), width=width, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, ffn_width=integer(source, "ffn_width"),
        norm_eps=fields.number(*KEYS["norm_eps"].of(source.format)), rope=rope, max_context=max_context,
        sliding_window=source.window(num_layers, max_context), query_temperature=temperature, latent=latent,
        experts=_experts(source, num_layers) if family.has_experts else None,
        softmax_scale=source.softmax_scale(), layers_without_rope=source.layers_without_rope(num_layers),
        layers_without_window=full_layers, window_rope=window_rope, activation=family.activation,
        **_multipliers(source, width))


def _multipliers(source: ConfigSource, width: int) -> dict[str, float]:
    family = FAMILIES[source.family]
    if family.scales_embedding:
        return {"embedding_scale": sqrt(width)}
    return {name: source.multiplier(name) for name in MULTIPLIERS if family.has_multipliers}


def _layers(source: ConfigSource, num_layers: int, rope_dim: int) -> tuple[tuple[int, ...], Rope | None]:
    """The layers without a window, and the rotation in the others; neither where all layers are alike."""
    if FAMILIES[source.family].full_interval is None:
        return (), None
    full_layers = source.full_layers(num_layers)
    if len(full_layers) == num_layers:
        return (), None
    window_rope = source.window_rope(rope_dim)
    _check_frequencies(source, window_rope)
    return full_layers, window_rope


def _check_frequencies(source: ConfigSource, rope: Rope) -> None:
    """CheckpointError where the numbers of the file lead to no frequencies, as with a beta_slow of 1e308."""
    try:
        inv_freq, factor = frequencies(rope)
        are_finite = all(map(isfinite, (*inv_freq, factor)))
    except (ValueError, ArithmeticError):
        are_finite = False
    if not are_finite:
        raise CheckpointError(f"the rotary scaling gives no finite frequencies: {rope.scaling} with the base "
                              f"{rope.theta:g}", field="rope", value=str(rope.scaling), limit="finite frequencies")


def _longest_context(source: ConfigSource, rope: Rope, stated: int) -> int:
    longest = extended_context(rope.scaling, stated)
    if longest > LARGEST:
        raise source.fields.wrong(KEYS["max_context"].of(source.format)[0],
                                  f"a context of up to {LARGEST} with the rotary scaling")
    return int(longest)


def integer(source: ConfigSource, path: str, *, default: int | None = None) -> int:
    """The number of the Config at this path, from the keys that the source's format has for it."""
    return source.fields.integer(*keys_of(source.family, path, source.format), default=default)


def latent_of(source: ConfigSource) -> tuple[Latent, int]:
    """What ConfigSource.latent gives, where the sizes stand under the names of KEYS."""
    latent = Latent(*(integer(source, f"latent.{name}") for name in ("query_rank", "rank", "nope_dim", "value_dim")))
    return latent, integer(source, "rope.dim")


def _experts(source: ConfigSource, num_layers: int) -> Experts:
    fields = source.experts(num_layers)

    def count(name: str, default: int | None = None, least: int = 1) -> int:
        return fields.integer(*KEYS[f"experts.{name}"].of(source.format), default=default, least=least)

    is_mixtral = not FAMILIES[source.family].has_latent_attention
    total, per_token = count("count"), count("per_token")
    width = integer(source, "ffn_width") if is_mixtral else count("width")
    if per_token > total:
        raise fields.wrong(KEYS["experts.per_token"].of(source.format)[0], f"at most {total}, the number of experts")
    if is_mixtral:
        return Experts(total, per_token, width)
    shared_width = width * count("num_shared", 0, 0)
    if source.format == "gguf":
        shared_width = fields.integer("expert_shared_feed_forward_length", default=shared_width, least=0)
    return Experts(total, per_token, width, shared_width, count("num_dense_layers", 0, 0),
                   fields.number(*KEYS["experts.scale"].of(source.format), default=1.0))


def read_weights(tensors: TensorSource, config: Config) -> Weights:
    """All weights of the decoder; a missing or misshapen tensor is an error naming it."""
    table = tensors.matrix("tok_embeddings", config.vocab_size, config.width)
    layers = tuple(_layer(tensors, config, index) for index in range(config.num_layers))
    norm = tensors.vector("norm", config.width)
    output = tensors.matrix("output", config.vocab_size, config.width) if tensors.has("output") else table
    return Weights(table, layers, norm, output)


def _layer(tensors: TensorSource, config: Config, index: int) -> Layer:
    path, has_post_norms = f"layers.{index}", FAMILIES[config.family].has_post_norms
    return Layer(
        attention_norm=tensors.vector(f"{path}.attention_norm", config.width),
        attention=(_attention(tensors, config, f"{path}.attention") if config.latent is None
                   else _latent_attention(tensors, config, config.latent, f"{path}.attention")),
        ffn_norm=tensors.vector(f"{path}.ffn_norm", config.width),
        feed_forward=(_feed_forward(tensors, f"{path}.feed_forward", config.width, config.ffn_width)
                      if config.experts is None or index < config.experts.num_dense_layers
                      else _mixture(tensors, config.experts, f"{path}.feed_forward", config.width)),
        attention_post_norm=tensors.vector(f"{path}.attention_post_norm", config.width) if has_post_norms else None,
        ffn_post_norm=tensors.vector(f"{path}.ffn_post_norm", config.width) if has_post_norms else None)


def _attention(tensors: TensorSource, config: Config, path: str) -> Attention:
    family, shapes = FAMILIES[config.family], matrix_shapes(config)
    are_neighbours = config.rope.layout == "interleaved"
    q_heads, kv_heads = (config.num_heads, config.num_kv_heads) if are_neighbours else (None, None)
    wq, wk, wv = _matrices(tensors, path, {
        "wq": (*shapes["attention.wq"], q_heads), "wk": (*shapes["attention.wk"], kv_heads),
        "wv": (*shapes["attention.wv"], None)})
    q_width, kv_width = shapes["attention.wq"][0], shapes["attention.wk"][0]
    # Biases and norms would have to be reordered as the rows of wq and wk are.
    assert not (are_neighbours and (family.has_qkv_bias or family.has_head_norms))
    return Attention(
        wq=wq, wk=wk, wv=wv,
        wo=tensors.matrix(f"{path}.wo", *shapes["attention.wo"]),
        bq=tensors.vector(f"{path}.bq", q_width) if family.has_qkv_bias else None,
        bk=tensors.vector(f"{path}.bk", kv_width) if family.has_qkv_bias else None,
        bv=tensors.vector(f"{path}.bv", kv_width) if family.has_qkv_bias else None,
        q_norm=tensors.vector(f"{path}.q_norm", config.head_dim) if family.has_head_norms else None,
        k_norm=tensors.vector(f"{path}.k_norm", config.head_dim) if family.has_head_norms else None)


def _latent_attention(tensors: TensorSource, config: Config, latent: Latent, path: str) -> LatentAttention:
    """Rope pairs are neighbours in every file of this family."""
    width, num_heads = config.width, config.num_heads
    wk_b, wv_b = tensors.key_value(path, latent, num_heads)
    return LatentAttention(
        wq_a=tensors.matrix(f"{path}.wq_a", latent.query_rank, width),
        q_a_norm=tensors.vector(f"{path}.q_a_norm", latent.query_rank),
        wq_b=tensors.matrix(f"{path}.wq_b", num_heads * config.head_dim, latent.query_rank),
        wkv_a=tensors.matrix(f"{path}.wkv_a", config.cache_dim, width),
        kv_a_norm=tensors.vector(f"{path}.kv_a_norm", latent.rank), wk_b=wk_b, wv_b=wv_b,
        wo=tensors.matrix(f"{path}.wo", width, num_heads * latent.value_dim))


def _mixture(tensors: TensorSource, experts: Experts, path: str, width: int) -> Mixture:
    router = tensors.matrix(f"{path}.router", experts.count, width)
    w1, w2, w3 = tensors.experts(path, experts, width)
    shared = _feed_forward(tensors, f"{path}.shared", width, experts.shared_width) if experts.shared_width else None
    return Mixture(router, w1, w2, w3, shared)


def _feed_forward(tensors: TensorSource, path: str, width: int, ffn_width: int) -> FeedForward:
    w1, w3 = _matrices(tensors, path, {"w1": (ffn_width, width, None), "w3": (ffn_width, width, None)})
    return FeedForward(w1=w1, w2=tensors.matrix(f"{path}.w2", width, ffn_width), w3=w3)


def _matrices(tensors: TensorSource, path: str, shapes: Mapping[str, tuple[int, int, int | None]]) -> list[Weight]:
    """The matrices `path`.NAME by (rows, columns, num_heads), each a tensor of its own, or all of them one tensor.

    The files of a family that joins them may have them apart as well.
    """
    whole = f"{path}.{'_'.join(shapes)}"
    if tensors.has(f"{path}.{next(iter(shapes))}") or not tensors.has(whole):
        return [tensors.matrix(f"{path}.{name}", *shape) for name, shape in shapes.items()]
    ends = [0, *accumulate(rows for rows, _, _ in shapes.values())]
    matrix = tensors.matrix(whole, ends[-1], next(iter(shapes.values()))[1])
    return [part(matrix, first, last) for first, last in pairwise(ends)]
