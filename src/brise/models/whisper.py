"""Computes Whisper's encoder, and Voxtral's projector that makes rows for the text model, written over the ops.

Legend: F frames of a chunk's spectrogram, B mel bands, P positions of a chunk (F / 2), C width of the encoder, H heads,
E numbers a head, S positions that become one row of the text model, D width of the text model. Sources: Whisper
(2212.04356), Voxtral (2507.13264).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from brise.models.batch import Batch
from brise.models.ops import EncoderOps
from brise.models.pixtral import BLOCK_ROWS, Work, by_heads, by_rows
from brise.models.weights import Array, Weight

NORM_EPS = 1e-5  # torch's default, which every release has
KERNEL = 3  # frames that a convolution reads
STRIDE = 2  # of the second convolution: frames that become one position
AUDIO_TOKEN, BEGIN_TOKEN = 24, 25  # [AUDIO] and [BEGIN_AUDIO]: the same in every Tekken vocabulary


@dataclass(frozen=True)
class AudioConfig:
    """Sizes of the encoder. A chunk is always `num_positions` long; what is shorter is followed by silence."""

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    num_mels: int
    num_positions: int  # of a chunk: 1500 in 30 seconds
    stack: int  # positions that become one row of the text model
    norm_eps: float
    text_width: int
    audio_token: int
    begin_token: int  # before the first row of an audio; it has the text model's embedding

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk's spectrogram."""
        return STRIDE * self.num_positions

    @property
    def chunk_tokens(self) -> int:
        """Rows of the text model that a chunk becomes."""
        return self.num_positions // self.stack


@dataclass(frozen=True)
class AudioLayer:
    """One block: attention without a bias of keys, then linear, GELU, linear."""

    attention_norm: Weight  # (C,)
    attention_norm_bias: Weight
    wq: Weight  # (C, C)
    bq: Weight
    wk: Weight
    wv: Weight
    bv: Weight
    wo: Weight
    bo: Weight
    ffn_norm: Weight
    ffn_norm_bias: Weight
    w1: Weight  # (ffn_width, C), up
    b1: Weight
    w2: Weight  # (C, ffn_width), down
    b2: Weight


@dataclass(frozen=True)
class AudioWeights:
    """The encoder and the projector, which has no biases."""

    conv1: Weight  # (C, 3 B), columns in the order band * 3 + frame
    conv1_bias: Weight  # (C,)
    conv2: Weight  # (C, 3 C), likewise
    conv2_bias: Weight
    positions: Weight  # (P, C), added
    layers: tuple[AudioLayer, ...]
    norm: Weight
    norm_bias: Weight
    w_in: Weight  # (D, S C)
    w_out: Weight  # (D, D)


@dataclass(frozen=True)
class AudioChunk:
    """One chunk. In `batch` all of its positions stand at the last one: causal attention then shows each of them the
    whole chunk. Its tokens (P,) are 0, 1, 2 and so on."""

    mels: Array  # (F, B) float32
    batch: Batch


def forward(ops: EncoderOps, config: AudioConfig, weights: AudioWeights, chunk: AudioChunk) -> Array:
    """The features (P / S, D) of a chunk."""
    for features in steps(ops, config, weights, chunk):
        if features is not None:
            return features
    raise AssertionError("the last step gives the features")


def steps(ops: EncoderOps, config: AudioConfig, weights: AudioWeights, chunk: AudioChunk) -> Iterator[Array | None]:
    """The same in short steps, so that a caller can do other work between them: None until the last."""
    x_FC = yield from _convolved(ops, chunk.mels, 1, weights.conv1, weights.conv1_bias, config.chunk_frames)
    x_PC = yield from _convolved(ops, x_FC, STRIDE, weights.conv2, weights.conv2_bias, config.num_positions)
    del x_FC
    x_PC = ops.add(x_PC, ops.embed(weights.positions, chunk.batch.tokens))
    for index, layer in enumerate(weights.layers):
        x_PC = ops.add(x_PC, (yield from _attend(ops, config, layer, x_PC, chunk.batch)))
        x_PC = ops.add(x_PC, (yield from by_rows(ops, x_PC, config.num_positions, _feed_forward(ops, config, layer))))
        x_PC = ops.named(x_PC, f"audio.layers.{index}")
    x_PC = ops.layer_norm(x_PC, weights.norm, weights.norm_bias, config.norm_eps)
    x_RC = ops.stack_rows(x_PC, config.stack)
    yield ops.named(ops.linear(ops.gelu(ops.linear(x_RC, weights.w_in)), weights.w_out), "audio.features")


def work_bytes(config: AudioConfig) -> int:
    """About the most memory that `forward` takes, run op by op; its result is in it.

    The peak is seven values (P, C): the first convolution's output (two), the second's windows (three), and its output
    in blocks and as a whole; attention takes six and a half. Or it is three of them and three blocks of the
    feed-forward's inner values. The spectrogram stays all the time.
    """
    value, rows = config.num_positions * config.width, min(config.num_positions, BLOCK_ROWS)
    inner = 3 * value + 3 * rows * config.ffn_width
    return 4 * (config.chunk_frames * config.num_mels + max(7 * value, inner))


def _convolved(ops: EncoderOps, x: Array, stride: int, w: Weight, b: Weight, num_rows: int) -> Work:
    """GELU of a convolution over time with a window of KERNEL rows."""
    windows = ops.windows(x, KERNEL, stride)
    return (yield from by_rows(ops, windows, num_rows, lambda rows: ops.gelu(ops.bias(ops.linear(rows, w), b))))


def _attend(ops: EncoderOps, config: AudioConfig, layer: AudioLayer, x_PC: Array, batch: Batch) -> Work:
    h_PC = ops.layer_norm(x_PC, layer.attention_norm, layer.attention_norm_bias, config.norm_eps)
    q_PHE = ops.heads(ops.bias(ops.linear(h_PC, layer.wq), layer.bq), config.num_heads)
    yield None
    k_PHE = ops.heads(ops.linear(h_PC, layer.wk), config.num_heads)
    yield None
    v_PHE = ops.heads(ops.bias(ops.linear(h_PC, layer.wv), layer.bv), config.num_heads)
    del h_PC
    yield None
    o_PC = yield from by_heads(ops, (q_PHE, k_PHE, v_PHE), batch, config.num_heads, config.head_dim**-0.5)
    del q_PHE, k_PHE, v_PHE
    return ops.bias(ops.linear(o_PC, layer.wo), layer.bo)


def _feed_forward(ops: EncoderOps, config: AudioConfig, layer: AudioLayer) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        h = ops.layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, config.norm_eps)
        return ops.bias(ops.linear(ops.gelu(ops.bias(ops.linear(h, layer.w1), layer.b1)), layer.w2), layer.b2)

    return run
