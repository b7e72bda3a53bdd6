"""What a config.json or a params.json says about a model, and what both agree on."""

from __future__ import annotations

from dataclasses import dataclass

from brise.models.config import Config
from brise.models.pixtral import VisionConfig

# Pixtral's norms have this in every release; no file has a key for it.
VISION_NORM_EPS = 1e-5
# Tokens that end a row of an image, and the image: the same in every Tekken vocabulary.
BREAK_TOKEN, END_TOKEN = 12, 13


@dataclass(frozen=True)
class Description:
    """`scale_block` is how many rows and columns share a scale, where weights are scaled by blocks."""

    config: Config
    vision: VisionConfig | None
    scale_block: tuple[int, int] | None
