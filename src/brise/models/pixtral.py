"""Computes Pixtral's vision encoder, and the projector that makes rows for the text model, written over the ops.

Legend: N patches of all images, C width of the encoder, H heads, E numbers a head, X numbers of a patch, M merged
patches (N / merge^2), D width of the text model. Source: Pixtral 12B (2410.07073).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from brise.models.batch import Batch
from brise.models.decoder import gated
from brise.models.ops import EncoderOps
from brise.models.weights import Array, Attention, FeedForward, Layer, Weight

Work = Generator[None, None, Array]  # steps, and then a value
NUM_CHANNELS = 3
NORM_EPS = 1e-5  # in every release; files of safetensors have no key for it
BREAK_TOKEN, END_TOKEN = 12, 13  # end a row of an image, and the image: the same in every Tekken vocabulary
# Rows that go through the feed-forward and the projector at once: their inner values are wide, and an image has
# up to 12 100 patches.
BLOCK_ROWS = 512


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the encoder. `image_size` bounds an image's longest side in pixels; rope is interleaved."""

    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_width: int
    patch_size: int
    image_size: int
    merge: int  # merge x merge patches become one row of the text model
    norm_eps: float
    projector_norm_eps: float  # the text model's
    rope_theta: float
    text_width: int
    image_token: int
    break_token: int  # ends each row of patches but the last
    end_token: int

    @property
    def patch_values(self) -> int:
        return NUM_CHANNELS * self.patch_size**2

    @property
    def cell_size(self) -> int:
        """Pixels, along one side, that become one image token."""
        return self.patch_size * self.merge

    @property
    def least_size(self) -> int:
        """The least that the longest side of an image may have, in pixels."""
        return self.cell_size


@dataclass(frozen=True)
class VisionWeights:
    """The vision encoder and the projector; names are Mistral's. Layers have plain attention (no norms, no biases)."""

    patch_conv: Weight  # (C, X), X in the order channel, row, column
    ln_pre: Weight  # (C,)
    layers: tuple[Layer, ...]
    norm: Weight  # (C,), pre_mm_projector_norm
    merging_layer: Weight  # (C, merge^2 C), columns in the order c * merge^2 + row * merge + column
    w_in: Weight  # (D, C)
    w_out: Weight  # (D, D)
    break_row: Weight | None = None  # (D,), the embedding of `break_token`, where the file has one beside the encoder


@dataclass(frozen=True)
class Patches:
    """Patches of one or several images, image after image, each row by row.

    In `batch` every image is a sequence, and all of its patches stand at the position of the last one: causal
    attention then shows each of them the whole image. Its tokens are rows of the table of positions, if there is one.
    """

    values: Array  # (N, X) float32, normalised pixels
    rows: Array  # (N,) where the patch lies in its image
    columns: Array  # (N,)
    grids: tuple[tuple[int, int], ...]  # (rows, columns) of each image, multiples of `merge`
    batch: Batch


def forward(ops: EncoderOps, config: VisionConfig, weights: VisionWeights, patches: Patches) -> Array:
    """Features (M, D) of all images, image after image, each row by row."""
    for features in steps(ops, config, weights, patches):
        if features is not None:
            return features
    raise AssertionError("the last step gives the features")


def steps(ops: EncoderOps, config: VisionConfig, weights: VisionWeights, patches: Patches) -> Iterator[Array | None]:
    """The same in short steps, so that a caller can do other work between them: None until the last."""
    inv_freq = tuple(config.rope_theta ** (-2.0 * j / config.head_dim) for j in range(config.head_dim // 2))
    table_NE = ops.rope_table_2d(patches.rows, patches.columns, inv_freq)
    num_patches = sum(rows * columns for rows, columns in patches.grids)
    x_NC = yield from by_rows(ops, patches.values, num_patches, lambda x: ops.linear(x, weights.patch_conv))
    x_NC = ops.rms_norm(x_NC, weights.ln_pre, config.norm_eps)
    for index, layer in enumerate(weights.layers):
        x_NC = ops.add(x_NC, (yield from _attend(ops, config, layer, x_NC, table_NE, patches.batch)))
        x_NC = ops.add(x_NC, (yield from by_rows(ops, x_NC, num_patches, _feed_forward(ops, config, layer))))
        x_NC = ops.named(x_NC, f"vision.layers.{index}")
    x_NC = ops.rms_norm(x_NC, weights.norm, config.projector_norm_eps)
    m_MC = ops.merge_patches(x_NC, patches.grids, config.merge)
    num_merged = num_patches // config.merge**2
    features_MD = yield from by_rows(ops, m_MC, num_merged, _project(ops, weights))
    yield ops.named(features_MD, "vision.features")


def work_bytes(config: VisionConfig, num_patches: int) -> int:
    """About the most memory that `forward` takes for one image, run op by op; its result is in it.

    The peak is eight values (N, C): x, its norm, q, k and v while attention copies heads one by one; or three of
    them and six blocks of the feed-forward's inner values. The patches stay all the time.
    """
    value, wide = num_patches * config.width, min(num_patches, BLOCK_ROWS) * config.ffn_width
    features = num_patches // config.merge**2 * config.text_width
    return 4 * (num_patches * config.patch_values + max(8 * value, 3 * value + 6 * wide, 2 * value + 3 * features))


def _attend(ops: EncoderOps, config: VisionConfig, layer: Layer, x_NC: Array, table_NE: Array,
            batch: Batch) -> Work:
    weights = layer.attention
    assert isinstance(weights, Attention), "the vision encoder has plain attention"
    h_NC = ops.rms_norm(x_NC, layer.attention_norm, config.norm_eps)
    # One after the other, and no name for what lies between: with 12 100 patches, each value is 50 MB.
    q_NHE = ops.rope(ops.heads(ops.linear(h_NC, weights.wq), config.num_heads), table_NE, "interleaved")
    yield None
    k_NHE = ops.rope(ops.heads(ops.linear(h_NC, weights.wk), config.num_heads), table_NE, "interleaved")
    yield None
    v_NHE = ops.heads(ops.linear(h_NC, weights.wv), config.num_heads)
    del h_NC
    yield None
    o_NC = yield from by_heads(ops, (q_NHE, k_NHE, v_NHE), batch, config.num_heads, config.head_dim**-0.5)
    del q_NHE, k_NHE, v_NHE
    return ops.linear(o_NC, weights.wo)


def _feed_forward(ops: EncoderOps, config: VisionConfig, layer: Layer) -> Callable[[Array], Array]:
    weights = layer.feed_forward
    assert isinstance(weights, FeedForward), "the vision encoder has no experts"
    return lambda x: gated(ops, weights, ops.rms_norm(x, layer.ffn_norm, config.norm_eps), "silu")


def _project(ops: EncoderOps, weights: VisionWeights) -> Callable[[Array], Array]:
    return lambda m: ops.linear(ops.gelu(ops.linear(ops.linear(m, weights.merging_layer), weights.w_in)),
                                weights.w_out)


def by_rows(ops: EncoderOps, x: Array, num_rows: int, compute: Callable[[Array], Array]) -> Work:
    """`compute` on one block of rows after the other, a step each; rows are independent of one another."""
    if ops.is_recorded:
        return ops.join_rows([compute(ops.slice_rows(x, 0, num_rows))])
    parts: list[Array] = []
    for first in range(0, num_rows, BLOCK_ROWS):
        parts.append(compute(ops.slice_rows(x, first, min(first + BLOCK_ROWS, num_rows))))
        yield None
    return ops.join_rows(parts)


def by_heads(ops: EncoderOps, qkv_NHE: tuple[Array, Array, Array], batch: Batch, num_heads: int, scale: float) -> Work:
    """Attention of one head after the other, a step each; there are as many heads of keys and values as of queries."""
    if ops.is_recorded:
        return ops.attend(*qkv_NHE, batch, None, 0, scale, None)
    parts: list[Array] = []
    for head in range(num_heads):
        q, k, v = (ops.slice_heads(x, head, head + 1) for x in qkv_NHE)
        parts.append(ops.attend(q, k, v, batch, None, 0, scale, None))
        yield None
    return ops.join_heads(parts)
