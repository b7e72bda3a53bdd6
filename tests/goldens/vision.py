"""Reads tests/goldens/vision.npz, made by make_vision.py, into brise's own types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brise.models.pixtral import VisionConfig, VisionWeights
from brise.models.weights import Array, Attention, Dense, FeedForward, Layer, Weight
from tests.goldens.golden import FOLDER, GRID, Golden, interleave, read_from


@dataclass(frozen=True)
class VisionGolden:
    """A tiny Ministral 3 that sees: two images (3, height, width), their features (M, D), and `text`, whose tokens
    hold both images and whose logits are those of transformers."""

    config: VisionConfig
    weights: VisionWeights
    images: tuple[Array, Array]
    features: Array
    text: Golden


def read_vision() -> VisionGolden:
    """The golden with rope pairs interleaved, in encoder and text."""
    with np.load(FOLDER / "vision.npz") as file:
        arrays = dict(file)
    config = VisionConfig(**json.loads(str(arrays["vision"])))
    images = (_numbers(arrays["image0"]), _numbers(arrays["image1"]))
    return VisionGolden(config, _weights(arrays, config), images, arrays["features"],
                        read_from(arrays, "interleaved"))


def _weights(arrays: Mapping[str, Array], config: VisionConfig) -> VisionWeights:
    def weight(name: str) -> Weight:
        rows = _numbers(arrays[f"vision.{name}"])
        if name.endswith((".wq", ".wk")):
            rows = interleave(rows, config.num_heads)
        return Dense("F32", rows.shape, rows)

    def layer(name: str) -> Layer:
        attention = (weight(f"{name}.attention.{part}") for part in ("wq", "wk", "wv", "wo"))
        feed_forward = (weight(f"{name}.feed_forward.{part}") for part in ("w1", "w2", "w3"))
        return Layer(weight(f"{name}.attention_norm"), Attention(*attention), weight(f"{name}.ffn_norm"),
                     FeedForward(*feed_forward))

    return VisionWeights(
        weight("patch_conv"), weight("ln_pre"), tuple(layer(f"layers.{i}") for i in range(config.num_layers)),
        weight("norm"), weight("merging_layer"), weight("w_in"), weight("w_out"))


def _numbers(grid: Array) -> Array:
    return (grid / GRID).astype(np.float32)
