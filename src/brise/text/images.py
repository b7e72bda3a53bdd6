"""Prepares the images of a message: checks them before they are decoded, then does what mistral-common does.

In a message of `Chat.encode` an image is a part {"type": "image", "image": ImageInput}, between parts
{"type": "text", "text": ...}. Pillow and OpenCV come with the extra `mistral` and are imported for the first image.

The steps are those of mistral-common 1.13: transparent becomes white; a longest side over `image_size` is scaled
down to it; the picture is stretched to whole cells with OpenCV's cubic filter; the mean is subtracted, and the
result divided by the deviation. As there, the orientation in EXIF data is ignored.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brise.errors import MissingExtraError, RequestError
from brise.text import media
from brise.text.inputs import ImageInput

if TYPE_CHECKING:  # an extra
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_BYTES = 20 << 20
# A photograph of a telephone has 12 to 24 million pixels. Decoding takes up to WORK_BYTES_PER_PIXEL of each.
MAX_PIXELS = 25_000_000
# Pillow's four bytes, our three, and strips between; then, with Pillow's freed, a channel as float32.
WORK_BYTES_PER_PIXEL = 8
STRIP_ROWS = 256

# Of red, green and blue in CLIP's training data (2103.00020).
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_DEVIATION = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageSettings:
    """What a model's vision encoder takes: pixels of a cell's side (one token), of the longest side, and its tokens."""

    cell_size: int
    image_size: int
    image_token: int
    break_token: int
    end_token: int

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of cells for an image of this size."""
        ratio = max(height, width) / self.image_size
        if ratio > 1:
            width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        return -(-height // self.cell_size), -(-width // self.cell_size)

    def limited(self, size: int) -> ImageSettings:
        """The same with a longest side of at most `size` pixels."""
        return replace(self, image_size=min(size, self.image_size))

    def tokens(self, rows: int, columns: int) -> tuple[int, ...]:
        """Each row of cells ends in a break, the last one in the end."""
        row = (*(self.image_token,) * columns, self.break_token)
        return (*chain.from_iterable((row,) * rows),)[:-1] + (self.end_token,)


@dataclass(frozen=True)
class SquareSettings:
    """What Gemma 3's encoder takes: every image as a square of `image_size` pixels, and its tokens.

    A chat template writes `written` for an image; in the prompt `around` stands before and after its tokens.
    """

    cell_size: int
    image_size: int
    image_token: int
    begin_token: int
    end_token: int
    written: str = "<start_of_image>"
    around: str = "\n\n"

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of cells, for an image of any size."""
        return (self.image_size // self.cell_size,) * 2

    def tokens(self, rows: int, columns: int) -> tuple[int, ...]:
        """A token for each cell, between two others."""
        return self.begin_token, *(self.image_token,) * (rows * columns), self.end_token

    def limited(self, size: int) -> SquareSettings:
        """The same: all images have one size."""
        return self


Settings = ImageSettings | SquareSettings


def prepare(data: bytes, settings: Settings, name: str) -> ImageInput:
    """The image in a file's bytes, for a request; RequestError says what is wrong with `name`.

    It is decoded once as a check, and again when the encoder is about to run: queued pixels would take 12 bytes each,
    queued files take no more than the requests that brought them.
    """
    with _open(data, name) as image:
        rows, columns = settings.grid(*image.size)
        try:
            image.load()
        except Exception as error:  # whatever a decoder raises: the file is broken
            raise _wrong(name, f"cannot be decoded: {error}") from None
    size = (columns * settings.cell_size, rows * settings.cell_size)
    digest = blake2b(repr(size).encode() + data, digest_size=16).digest()
    tokens = settings.tokens(rows, columns)
    if isinstance(settings, SquareSettings):
        return ImageInput(digest, tokens, partial(_square_pixels, data, size, name), settings.written, settings.around)
    _import("cv2", name)
    return ImageInput(digest, tokens, partial(_pixels, data, size, name))


def from_data_url(url: str, name: str) -> bytes:
    """The bytes in data:image/...;base64,..."""
    return media.from_data_url("image", url, name, "image/TYPE")


def from_path(path: Path) -> bytes:
    """The bytes of an image file."""
    return media.from_path("image", path, MAX_BYTES)


def arranged(parts: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Parts of a message in mistral-common's order: a single image at the end goes before the text."""
    kinds = [part["type"] for part in parts]
    if len(parts) > 1 and kinds[-1] == "image" and "image" not in kinds[:-1]:
        return [parts[-1], *parts[:-1]]
    return list(parts)


def _open(data: bytes, name: str) -> Image:
    """The image, its header read and checked; its pixels are not decoded."""
    if len(data) > MAX_BYTES:
        raise _wrong(name, f"has {len(data)} bytes, allowed are {MAX_BYTES}")
    pillow = _import("PIL.Image", name)
    try:
        with warnings.catch_warnings():  # Pillow warns of a size that is refused below
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            image: Image = pillow.open(io.BytesIO(data), formats=FORMATS)
    except pillow.DecompressionBombError:
        raise _wrong(name, f"has more than {MAX_PIXELS} pixels, the most allowed") from None
    except Exception:  # UnidentifiedImageError, or whatever a broken header makes a decoder raise
        raise _wrong(name, f"is no image of a format that is read: {', '.join(FORMATS)}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _wrong(name, f"has {width} x {height} pixels, allowed are {MAX_PIXELS} in all")
    if image.format in ("GIF", "WEBP", "PNG") and _is_animated(image, name):
        raise _wrong(name, "is animated; allowed are still images")
    return image


def _is_animated(image: Image, name: str) -> bool:
    try:
        image.seek(1)
        image.seek(0)
    except EOFError:  # there is no second frame
        return False
    except Exception as error:
        raise _wrong(name, f"cannot be decoded: {error}") from None
    return True


def _pixels(data: bytes, size: tuple[int, int], name: str) -> NDArray[np.float32]:
    """Normalised float32 (3, height, width) of an image stretched to `size` = (width, height)."""
    cv2 = _import("cv2", name)
    rgb = _decoded(data, name)
    out = np.empty((3, size[1], size[0]), np.float32)
    for channel in range(3):  # one after the other, as float32 takes four times the room
        out[channel] = cv2.resize(rgb[..., channel].astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    out /= np.float32(255)
    out -= np.array(MEAN, np.float32)[:, None, None]
    out /= np.array(DEVIATION, np.float32)[:, None, None]
    return out


def _square_pixels(data: bytes, size: tuple[int, int], name: str) -> NDArray[np.float32]:
    """The same as transformers' Gemma3ImageProcessorPil does it: scaled as bytes, with a filter that is linear and as
    wide as the scale, then from -1 to 1. What is transparent loses only its transparency."""
    pillow = _import("PIL.Image", name)
    with _open(data, name) as image:
        scaled = image.convert("RGB").resize(size, resample=pillow.Resampling.BILINEAR)
    out = np.asarray(scaled, np.float32).transpose(2, 0, 1) * np.float32(1 / 255)
    out -= np.array(SIGLIP_MEAN, np.float32)[:, None, None]
    out /= np.array(SIGLIP_DEVIATION, np.float32)[:, None, None]
    return np.ascontiguousarray(out)


def _decoded(data: bytes, name: str) -> NDArray[np.uint8]:
    """Red, green and blue (height, width, 3)."""
    with _open(data, name) as image:
        width, height = image.size
        rgb = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, STRIP_ROWS):  # making a picture opaque takes three copies
            bottom = min(top + STRIP_ROWS, height)
            rgb[top:bottom] = np.asarray(_opaque(image.crop((0, top, width, bottom))))
    return rgb


def _opaque(image: Image) -> Image:
    """Red, green and blue; what is transparent shows white."""
    if image.mode == "RGB":
        return image
    pillow = _import("PIL.Image", "an image")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    white: Image = pillow.new("RGBA", layer.size, "WHITE")
    white.paste(layer, (0, 0), layer)
    return white.convert("RGB")


def _import(module: str, name: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        package = {"PIL.Image": "pillow", "cv2": "opencv-python-headless"}[module]
        raise MissingExtraError(package, "mistral", f"reading {name}") from None


def _wrong(name: str, what: str) -> RequestError:
    return media.wrong("image", name, what)
