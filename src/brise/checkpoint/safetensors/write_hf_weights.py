"""Writes weights of a decoder and its encoder under Hugging Face's names; read_model.py reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from brise.checkpoint.read_audio import tensor_name
from brise.checkpoint.read_siglip import shifted, transposed
from brise.checkpoint.read_siglip import tensor_name as siglip_name
from brise.checkpoint.safetensors.tensor_names import ModuleNames, hf_names, hf_vision_names
from brise.models.config import Config
from brise.models.pixtral import NUM_CHANNELS, VisionConfig
from brise.models.siglip import ImageConfig, ImageWeights, SiglipWeights
from brise.models.weights import (
    Array,
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
    place,
)
from brise.models.whisper import KERNEL, AudioConfig, AudioWeights
from brise.quant.rows import float_rows, format_of, joined, raw_rows

Tensor = tuple[str, Weight, tuple[int, ...]]  # name, numbers, and the shape that the file says


def text_tensors(weights: Weights, config: Config, *, is_wrapped: bool) -> Iterator[Tensor]:
    """All tensors of the decoder; `is_wrapped`: with the prefixes of a model that has an encoder."""
    prefix = "language_model.model." if is_wrapped else "model."
    names = hf_names({f"{prefix}embed_tokens.weight"}, config.family, is_mixtral=config.family == "mixtral")
    head = "language_model.lm_head" if is_wrapped else names.module("output")
    yield _plain(f"{names.module('tok_embeddings')}.weight", weights.tok_embeddings)
    for index, layer in enumerate(weights.layers):
        yield from _layer(names, config, f"layers.{index}", layer)
    yield _plain(f"{names.module('norm')}.weight", _norm(names, weights.norm))
    if weights.output is not weights.tok_embeddings:
        yield _plain(f"{head}.weight", weights.output)


def vision_tensors(weights: ImageWeights, config: ImageConfig) -> Iterator[Tensor]:
    """All tensors of the vision encoder and the projector."""
    if isinstance(weights, SiglipWeights):
        yield from _siglip(weights, config)
        return
    assert isinstance(config, VisionConfig), "a config and weights of two kinds"
    names = hf_vision_names(())
    placed: list[tuple[str, Weight]] = []

    def note(path: str, weight: Weight) -> Weight:
        placed.append((path, weight))
        return weight

    place(replace(weights, break_row=None), note)
    for path, weight in placed:
        name = f"{names.module(path)}.weight"
        if path == "patch_conv":
            yield name, weight, (config.width, NUM_CHANNELS, config.patch_size, config.patch_size)
        elif path.endswith((".wq", ".wk")):
            yield _plain(name, _halves(weight, config.num_heads))
        else:
            yield _plain(name, weight)


def _siglip(weights: SiglipWeights, config: ImageConfig) -> Iterator[Tensor]:
    placed: list[tuple[str, Weight]] = []

    def note(path: str, weight: Weight) -> Weight:
        placed.append((path, weight))
        return weight

    place(weights, note)
    for path, weight in placed:
        name = siglip_name(path, "hf")
        if path == "patch_conv":
            yield name, weight, (config.width, NUM_CHANNELS, config.patch_size, config.patch_size)
        else:
            yield _plain(name, transposed(weight) if path == "projection" else
                         shifted(weight, -1) if path == "pool_norm" else weight)


def audio_tensors(weights: AudioWeights, config: AudioConfig) -> Iterator[Tensor]:
    """All tensors of the audio encoder and the projector."""
    placed: list[tuple[str, Weight]] = []

    def note(path: str, weight: Weight) -> Weight:
        placed.append((path, weight))
        return weight

    place(weights, note)
    for path, weight in placed:
        channels = {"conv1": config.num_mels, "conv2": config.width}.get(path)
        shape = weight.shape if channels is None else (config.width, channels, KERNEL)
        yield tensor_name(path, "hf"), weight, shape


def _plain(name: str, weight: Weight) -> Tensor:
    return name, weight, weight.shape


def _layer(names: ModuleNames, config: Config, path: str, layer: Layer) -> Iterator[Tensor]:
    def named(tail: str, weight: Weight, kind: str = "weight") -> Tensor:
        own = _norm(names, weight) if tail.endswith("norm") else weight
        return _plain(f"{names.module(f'{path}.{tail}')}.{kind}", own)

    yield named("attention_norm", layer.attention_norm)
    match layer.attention:
        case Attention():
            yield from _attention(named, names, path, config, layer.attention)
        case LatentAttention():
            yield from _latent(named, config, layer.attention)
    for tail, norm in (("attention_post_norm", layer.attention_post_norm), ("ffn_norm", layer.ffn_norm),
                       ("ffn_post_norm", layer.ffn_post_norm)):
        if norm is not None:
            yield named(tail, norm)
    match layer.feed_forward:
        case FeedForward(w1, w2, w3):
            yield from _or_joined(named, names, f"{path}.feed_forward", {"w1": w1, "w3": w3})
            yield named("feed_forward.w2", w2)
        case Mixture():
            yield named("feed_forward.router", layer.feed_forward.router)
            yield from (_single_experts if config.family == "mixtral" else _experts)(
                names, f"{path}.feed_forward", layer.feed_forward)
            if layer.feed_forward.shared is not None:
                shared = layer.feed_forward.shared
                for tail, weight in (("w1", shared.w1), ("w2", shared.w2), ("w3", shared.w3)):
                    yield named(f"feed_forward.shared.{tail}", weight)


def _or_joined(named: Callable[..., Tensor], names: ModuleNames, path: str,
               matrices: Mapping[str, Weight]) -> Iterator[Tensor]:
    """These matrices of `path`, as one where the family's files have them so."""
    kind, whole = path.rsplit(".", 1)[1], "_".join(matrices)
    if names.has(f"{path}.{whole}"):
        yield named(f"{kind}.{whole}", joined(tuple(matrices.values())))
        return
    for tail, weight in matrices.items():
        yield named(f"{kind}.{tail}", weight)


def _attention(named: Callable[..., Tensor], names: ModuleNames, path: str, config: Config,
               attention: Attention) -> Iterator[Tensor]:
    """Rope pairs as halves, which is how some families have them in memory too."""
    wq, wk = attention.wq, attention.wk
    if config.rope.layout == "interleaved":
        wq, wk = _halves(wq, config.num_heads), _halves(wk, config.num_kv_heads)
    yield from _or_joined(named, names, f"{path}.attention", {"wq": wq, "wk": wk, "wv": attention.wv})
    yield named("attention.wo", attention.wo)
    for tail, bias in (("wq", attention.bq), ("wk", attention.bk), ("wv", attention.bv)):
        if bias is not None:
            yield named(f"attention.{tail}", bias, "bias")
    for tail, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
        if norm is not None:
            yield named(f"attention.{tail}", norm)


def _latent(named: Callable[..., Tensor], config: Config, attention: LatentAttention) -> Iterator[Tensor]:
    for tail, weight in (("wq_a", attention.wq_a), ("q_a_norm", attention.q_a_norm), ("wq_b", attention.wq_b),
                         ("wkv_a", attention.wkv_a), ("kv_a_norm", attention.kv_a_norm), ("wo", attention.wo)):
        yield named(f"attention.{tail}", weight)
    assert config.latent is not None and isinstance(attention.wk_b, Stack) and isinstance(attention.wv_b, Stack)
    heads = Stack(tuple(_key_value(key, value) for key, value in zip(
        attention.wk_b.matrices, attention.wv_b.matrices, strict=True)))
    name, _, _ = named("attention.wkv_b", heads)
    yield name, heads, (heads.shape[0] * heads.shape[1], heads.shape[2])


def _experts(names: ModuleNames, path: str, mixture: Mixture) -> Iterator[Tensor]:
    """transformers keeps all experts in two tensors, which have no `.weight`; rows of the gate come first."""
    experts = names.module(f"{path}.experts")
    assert isinstance(mixture.w1, Stack) and isinstance(mixture.w3, Stack)
    both = Stack(tuple(_below(gate, up) for gate, up in zip(mixture.w1.matrices, mixture.w3.matrices, strict=True)))
    yield _plain(f"{experts}.gate_up_proj", both)
    yield _plain(f"{experts}.down_proj", mixture.w2)


def _single_experts(names: ModuleNames, path: str, mixture: Mixture) -> Iterator[Tensor]:
    """Every matrix by itself, which is what Mixtral's folders have and every reader of them takes."""
    for name, stack in (("w1", mixture.w1), ("w2", mixture.w2), ("w3", mixture.w3)):
        assert isinstance(stack, Stack)
        for index, matrix in enumerate(stack.matrices):
            yield _plain(f"{names.expert(path, index, name)}.weight", matrix)


def _norm(names: ModuleNames, weight: Weight) -> Weight:
    """A norm as the file holds it."""
    if not names.norms_less_one:
        return weight
    return Stored("F32", weight.shape, lambda first, last: float_rows(weight, 0, 1)[0, first:last] - np.float32(1))


def _halves(weight: Weight, num_heads: int) -> Weight:
    """The same rows with rope pairs as halves of a head in place of neighbours."""
    rows = weight.shape[0]
    order = np.arange(rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def read(first: int, last: int) -> Array:
        wanted = order[first:last]
        start = int(wanted.min())
        return raw_rows(weight, start, int(wanted.max()) + 1)[wanted - start]

    return Stored(format_of(weight), weight.shape, read)


def _below(top: Dense | Quant | Stored, bottom: Dense | Quant | Stored) -> Stored:
    """The rows of one matrix, then those of another."""
    both = joined((top, bottom))
    assert isinstance(both, Stored)
    return both


def _key_value(key: Dense | Quant | Stored, value: Dense | Quant | Stored) -> Stored:
    """A head's rows of wkv_b: its keys' matrix transposed back, then its values'."""
    def read(first: int, last: int) -> Array:
        keys = float_rows(key, 0, key.shape[0]).T
        return np.concatenate([keys, float_rows(value, 0, value.shape[0])])[first:last]

    return Stored("F32", (key.shape[1] + value.shape[0], value.shape[1]), read)
