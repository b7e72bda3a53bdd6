"""Reads Whisper's encoder and Voxtral's projector from files of any format, by the names of models/families.py."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from brise.errors import CheckpointError
from brise.files.fields import Fields
from brise.models.families import AUDIO_LAYER_TENSORS, AUDIO_LAYERS, AUDIO_TENSORS, Format
from brise.models.weights import Dense, Weight
from brise.models.whisper import AudioConfig, AudioLayer, AudioWeights

MAX_POSITIONS = 1 << 14  # of a chunk: over 5 minutes, more than any release has
MAX_MELS = 200  # there are 201 frequencies
LONGEST_TIMESCALE = 10000.0  # of the sinusoids


class AudioTensors(Protocol):
    """The tensors of an encoder by path (layers.3.wq), each of the shape that is asked for, or an error."""

    def has(self, path: str) -> bool: ...
    def vector(self, path: str, size: int) -> Weight: ...
    def matrix(self, path: str, rows: int, cols: int) -> Weight: ...
    def kernel(self, path: str, rows: int, channels: int) -> Weight:
        """A convolution (rows, channels, 3) as a matrix."""


def tensor_name(path: str, format: Format, prefix: str = "") -> str:
    """The tensor of a weight: layers.3.bq is the bias of layers.3.wq, norm_bias that of norm."""
    part, kind, leaf = path, "weight", path.rsplit(".", 1)[-1]
    if leaf.endswith("_bias"):
        part, kind = path.removesuffix("_bias"), "bias"
    elif leaf in ("bq", "bv", "bo", "b1", "b2"):
        part, kind = f"{path.removesuffix(leaf)}w{leaf[1:]}", "bias"
    if not part.startswith("layers."):
        return f"{prefix}{AUDIO_TENSORS[part].of(format)[0]}.{kind}"
    _, number, tail = part.split(".", 2)
    return f"{prefix}{AUDIO_LAYERS.of(format)[0]}.{number}.{AUDIO_LAYER_TENSORS[tail].of(format)[0]}.{kind}"


def read_weights(tensors: AudioTensors, config: AudioConfig) -> AudioWeights:
    """All weights of the encoder and the projector."""
    width, text_width = config.width, config.text_width
    positions: Weight = (tensors.matrix("positions", config.num_positions, width) if tensors.has("positions")
                         else sinusoids(config.num_positions, width))
    return AudioWeights(
        conv1=tensors.kernel("conv1", width, config.num_mels), conv1_bias=tensors.vector("conv1_bias", width),
        conv2=tensors.kernel("conv2", width, width), conv2_bias=tensors.vector("conv2_bias", width),
        positions=positions, layers=tuple(_layer(tensors, config, f"layers.{n}") for n in range(config.num_layers)),
        norm=tensors.vector("norm", width), norm_bias=tensors.vector("norm_bias", width),
        w_in=tensors.matrix("w_in", text_width, width * config.stack),
        w_out=tensors.matrix("w_out", text_width, text_width))


def _layer(tensors: AudioTensors, config: AudioConfig, path: str) -> AudioLayer:
    def vector(name: str, size: int = config.width) -> Weight:
        return tensors.vector(f"{path}.{name}", size)

    def matrix(name: str, rows: int = config.width, cols: int = config.width) -> Weight:
        return tensors.matrix(f"{path}.{name}", rows, cols)

    return AudioLayer(
        attention_norm=vector("attention_norm"), attention_norm_bias=vector("attention_norm_bias"),
        wq=matrix("wq"), bq=vector("bq"), wk=matrix("wk"), wv=matrix("wv"), bv=vector("bv"),
        wo=matrix("wo"), bo=vector("bo"), ffn_norm=vector("ffn_norm"), ffn_norm_bias=vector("ffn_norm_bias"),
        w1=matrix("w1", rows=config.ffn_width), b1=vector("b1", config.ffn_width),
        w2=matrix("w2", cols=config.ffn_width), b2=vector("b2"))


def checked(config: AudioConfig, fields: Fields, heads: str) -> AudioConfig:
    """The config if its sizes go together; `heads` is the key of the number of heads."""
    if config.width % config.num_heads or config.width % 4:
        raise fields.wrong(heads, f"a divisor of the width {config.width}, which is a multiple of 4")
    if config.num_positions > MAX_POSITIONS or config.num_positions % config.stack:
        raise CheckpointError(f"a chunk of audio has {config.num_positions} positions, allowed are multiples of the "
                              f"{config.stack} that are joined, up to {MAX_POSITIONS}", field="max_source_positions",
                              value=config.num_positions, limit=MAX_POSITIONS)
    if config.num_mels > MAX_MELS:
        raise CheckpointError(f"the spectrogram has {config.num_mels} bands, allowed are up to {MAX_MELS}",
                              field="num_mel_bins", value=config.num_mels, limit=MAX_MELS)
    return config


def sinusoids(length: int, width: int) -> Dense:
    """Whisper's positions (length, width): sines, then cosines, of timescales from 1 to LONGEST_TIMESCALE."""
    half = width // 2
    inverse = np.exp(-np.log(LONGEST_TIMESCALE) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * inverse
    return Dense("F32", (length, width), np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
