"""The vision tower of a run of `brise tune` whose rows have images, and what it takes."""

from __future__ import annotations

from brise.backends import open_planner
from brise.checkpoint.open import Checkpoint
from brise.data.prepare import Dataset
from brise.engine import vision
from brise.memory import serving_plan as engine_plan
from brise.memory.model_header import describe
from brise.memory.serving_plan import MemoryRequest
from brise.text.images import ImageSettings
from brise.tune.row_images import RowImages, feature_bytes

KEPT_BYTES = 256 << 20  # of features; images beyond that are encoded again when they come again
_COPIES = 3  # of the features of a microbatch: of its rows, joined, and one a token


def settings_of(checkpoint: Checkpoint) -> ImageSettings | None:
    """How the model's images are prepared; None if it sees none."""
    return None if checkpoint.vision is None else vision.image_settings(checkpoint.vision[0])


def planned_bytes(checkpoint: Checkpoint, name: str, dataset: Dataset, num_tokens: int, threads: int) -> int:
    """The tower, its work on one image, the features that are kept, and those of a microbatch; 0 without images."""
    kept = _kept(checkpoint, dataset)
    if checkpoint.vision is None or not kept:
        return 0
    served = engine_plan.make(describe(checkpoint.path, name), MemoryRequest(serves=False), open_planner(threads))
    tower = sum(part.nbytes for part in served.parts if part.name in ("vision", "projector"))
    config = checkpoint.vision[0]
    return tower + vision.planned_bytes(config, serves=False) + kept + 4 * _COPIES * num_tokens * config.text_width


def load(checkpoint: Checkpoint, dataset: Dataset, threads: int) -> RowImages | None:
    """The tower as it serves, if a row has an image."""
    kept = _kept(checkpoint, dataset)
    if checkpoint.vision is None or not kept:
        return None
    config, weights = checkpoint.vision
    return RowImages(vision.open_vision(config, weights, open_planner(threads)), kept)


def _kept(checkpoint: Checkpoint, dataset: Dataset) -> int:
    """Bytes of features that are kept; 0 if no row has an image."""
    if checkpoint.vision is None:
        return 0
    config = checkpoint.vision[0]
    return min(KEPT_BYTES, feature_bytes((*dataset.train, *dataset.held_out), config.image_token, config.text_width))
