"""Reads the weights of a decoder and its encoder of images or audio from safetensors, under any of its names."""

from __future__ import annotations

import numpy as np

from brise.checkpoint import read_decoder
from brise.checkpoint.read_audio import tensor_name
from brise.checkpoint.safetensors.read_tensors import Matrix, SafetensorsTensors
from brise.checkpoint.safetensors.tensor_names import ModuleNames
from brise.checkpoint.split_latent import split
from brise.models.config import Config, Experts, Latent
from brise.models.families import AUDIO_TENSORS, Format
from brise.models.pixtral import NUM_CHANNELS, VisionConfig, VisionWeights
from brise.models.weights import Attention, Dense, FeedForward, Layer, Stack, Stored, Weights, part
from brise.models.whisper import KERNEL
from brise.quant.rows import float_rows


def read_weights(tensors: SafetensorsTensors, names: ModuleNames, config: Config) -> Weights:
    """All weights of the decoder; a missing or misshapen tensor is an error naming it."""
    return read_decoder.read_weights(NamedTensors(tensors, names), config)


class NamedTensors:
    """The tensors of a folder by path in place of their names (read_decoder.TensorSource)."""

    def __init__(self, tensors: SafetensorsTensors, names: ModuleNames) -> None:
        self._tensors, self._names = tensors, names

    def has(self, path: str) -> bool:
        return self._names.has(path) and self._tensors.has(f"{self._names.module(path)}.weight")

    def vector(self, path: str, size: int) -> Dense | Stored:
        is_bias = path.endswith((".bq", ".bk", ".bv"))
        weight = self._tensors.vector(self._names.module(path), size, "bias" if is_bias else "weight")
        if not (self._names.norms_less_one and path.endswith("norm")):
            return weight
        # As transformers does: 1 + weight in float32.
        return Stored("F32", weight.shape, lambda first, last: float_rows(weight, 0, 1)[0, first:last] + np.float32(1))

    def matrix(self, path: str, rows: int, cols: int, num_heads: int | None = None) -> Matrix:
        return self._tensors.matrix(self._names.module(path), rows, cols, num_heads if self._names.are_halves else None)

    def key_value(self, path: str, latent: Latent, num_heads: int) -> tuple[Stack, Stack]:
        rows = num_heads * (latent.nope_dim + latent.value_dim)
        return split(self.matrix(f"{path}.wkv_b", rows, latent.rank), num_heads, latent.nope_dim, latent.value_dim)

    def experts(self, path: str, experts: Experts, width: int) -> tuple[Stack, Stack, Stack]:
        if self._tensors.has(f"{self._names.module(f'{path}.experts')}.gate_up_proj"):
            return self._fused_experts(self._names.module(f"{path}.experts"), experts, width)

        def stack(name: str, rows: int, cols: int) -> Stack:
            modules = (self._names.expert(path, index, name) for index in range(experts.count))
            return Stack(tuple(self._tensors.matrix(module, rows, cols) for module in modules))

        return stack("w1", experts.width, width), stack("w2", width, experts.width), stack("w3", experts.width, width)

    def _fused_experts(self, module: str, experts: Experts, width: int) -> tuple[Stack, Stack, Stack]:
        """transformers keeps all experts in two tensors; rows of the gate come before those of up."""
        both = self._tensors.stacked(f"{module}.gate_up_proj", experts.count, 2 * experts.width, width)
        down = self._tensors.stacked(f"{module}.down_proj", experts.count, width, experts.width)
        gates = tuple(part(matrix, 0, experts.width) for matrix in both)
        ups = tuple(part(matrix, experts.width, 2 * experts.width) for matrix in both)
        return Stack(gates), Stack(tuple(down)), Stack(ups)


class NamedAudioTensors:
    """The tensors of an audio encoder by path (read_audio.AudioTensors)."""

    def __init__(self, tensors: SafetensorsTensors, format: Format, prefix: str) -> None:
        self._tensors, self._format, self._prefix = tensors, format, prefix

    def has(self, path: str) -> bool:
        is_named = bool(AUDIO_TENSORS[path].of(self._format)) if path in AUDIO_TENSORS else True
        return is_named and self._tensors.has(tensor_name(path, self._format, self._prefix))

    def vector(self, path: str, size: int) -> Dense:
        return self._tensors.vector(*self._module(path, size))

    def matrix(self, path: str, rows: int, cols: int) -> Matrix:
        return self._tensors.matrix(self._module(path, 0)[0], rows, cols)

    def kernel(self, path: str, rows: int, channels: int) -> Dense:
        return self._tensors.kernel(self._module(path, 0)[0], rows, (channels, KERNEL))

    def _module(self, path: str, size: int) -> tuple[str, int, str]:
        module, kind = tensor_name(path, self._format, self._prefix).rsplit(".", 1)
        return module, size, kind


def read_vision(tensors: SafetensorsTensors, names: ModuleNames, config: VisionConfig) -> VisionWeights:
    """All weights of the vision encoder and the projector."""
    width, text_width, named = config.width, config.text_width, NamedTensors(tensors, names)
    kernel = (NUM_CHANNELS, config.patch_size, config.patch_size)
    return VisionWeights(
        patch_conv=tensors.kernel(names.module("patch_conv"), width, kernel),
        ln_pre=named.vector("ln_pre", width),
        layers=tuple(_vision_layer(named, config, f"layers.{index}") for index in range(config.num_layers)),
        norm=named.vector("norm", width),
        merging_layer=named.matrix("merging_layer", width, width * config.merge**2),
        w_in=named.matrix("w_in", text_width, width),
        w_out=named.matrix("w_out", text_width, text_width))


def _vision_layer(tensors: NamedTensors, config: VisionConfig, path: str) -> Layer:
    width, inner, ffn_width = config.width, config.num_heads * config.head_dim, config.ffn_width
    matrix = tensors.matrix
    return Layer(
        attention_norm=tensors.vector(f"{path}.attention_norm", width),
        attention=Attention(
            wq=matrix(f"{path}.attention.wq", inner, width, config.num_heads),
            wk=matrix(f"{path}.attention.wk", inner, width, config.num_heads),
            wv=matrix(f"{path}.attention.wv", inner, width),
            wo=matrix(f"{path}.attention.wo", width, inner)),
        ffn_norm=tensors.vector(f"{path}.ffn_norm", width),
        feed_forward=FeedForward(w1=matrix(f"{path}.feed_forward.w1", ffn_width, width),
                                 w2=matrix(f"{path}.feed_forward.w2", width, ffn_width),
                                 w3=matrix(f"{path}.feed_forward.w3", ffn_width, width)))
