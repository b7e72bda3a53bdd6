"""A tiny vision encoder for the stub model, and images for it: the stub's answers depend on every pixel."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

import numpy as np

from brise.backends.reference.ops import ReferenceBackend
from brise.engine.vision import LoadedVision, open_vision
from brise.models.pixtral import VisionConfig, VisionWeights
from brise.models.weights import Array, Attention, Dense, FeedForward, Layer, Weight
from brise.text.inputs import ImageInput
from tests.engine.stub import WIDTH

IMAGE, BREAK, END = 200, 201, 202
CONFIG = VisionConfig(
    width=8, num_layers=2, num_heads=2, head_dim=4, ffn_width=8, patch_size=2, image_size=64, merge=2, norm_eps=1e-5,
    projector_norm_eps=1e-5, rope_theta=100.0, text_width=WIDTH, image_token=IMAGE, break_token=BREAK, end_token=END)


def stub_vision() -> LoadedVision:
    """Two layers of random numbers, and a row of its own for breaks."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Weight:
        return Dense("F32", shape, rng.normal(0, 0.5, shape).astype(np.float32))

    def layer() -> Layer:
        return Layer(draw(8), Attention(draw(8, 8), draw(8, 8), draw(8, 8), draw(8, 8)), draw(8),
                     FeedForward(draw(8, 8), draw(8, 8), draw(8, 8)))

    weights = VisionWeights(draw(8, 12), draw(8), (layer(), layer()), draw(8), draw(8, 32), draw(WIDTH, 8),
                            draw(WIDTH, WIDTH))
    return replace(open_vision(CONFIG, weights, ReferenceBackend()), break_row=np.arange(WIDTH, dtype=np.float32))


def stub_image(rows: int, columns: int, seed: int = 0) -> ImageInput:
    """An image of rows x columns tokens; the same seed gives the same pixels."""
    def pixels() -> Array:
        size = (3, rows * CONFIG.cell_size, columns * CONFIG.cell_size)
        return np.random.default_rng(seed).normal(0, 1, size).astype(np.float32)

    digest = blake2b(bytes([rows, columns, seed]), digest_size=16).digest()
    return ImageInput(digest, stub_vision().settings.tokens(rows, columns), pixels)
