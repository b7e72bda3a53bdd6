"""A vision encoder ready to run: it turns the pixels of an image into rows for the text model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from brise.errors import UnsupportedError
from brise.models import pixtral, siglip
from brise.models.batch import Batch
from brise.models.ops import Backend, EncoderOps
from brise.models.pixtral import Patches, VisionConfig, VisionWeights
from brise.models.siglip import ImageConfig, ImageWeights, SiglipConfig, SiglipWeights
from brise.models.weights import Array, Weight, place
from brise.quant.rows import float_rows
from brise.text.images import MAX_PIXELS, WORK_BYTES_PER_PIXEL, ImageSettings, SquareSettings


@dataclass(frozen=True)
class LoadedVision:
    """A vision encoder with weights placed in a backend, and the backend's `ops`.

    `break_row` is the embedding (D,) of the break token, if the encoder's file has one.
    """

    config: ImageConfig
    weights: ImageWeights
    ops: EncoderOps
    break_row: Array | None = None
    # Held while an image is decoded: the memory plan counts one decoding at a time.
    decoding: Lock = field(default_factory=Lock, compare=False)

    @property
    def settings(self) -> ImageSettings | SquareSettings:
        """How images are prepared for it."""
        return image_settings(self.config)

    def with_image_size(self, image_size: int | None) -> LoadedVision:
        """The same encoder with another longest side for images, in pixels; None: the model's own."""
        if image_size is None:
            return self
        if not self.config.least_size <= image_size <= self.config.image_size:
            raise UnsupportedError(f"an image size of {image_size} pixels was requested; the model allows "
                                   f"{self.config.least_size} to {self.config.image_size}")
        return replace(self, config=replace(self.config, image_size=image_size))

    @property
    def sees_itself(self) -> bool:
        """Whether each of an image's rows sees all others in the text model."""
        return isinstance(self.config, SiglipConfig)

    @property
    def longest_span(self) -> int:
        """How many tokens of an image go into one step together."""
        return len(self.settings.tokens(*self.settings.grid(1, 1))) if self.sees_itself else 0

    def steps(self, image: Array) -> Iterator[Array | None]:
        """Encodes an image (3, height, width) in steps; the last one yields its features (M, D)."""
        return self._steps(pack(self.config, [image]))

    def encode(self, images: Sequence[Array]) -> list[Array]:
        """The features (M, D) of each image (3, height, width)."""
        patches = pack(self.config, images)
        features = next(features for features in self._steps(patches) if features is not None)
        area = (self.config.cell_size // self.config.patch_size) ** 2
        counts = [rows * columns // area for rows, columns in patches.grids]
        return np.split(features, np.cumsum(counts)[:-1])

    def _steps(self, patches: Patches) -> Iterator[Array | None]:
        match self.config, self.weights:
            case VisionConfig() as config, VisionWeights() as weights:
                return pixtral.steps(self.ops, config, weights, patches)
            case SiglipConfig() as config, SiglipWeights() as weights:
                return siglip.steps(self.ops, config, weights, patches)
        raise AssertionError("a config and weights of two kinds")

    def rows(self, tokens: Sequence[int]) -> Array:
        """The row of the image's features that each token takes; -1 for none, -2 for `break_row`."""
        tokens_T = np.array(tokens, np.int32)
        is_image = tokens_T == self.config.image_token
        rows_T = np.where(is_image, np.cumsum(is_image) - 1, -1)
        if self.break_row is not None and isinstance(self.config, VisionConfig):
            rows_T[tokens_T == self.config.break_token] = -2
        return rows_T.astype(np.int32)


def image_settings(config: ImageConfig) -> ImageSettings | SquareSettings:
    """How images are prepared for a vision encoder."""
    if isinstance(config, SiglipConfig):
        return SquareSettings(config.cell_size, config.image_size, config.image_token, config.begin_token,
                              config.end_token)
    return ImageSettings(config.cell_size, config.image_size, config.image_token, config.break_token, config.end_token)


def open_vision(config: ImageConfig, weights: ImageWeights, backend: Backend,
                put: Callable[[str, Weight], Weight] | None = None) -> LoadedVision:
    """Places a vision encoder in a backend, which refuses weights that it cannot run; `put` does it in place of the
    backend's own `place`."""
    def named(name: str, weight: Weight) -> Weight:
        return (put or backend.place)(f"vision.{name}", weight)

    if isinstance(weights, SiglipWeights):
        return LoadedVision(config, place(weights, named), backend.encoder_ops())
    break_row = None if weights.break_row is None else float_rows(weights.break_row, 0, 1)[0]
    return LoadedVision(config, place(replace(weights, break_row=None), named), backend.encoder_ops(),
                        break_row)


def planned_bytes(config: ImageConfig, image_size: int | None = None, *, serves: bool = True) -> int:
    """The peak memory of an image that is decoded, prepared and encoded.

    The worst case is a square of `image_size` pixels (None: the model's own size). One image is decoded at a time; a
    server may do that for one request while the engine encodes the image of another.
    """
    side = -(-(image_size or config.image_size) // config.cell_size) * config.cell_size
    pixels = 4 * pixtral.NUM_CHANNELS * side**2
    num_patches = (side // config.patch_size) ** 2
    work = (siglip.work_bytes(config, num_patches) if isinstance(config, SiglipConfig)
            else pixtral.work_bytes(config, num_patches))
    encoding = work + pixels
    decoding = MAX_PIXELS * WORK_BYTES_PER_PIXEL + pixels
    return encoding + decoding if serves else max(encoding, decoding)


def pack(config: ImageConfig, images: Sequence[Array]) -> Patches:
    """The patches of images (3, height, width) whose sides are multiples of the cell size."""
    size = config.patch_size
    grids = tuple((image.shape[1] // size, image.shape[2] // size) for image in images)
    values = [image.reshape(pixtral.NUM_CHANNELS, rows, size, columns, size).transpose(1, 3, 0, 2, 4)
              .reshape(rows * columns, config.patch_values)
              for image, (rows, columns) in zip(images, grids, strict=True)]
    counts = [rows * columns for rows, columns in grids]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    places = [np.indices(grid).reshape(2, -1) for grid in grids]
    rows, columns = np.concatenate(places, axis=1).astype(np.int32)
    batch = Batch(tokens=np.zeros_like(rows), positions=np.repeat(np.array(counts, np.int32) - 1, counts),
                  query_starts=starts, rows=np.zeros(0, np.int32))
    return Patches(np.concatenate(values).astype(np.float32, copy=False), rows, columns, grids, batch)
