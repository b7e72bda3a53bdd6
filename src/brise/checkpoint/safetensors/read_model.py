"""Weights of a decoder and of its vision tower from safetensors files, under any of their names."""

from __future__ import annotations

from brise.checkpoint.safetensors.latent_split import split
from brise.checkpoint.safetensors.tensor_names import Names
from brise.checkpoint.safetensors.tensors import Matrix, SafetensorsTensors
from brise.models.config import Config, Experts, Latent
from brise.models.pixtral import NUM_CHANNELS, VisionConfig, VisionWeights
from brise.models.weights import Attention, FeedForward, LatentAttention, Layer, Mixture, Stack, Weights, part


def read_weights(tensors: SafetensorsTensors, names: Names, config: Config) -> Weights:
    """All weights of the decoder; a missing or misshapen tensor is an error naming it."""
    table = tensors.matrix(names.module("tok_embeddings"), config.vocab_size, config.width)
    output = names.module("output")
    tied = not tensors.has(f"{output}.weight")
    return Weights(
        tok_embeddings=table,
        layers=tuple(_layer(tensors, names, config, index) for index in range(config.num_layers)),
        norm=tensors.vector(names.module("norm"), config.width),
        output=table if tied else tensors.matrix(output, config.vocab_size, config.width))


def read_vision(tensors: SafetensorsTensors, names: Names, config: VisionConfig) -> VisionWeights:
    """All weights of the tower and the projector."""
    width, text_width = config.width, config.text_width
    kernel = (NUM_CHANNELS, config.patch_size, config.patch_size)
    return VisionWeights(
        patch_conv=tensors.kernel(names.module("patch_conv"), width, kernel),
        ln_pre=tensors.vector(names.module("ln_pre"), width),
        layers=tuple(_vision_layer(tensors, names, config, index) for index in range(config.num_layers)),
        norm=tensors.vector(names.module("norm"), width),
        merging_layer=tensors.matrix(names.module("merging_layer"), width, width * config.merge**2),
        w_in=tensors.matrix(names.module("w_in"), text_width, width),
        w_out=tensors.matrix(names.module("w_out"), text_width, text_width))


def _layer(tensors: SafetensorsTensors, names: Names, config: Config, index: int) -> Layer:
    path = f"layers.{index}"
    has_experts = config.experts is not None and index >= config.experts.num_dense_layers
    return Layer(
        attention_norm=tensors.vector(names.module(f"{path}.attention_norm"), config.width),
        attention=(_attention(tensors, names, config, path) if config.latent is None
                   else _latent_attention(tensors, names, config, config.latent, path)),
        ffn_norm=tensors.vector(names.module(f"{path}.ffn_norm"), config.width),
        feed_forward=(_mixture(tensors, names, config.width, config.experts, path)
                      if config.experts is not None and has_experts
                      else _feed_forward(tensors, names, f"{path}.feed_forward", config.width, config.ffn_width)))


def _attention(tensors: SafetensorsTensors, names: Names, config: Config, path: str) -> Attention:
    """Rope pairs become neighbours, but for Qwen, whose GGUF files leave them apart as well."""
    width, q_width, kv_width = config.width, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    has_bias, has_norms = config.family == "qwen2", config.family == "qwen3"
    turns = names.are_halves and config.rope.layout == "interleaved"
    wq, wk, wv, wo = (names.module(f"{path}.attention.{name}") for name in ("wq", "wk", "wv", "wo"))
    return Attention(
        wq=tensors.matrix(wq, q_width, width, config.num_heads if turns else None),
        wk=tensors.matrix(wk, kv_width, width, config.num_kv_heads if turns else None),
        wv=tensors.matrix(wv, kv_width, width),
        wo=tensors.matrix(wo, width, q_width),
        bq=tensors.vector(wq, q_width, "bias") if has_bias else None,
        bk=tensors.vector(wk, kv_width, "bias") if has_bias else None,
        bv=tensors.vector(wv, kv_width, "bias") if has_bias else None,
        q_norm=_head_norm(tensors, names, config, f"{path}.attention.q_norm") if has_norms else None,
        k_norm=_head_norm(tensors, names, config, f"{path}.attention.k_norm") if has_norms else None)


def _head_norm(tensors: SafetensorsTensors, names: Names, config: Config, path: str) -> Matrix:
    return tensors.vector(names.module(path), config.head_dim)


def _latent_attention(tensors: SafetensorsTensors, names: Names, config: Config, latent: Latent,
                      path: str) -> LatentAttention:
    """Rope pairs are neighbours in every file of this family."""
    width, num_heads, both = config.width, config.num_heads, latent.nope_dim + latent.value_dim

    def module(name: str) -> str:
        return names.module(f"{path}.attention.{name}")

    wkv_b = tensors.matrix(module("wkv_b"), num_heads * both, latent.rank)
    wk_b, wv_b = split(wkv_b, num_heads, latent.nope_dim, latent.value_dim)
    return LatentAttention(
        wq_a=tensors.matrix(module("wq_a"), latent.query_rank, width),
        q_a_norm=tensors.vector(module("q_a_norm"), latent.query_rank),
        wq_b=tensors.matrix(module("wq_b"), num_heads * config.head_dim, latent.query_rank),
        wkv_a=tensors.matrix(module("wkv_a"), latent.rank + config.rope.dim, width),
        kv_a_norm=tensors.vector(module("kv_a_norm"), latent.rank),
        wk_b=wk_b, wv_b=wv_b, wo=tensors.matrix(module("wo"), width, num_heads * latent.value_dim))


def _mixture(tensors: SafetensorsTensors, names: Names, width: int, experts: Experts, path: str) -> Mixture:
    fused = names.module(f"{path}.experts.0.w1").rsplit(".", 2)[0]  # the module of all experts
    if tensors.has(f"{fused}.gate_up_proj"):
        w1, w2, w3 = _fused_experts(tensors, fused, width, experts)
    else:
        w1, w2, w3 = _single_experts(tensors, names, width, experts, path)
    return Mixture(
        router=tensors.matrix(names.module(f"{path}.router"), experts.count, width), w1=w1, w2=w2, w3=w3,
        shared=(_feed_forward(tensors, names, f"{path}.shared", width, experts.shared_width)
                if experts.shared_width else None))


def _fused_experts(tensors: SafetensorsTensors, module: str, width: int, experts: Experts) -> tuple[Stack, Stack,
                                                                                                    Stack]:
    """transformers keeps all experts in two tensors; rows of the gate come before those of up."""
    both = tensors.stacked(f"{module}.gate_up_proj", experts.count, 2 * experts.width, width)
    down = tensors.stacked(f"{module}.down_proj", experts.count, width, experts.width)
    gates = tuple(part(matrix, 0, experts.width) for matrix in both)
    ups = tuple(part(matrix, experts.width, 2 * experts.width) for matrix in both)
    return Stack(gates), Stack(tuple(down)), Stack(ups)


def _single_experts(tensors: SafetensorsTensors, names: Names, width: int, experts: Experts,
                    path: str) -> tuple[Stack, Stack, Stack]:
    def stack(name: str, rows: int, cols: int) -> Stack:
        modules = (names.module(f"{path}.experts.{index}.{name}") for index in range(experts.count))
        return Stack(tuple(tensors.matrix(module, rows, cols) for module in modules))

    return stack("w1", experts.width, width), stack("w2", width, experts.width), stack("w3", experts.width, width)


def _feed_forward(tensors: SafetensorsTensors, names: Names, path: str, width: int, ffn_width: int) -> FeedForward:
    return FeedForward(w1=tensors.matrix(names.module(f"{path}.w1"), ffn_width, width),
                       w2=tensors.matrix(names.module(f"{path}.w2"), width, ffn_width),
                       w3=tensors.matrix(names.module(f"{path}.w3"), ffn_width, width))


def _vision_layer(tensors: SafetensorsTensors, names: Names, config: VisionConfig, index: int) -> Layer:
    path, width = f"layers.{index}", config.width
    inner = config.num_heads * config.head_dim
    turned = config.num_heads if names.are_halves else None

    def module(name: str) -> str:
        return names.module(f"{path}.{name}")

    return Layer(
        attention_norm=tensors.vector(module("attention_norm"), width),
        attention=Attention(
            wq=tensors.matrix(module("attention.wq"), inner, width, turned),
            wk=tensors.matrix(module("attention.wk"), inner, width, turned),
            wv=tensors.matrix(module("attention.wv"), inner, width),
            wo=tensors.matrix(module("attention.wo"), width, inner)),
        ffn_norm=tensors.vector(module("ffn_norm"), width),
        feed_forward=_feed_forward(tensors, names, f"{path}.feed_forward", width, config.ffn_width))
