"""The features that a frozen vision encoder gives the images of rows, and the memory that they take.

The encoder is the one that serves, so a row is trained on the features that it will be served with. Each image is
encoded once, as long as there is room to keep its features; the same digest is the same image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from brise.backends import open_planner
from brise.checkpoint.open import Checkpoint
from brise.data.example import EncodedRow
from brise.data.prepare import Dataset
from brise.engine import vision
from brise.engine.vision import LoadedVision
from brise.errors import UnsupportedError
from brise.memory import serving_plan
from brise.memory.model_header import read_header
from brise.memory.serving_plan import MemoryRequest
from brise.models.siglip import SiglipConfig
from brise.models.weights import Array
from brise.text.images import Settings
from brise.text.inputs import ImageInput

KEPT_BYTES = 256 << 20  # of features; images beyond that are encoded again when they come again
_COPIES = 3  # of the features of a microbatch: of its rows, joined, and one a token


def settings_of(checkpoint: Checkpoint) -> Settings | None:
    """The image settings of the model; None if it has no vision encoder."""
    return None if checkpoint.vision is None else vision.image_settings(checkpoint.vision[0])


def planned_bytes(checkpoint: Checkpoint, name: str, dataset: Dataset, num_tokens: int, threads: int) -> int:
    """The encoder, its work on one image, the features that are kept, and those of a microbatch; 0 without images."""
    kept = _kept(checkpoint, dataset)
    if checkpoint.vision is None or not kept:
        return 0
    served = serving_plan.make(read_header(checkpoint.path, name), MemoryRequest(serves=False), open_planner(threads))
    encoder = sum(part.nbytes for part in served.parts if part.name in ("vision", "projector"))
    config = checkpoint.vision[0]
    return encoder + vision.planned_bytes(config, serves=False) + kept + 4 * _COPIES * num_tokens * config.text_width


def load(checkpoint: Checkpoint, dataset: Dataset, threads: int) -> RowImages | None:
    """The vision encoder as it serves, if a row has an image."""
    kept = _kept(checkpoint, dataset)
    if checkpoint.vision is None or not kept:
        return None
    config, weights = checkpoint.vision
    if isinstance(config, SiglipConfig):
        raise UnsupportedError("a row has an image, whose tokens see each other in this model (Gemma 3); the torch "
                               "backend computes causal attention", hint="take rows of text alone")
    return RowImages(vision.open_vision(config, weights, open_planner(threads)), kept)


class RowImages:
    """A packing.FeaturesOf, which keeps up to `capacity_bytes` of features."""

    def __init__(self, vision: LoadedVision, capacity_bytes: int) -> None:
        self.num_encoded = 0
        self._vision, self._capacity = vision, capacity_bytes
        self._kept: OrderedDict[bytes, Array] = OrderedDict()  # least recently used first
        self._kept_bytes = 0

    def __call__(self, row: EncodedRow) -> tuple[Array, Array]:
        """Features (N, D) of the row's images, and which of them each token takes, or -1."""
        width = self._vision.config.text_width
        indices_T = np.full(len(row.tokens), -1, np.int32)
        parts: list[Array] = [np.zeros((0, width), np.float32)]
        start = count = 0
        for image in row.images:
            start = _find(row, image, start)
            wanted = self._vision.rows(image.tokens)
            places = np.flatnonzero(wanted != -1)
            part = self._features(image)[np.maximum(wanted[places], 0)]
            if self._vision.break_row is not None:
                part[wanted[places] == -2] = self._vision.break_row
            indices_T[start + places] = count + np.arange(len(places), dtype=np.int32)
            parts.append(part)
            count += len(places)
            start += len(image.tokens)
        return np.concatenate(parts), indices_T

    def _features(self, image: ImageInput) -> Array:
        """The features of one image, kept or encoded now."""
        features = self._kept.get(image.digest)
        if features is not None:
            self._kept.move_to_end(image.digest)
            return features
        (features,) = self._vision.encode([image.pixels()])
        self.num_encoded += 1
        if features.nbytes <= self._capacity:
            self._kept[image.digest] = features
            self._kept_bytes += features.nbytes
        while self._kept_bytes > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
        return features


def feature_bytes(rows: Iterable[EncodedRow], image_token: int, width: int) -> int:
    """Bytes of the features of all distinct images of these rows."""
    images = {image.digest: image for row in rows for image in row.images}
    return 4 * width * sum(image.tokens.count(image_token) for image in images.values())


def _find(row: EncodedRow, image: ImageInput, start: int) -> int:
    """The index of the image's tokens in the row, from `start` on."""
    wanted = np.array(image.tokens, np.int32)
    last = len(row.tokens) - len(wanted)
    for place in np.flatnonzero(row.tokens[start:last + 1] == wanted[0]) + start:
        if np.array_equal(row.tokens[place:place + len(wanted)], wanted):
            return int(place)
    raise UnsupportedError(f"the tokens of an image of {row.place} do not stand in its row")


def _kept(checkpoint: Checkpoint, dataset: Dataset) -> int:
    """Bytes of features to keep; 0 if no row has an image."""
    if checkpoint.vision is None:
        return 0
    config = checkpoint.vision[0]
    return min(KEPT_BYTES, feature_bytes((*dataset.train, *dataset.held_out), config.image_token, config.text_width))
