"""A vision encoder ready to run: it turns the pixels of an image into rows for the text model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from brise.errors import UnsupportedError
from brise.models import pixtral, siglip
from brise.models.batch import Batch
from brise.models.ops import Backend, Encode, Encoder, Planner, Room
from brise.models.pixtral import Patches, VisionConfig
from brise.models.siglip import ImageConfig, ImageWeights, SiglipConfig, SiglipWeights
from brise.models.weights import Array, Weight, place
from brise.quant.rows import float_rows
from brise.text.images import MAX_PIXELS, WORK_BYTES_PER_PIXEL, ImageSettings, SquareSettings


@dataclass(frozen=True)
class LoadedVision:
    """A vision encoder with weights placed in a backend, which runs it.

    `break_row` is the embedding (D,) of the break token, if the encoder's file has one.
    """

    config: ImageConfig
    weights: ImageWeights
    encoder: Encoder
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
        return self.encoder.steps(pack(self.config, [image]))

    def encode(self, images: Sequence[Array]) -> list[Array]:
        """The features (M, D) of each image (3, height, width)."""
        patches = pack(self.config, images)
        features = next(features for features in self.encoder.steps(patches) if features is not None)
        area = (self.config.cell_size // self.config.patch_size) ** 2
        counts = [rows * columns // area for rows, columns in patches.grids]
        return np.split(features, np.cumsum(counts)[:-1])

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

    row = None if isinstance(weights, SiglipWeights) else weights.break_row
    placed = place_encoder(weights, named)
    return LoadedVision(config, placed, backend.encoder(encode_of(config), config, placed),
                        None if row is None else float_rows(row, 0, 1)[0])


def place_encoder(weights: ImageWeights, put: Callable[[str, Weight], Weight]) -> ImageWeights:
    """The weights that the encoder itself reads, placed."""
    return place(weights if isinstance(weights, SiglipWeights) else replace(weights, break_row=None), put)


def encode_of(config: ImageConfig) -> Encode:
    """The encoder of this kind, over the ops."""
    return siglip.steps if isinstance(config, SiglipConfig) else pixtral.steps


def planned_bytes(config: ImageConfig, image_size: int | None = None, *, serves: bool = True) -> int:
    """The peak memory of an image that is decoded, prepared and encoded op by op.

    The worst case is a square of `image_size` pixels (None: the model's own size). One image is decoded at a time; a
    server may do that for one request while the engine encodes the image of another.
    """
    work = Room(_work_bytes(config, largest(config, image_size)))
    return _with_decoding(config, image_size, work, serves=serves).host


def planned_room(config: ImageConfig, weights: ImageWeights, backend: Planner, image_size: int | None, *,
                 serves: bool) -> Room:
    """The same where the backend encodes; weights may be shape-only."""
    patches = largest(config, image_size)
    work = backend.encoder_room(encode_of(config), config, weights, patches, _work_bytes(config, patches))
    return _with_decoding(config, image_size, work, serves=serves)


def largest(config: ImageConfig, image_size: int | None = None) -> Patches:
    """Patches, without their values, of the largest image: a square of that size, or of the model's own."""
    side = -(-(image_size or config.image_size) // config.cell_size) * config.cell_size // config.patch_size
    return blank(config, ((side, side),))


def _work_bytes(config: ImageConfig, patches: Patches) -> int:
    num_patches = len(patches.rows)
    if isinstance(config, SiglipConfig):
        return siglip.work_bytes(config, num_patches)
    return pixtral.work_bytes(config, num_patches)


def _with_decoding(config: ImageConfig, image_size: int | None, encoding: Room, *, serves: bool) -> Room:
    pixels = 4 * config.patch_values * len(largest(config, image_size).rows)
    encoding, decoding = encoding + Room(pixels), MAX_PIXELS * WORK_BYTES_PER_PIXEL + pixels
    return Room(encoding.host + decoding if serves else max(encoding.host, decoding), encoding.device)


def pack(config: ImageConfig, images: Sequence[Array]) -> Patches:
    """The patches of images (3, height, width) whose sides are multiples of the cell size."""
    size = config.patch_size
    patches = blank(config, tuple((image.shape[1] // size, image.shape[2] // size) for image in images))
    values = [image.reshape(pixtral.NUM_CHANNELS, rows, size, columns, size).transpose(1, 3, 0, 2, 4)
              .reshape(rows * columns, config.patch_values)
              for image, (rows, columns) in zip(images, patches.grids, strict=True)]
    return replace(patches, values=np.concatenate(values).astype(np.float32, copy=False))


def blank(config: ImageConfig, grids: tuple[tuple[int, int], ...]) -> Patches:
    """Patches of images of so many rows and columns, without their values."""
    counts = [rows * columns for rows, columns in grids]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    places = [np.indices(grid).reshape(2, -1) for grid in grids]
    rows, columns = np.concatenate(places, axis=1).astype(np.int32)
    tokens = rows * config.side + columns if isinstance(config, SiglipConfig) else np.zeros_like(rows)
    batch = Batch(tokens=tokens, positions=np.repeat(np.array(counts, np.int32) - 1, counts),
                  query_starts=starts, rows=np.zeros(0, np.int32))
    return Patches(np.zeros((0, config.patch_values), np.float32), rows, columns, grids, batch)
