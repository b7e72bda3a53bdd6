"""Reads SigLIP's encoder and Gemma 3's projector from files of any format, by the names of models/families.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from brise.errors import CheckpointError
from brise.models.families import SIGLIP_LAYER_TENSORS, SIGLIP_TENSORS, Format
from brise.models.siglip import SiglipConfig, SiglipLayer, SiglipWeights
from brise.models.weights import Array, Stored, Weight
from brise.quant.rows import float_rows

MAX_SIDE = 256  # patches along a side of an image: four times as many as in any release


class SiglipTensors(Protocol):
    """The tensors of an encoder by path (layers.3.wq), each of the shape that is asked for, or an error."""

    def vector(self, path: str, size: int) -> Weight: ...
    def matrix(self, path: str, rows: int, cols: int) -> Weight: ...
    def kernel(self, path: str, config: SiglipConfig) -> Weight:
        """The convolution as a matrix of flattened patches."""


def tensor_name(path: str, format: Format) -> str:
    """The tensor of a weight, without a prefix: layers.3.bq is the bias of layers.3.wq, norm_bias that of norm."""
    part, kind, leaf = path, ".weight", path.rsplit(".", 1)[-1]
    if leaf.endswith("_bias"):
        part, kind = path.removesuffix("_bias"), ".bias"
    elif leaf in ("bq", "bk", "bv", "bo", "b1", "b2"):
        part, kind = f"{path.removesuffix(leaf)}w{leaf[1:]}", ".bias"
    if not part.startswith("layers."):
        name = SIGLIP_TENSORS[part].of(format)[0]
        return name if part == "projection" and format == "hf" else f"{name}{kind}"
    _, number, tail = part.split(".", 2)
    return f"{SIGLIP_TENSORS['layers'].of(format)[0]}.{number}.{SIGLIP_LAYER_TENSORS[tail].of(format)[0]}{kind}"


def read_weights(tensors: SiglipTensors, config: SiglipConfig, *, is_less_one: bool) -> SiglipWeights:
    """All weights of the encoder and the projector. `is_less_one`: the file holds the norm of the means less 1."""
    width, text_width = config.width, config.text_width
    pool_norm = tensors.vector("pool_norm", width)
    return SiglipWeights(
        patch_conv=tensors.kernel("patch_conv", config), patch_conv_bias=tensors.vector("patch_conv_bias", width),
        positions=tensors.matrix("positions", config.side**2, width),
        layers=tuple(_layer(tensors, config, f"layers.{index}") for index in range(config.num_layers)),
        norm=tensors.vector("norm", width), norm_bias=tensors.vector("norm_bias", width),
        pool_norm=shifted(pool_norm, 1) if is_less_one else pool_norm,
        projection=transposed(tensors.matrix("projection", width, text_width)))


def _layer(tensors: SiglipTensors, config: SiglipConfig, path: str) -> SiglipLayer:
    def vector(name: str, size: int = config.width) -> Weight:
        return tensors.vector(f"{path}.{name}", size)

    def matrix(name: str, rows: int = config.width, cols: int = config.width) -> Weight:
        return tensors.matrix(f"{path}.{name}", rows, cols)

    return SiglipLayer(
        attention_norm=vector("attention_norm"), attention_norm_bias=vector("attention_norm_bias"),
        wq=matrix("wq"), bq=vector("bq"), wk=matrix("wk"), bk=vector("bk"), wv=matrix("wv"), bv=vector("bv"),
        wo=matrix("wo"), bo=vector("bo"), ffn_norm=vector("ffn_norm"), ffn_norm_bias=vector("ffn_norm_bias"),
        w1=matrix("w1", rows=config.ffn_width), b1=vector("b1", config.ffn_width),
        w2=matrix("w2", cols=config.ffn_width), b2=vector("b2"))


def checked(config: SiglipConfig) -> SiglipConfig:
    """The config if its sizes go together."""
    if config.width % config.num_heads:
        raise _wrong("num_attention_heads", config.num_heads, f"a divisor of the width {config.width}")
    if config.image_size % config.cell_size or config.side > MAX_SIDE:
        raise _wrong("image_size", config.image_size, f"a multiple of the {config.cell_size} pixels of a token, up to "
                                                      f"{MAX_SIDE * config.patch_size}")
    return config


def _wrong(field: str, value: object, limit: str) -> CheckpointError:
    return CheckpointError(f"the vision encoder's {field} is {value}, allowed is {limit}", field=field, value=value,
                           limit=limit)


def transposed(weight: Weight) -> Stored:
    """The projection (C, D) of files as the matrix of a linear (D, C), in F32, and the other way round."""
    rows, cols = weight.shape

    def read(first: int, last: int) -> Array:
        return np.ascontiguousarray(float_rows(weight, 0, rows)[:, first:last].T)

    return Stored("F32", (cols, rows), read)


def shifted(weight: Weight, by: float) -> Stored:
    """A norm plus a number, in float32."""
    read: Callable[[int, int], Array] = lambda first, last: float_rows(weight, 0, 1)[0, first:last] + np.float32(by)  # noqa: E731
    return Stored("F32", weight.shape, read)
