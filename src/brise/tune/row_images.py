"""What a frozen vision tower makes of the images of rows: the features that some of their tokens take.

The tower is the one that serves, so a row is trained on the features that it will be served with. Every image is
encoded once, as long as there is room to keep what came out; the same digest is the same image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from brise.data.example import EncodedRow
from brise.engine.vision import LoadedVision
from brise.errors import UnsupportedError
from brise.models.weights import Array
from brise.text.inputs import ImageInput


class RowImages:
    """A packing.FeaturesOf: it is called with rows. Up to `capacity_bytes` of features are kept."""

    def __init__(self, vision: LoadedVision, capacity_bytes: int) -> None:
        self.num_encoded = 0
        self._vision, self._capacity = vision, capacity_bytes
        self._kept: OrderedDict[bytes, Array] = OrderedDict()  # longest unused first
        self._kept_bytes = 0

    def __call__(self, row: EncodedRow) -> tuple[Array, Array]:
        """Rows (N, D) for the row's images, and which of them each token takes, or -1."""
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
        """Of one image, encoded or kept."""
        found = self._kept.get(image.digest)
        if found is not None:
            self._kept.move_to_end(image.digest)
            return found
        (found,) = self._vision.encode([image.pixels()])
        self.num_encoded += 1
        if found.nbytes <= self._capacity:
            self._kept[image.digest] = found
            self._kept_bytes += found.nbytes
        while self._kept_bytes > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
        return found


def feature_bytes(rows: Iterable[EncodedRow], image_token: int, width: int) -> int:
    """What the features of all images of these rows take, each once."""
    images = {image.digest: image for row in rows for image in row.images}
    return 4 * width * sum(image.tokens.count(image_token) for image in images.values())


def _find(row: EncodedRow, image: ImageInput, start: int) -> int:
    """Where the image's tokens stand in the row, from `start` on."""
    wanted = np.array(image.tokens, np.int32)
    last = len(row.tokens) - len(wanted)
    for place in np.flatnonzero(row.tokens[start:last + 1] == wanted[0]) + start:
        if np.array_equal(row.tokens[place:place + len(wanted)], wanted):
            return int(place)
    raise UnsupportedError(f"the tokens of an image of {row.place} do not stand in its row")
