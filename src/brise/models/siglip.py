"""Computes SigLIP's vision encoder, and Gemma 3's projector that makes rows for the text model, written over the ops.

Legend: N patches of all images, C width of the encoder, H heads, E numbers a head, X numbers of a patch, M rows of the
text model (N / pool^2), D width of the text model. Sources: SigLIP (2303.15343), Gemma 3 (2503.19786).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from brise.models.batch import Batch
from brise.models.ops import EncoderOps
from brise.models.pixtral import (
    BLOCK_ROWS,
    NUM_CHANNELS,
    Patches,
    VisionConfig,
    VisionWeights,
    Work,
    by_heads,
    by_rows,
)
from brise.models.weights import Array, Weight

NORM_EPS = 1e-6  # transformers' default, which every release has


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the encoder. Every image is a square of `image_size` pixels: positions are learned."""

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    patch_size: int
    image_size: int
    pool: int  # pool x pool patches become one row of the text model, their mean
    norm_eps: float
    text_width: int
    image_token: int
    begin_token: int  # stands before the rows of an image, and has the text model's embedding
    end_token: int

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def patch_values(self) -> int:
        return NUM_CHANNELS * self.patch_size**2

    @property
    def cell_size(self) -> int:
        """Pixels, along one side, that become one image token."""
        return self.patch_size * self.pool

    @property
    def least_size(self) -> int:
        """The least that the longest side of an image may have, in pixels: all have one size."""
        return self.image_size

    @property
    def side(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SiglipLayer:
    """One block: attention with biases, then linear, GELU (by tanh), linear."""

    attention_norm: Weight  # (C,)
    attention_norm_bias: Weight
    wq: Weight  # (C, C)
    bq: Weight
    wk: Weight
    bk: Weight
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
class SiglipWeights:
    """The encoder and the projector, which has no bias."""

    patch_conv: Weight  # (C, X), X in the order channel, row, column
    patch_conv_bias: Weight  # (C,)
    positions: Weight  # (side^2, C), added
    layers: tuple[SiglipLayer, ...]
    norm: Weight
    norm_bias: Weight
    pool_norm: Weight  # (C,), of the means
    projection: Weight  # (D, C)


# Of any vision encoder; a config and weights that belong together are of one kind.
ImageConfig = VisionConfig | SiglipConfig
ImageWeights = VisionWeights | SiglipWeights


def forward(ops: EncoderOps, config: SiglipConfig, weights: SiglipWeights, patches: Patches) -> Array:
    """Features (M, D) of all images, image after image, each row by row."""
    for features in steps(ops, config, weights, patches):
        if features is not None:
            return features
    raise AssertionError("the last step gives the features")


def steps(ops: EncoderOps, config: SiglipConfig, weights: SiglipWeights, patches: Patches) -> Iterator[Array | None]:
    """The same in short steps, so that a caller can do other work between them: None until the last."""
    num_patches = len(patches.grids) * config.side**2
    x_NC = yield from by_rows(ops, patches.values, num_patches,
                              lambda x: ops.bias(ops.linear(x, weights.patch_conv), weights.patch_conv_bias))
    x_NC = ops.add(x_NC, ops.embed(weights.positions, patches.batch.tokens))
    for index, layer in enumerate(weights.layers):
        x_NC = ops.add(x_NC, (yield from _attend(ops, config, layer, x_NC, patches.batch)))
        x_NC = ops.add(x_NC, (yield from by_rows(ops, x_NC, num_patches, _feed_forward(ops, config, layer))))
        x_NC = ops.named(x_NC, f"vision.layers.{index}")
    x_NC = ops.layer_norm(x_NC, weights.norm, weights.norm_bias, config.norm_eps)
    m_MC = ops.mean_patches(x_NC, patches.grids, config.pool)
    yield ops.named(ops.linear(ops.rms_norm(m_MC, weights.pool_norm, config.norm_eps), weights.projection),
                    "vision.features")


def work_bytes(config: SiglipConfig, num_patches: int) -> int:
    """About the most memory that `forward` takes for one image, run op by op; its result is in it.

    The peak is eight values (N, C): x, its norm, q, k and v while attention copies heads one by one; or three of them
    and six blocks of the feed-forward's inner values. The patches stay all the time.
    """
    value, wide = num_patches * config.width, min(num_patches, BLOCK_ROWS) * config.ffn_width
    return 4 * (num_patches * config.patch_values + max(8 * value, 3 * value + 6 * wide))


def _attend(ops: EncoderOps, config: SiglipConfig, layer: SiglipLayer, x_NC: Array, batch: Batch) -> Work:
    h_NC = ops.layer_norm(x_NC, layer.attention_norm, layer.attention_norm_bias, config.norm_eps)
    q_NHE = ops.heads(ops.bias(ops.linear(h_NC, layer.wq), layer.bq), config.num_heads)
    yield None
    k_NHE = ops.heads(ops.bias(ops.linear(h_NC, layer.wk), layer.bk), config.num_heads)
    yield None
    v_NHE = ops.heads(ops.bias(ops.linear(h_NC, layer.wv), layer.bv), config.num_heads)
    del h_NC
    yield None
    o_NC = yield from by_heads(ops, (q_NHE, k_NHE, v_NHE), batch, config.num_heads, config.head_dim**-0.5)
    del q_NHE, k_NHE, v_NHE
    return ops.bias(ops.linear(o_NC, layer.wo), layer.bo)


def _feed_forward(ops: EncoderOps, config: SiglipConfig, layer: SiglipLayer) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        h = ops.layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, config.norm_eps)
        return ops.bias(ops.linear(ops.gelu_tanh(ops.bias(ops.linear(h, layer.w1), layer.b1)), layer.w2), layer.b2)

    return run
