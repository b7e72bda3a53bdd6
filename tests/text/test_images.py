"""Images: prepared as mistral-common does it, and refused, before they are decoded, where they are none."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.errors import MissingExtraError, RequestError
from brise.text import images
from brise.text.images import ImageSettings, arranged, from_data_url, from_path, prepare
from tests.profiles import examples

PILImage = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")

SETTINGS = ImageSettings(cell_size=28, image_size=1540, image_token=10, break_token=12, end_token=13)
# Both divide float32 by 255, subtract and divide, on numbers of up to 2.7; the filter's sums of 16 products may be
# taken in another order when one channel is done at a time: a few roundings of 2.7 * 2^-24 = 1.6e-7.
PIXELS = 3e-6


def picture(mode: str, width: int, height: int, format: str = "PNG") -> bytes:
    numbers = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return encoded(PILImage.fromarray(numbers, "RGBA").convert(mode), format)


def encoded(image: PILImage.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize(("size", "grid"), [
    ((100, 60), (3, 4)), ((3000, 1000), (19, 55)), ((2000, 1333), (37, 55)), ((29, 28), (1, 2)),
    ((1, 1), (1, 1)), ((28, 28), (1, 1)), ((1540, 1540), (55, 55)), ((1, 9000), (55, 1)), ((1963, 1500), (43, 55))])
def test_the_grid_of_an_image(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert SETTINGS.grid(*size) == grid


def test_the_tokens_of_an_image() -> None:
    assert SETTINGS.tokens(2, 3) == (10, 10, 10, 12, 10, 10, 10, 13)
    assert SETTINGS.tokens(1, 1) == (10, 13)


@given(width=st.integers(1, 6000), height=st.integers(1, 6000), largest=st.sampled_from([28, 512, 1000, 1540]))
@settings(max_examples=examples(200))
def test_grids_are_those_of_mistral_common(width: int, height: int, largest: int) -> None:
    module = pytest.importorskip("mistral_common.tokens.tokenizers.image")
    encoder = module.ImageEncoder(module.ImageConfig(14, largest, 2), module.SpecialImageIDs(10, 12, 13))
    columns, rows = encoder._image_to_num_tokens(PILImage.new("1", (width, height)))
    assert ImageSettings(28, largest, 10, 12, 13).grid(width, height) == (rows, columns)


@pytest.mark.parametrize(("mode", "size", "format"), [
    ("RGB", (100, 60), "PNG"), ("RGB", (1600, 500), "JPEG"), ("RGBA", (90, 70), "PNG"), ("RGBA", (90, 70), "WEBP"),
    ("L", (29, 28), "PNG"), ("LA", (50, 40), "PNG"), ("P", (60, 33), "GIF"), ("1", (31, 57), "PNG"),
    ("CMYK", (60, 50), "JPEG"), ("RGB", (1, 3000), "PNG")])
def test_pixels_are_those_of_mistral_common(mode: str, size: tuple[int, int], format: str) -> None:
    module = pytest.importorskip("mistral_common.tokens.tokenizers.image")
    chunk = pytest.importorskip("mistral_common.protocol.instruct.chunk")
    data = picture(mode, *size, format)
    encoder = module.ImageEncoder(module.ImageConfig(14, 1540, 2), module.SpecialImageIDs(10, 12, 13))
    expected = encoder(chunk.ImageChunk(image=PILImage.open(io.BytesIO(data))))
    image = prepare(data, SETTINGS, "image")
    assert list(image.tokens) == expected.tokens
    pixels = image.pixels()
    assert pixels.dtype == np.float32 and pixels.shape == expected.image.shape
    assert np.abs(pixels - expected.image).max() < PIXELS


def test_equal_images_have_equal_digests_at_one_size() -> None:
    data = picture("RGB", 100, 60)
    small = ImageSettings(28, 56, 10, 12, 13)
    assert prepare(data, SETTINGS, "a").digest == prepare(data, SETTINGS, "b").digest
    assert prepare(data, SETTINGS, "a").digest != prepare(data, small, "a").digest
    assert prepare(data, SETTINGS, "a").digest != prepare(picture("RGB", 99, 60), SETTINGS, "a").digest


def bomb(width: int, height: int) -> bytes:
    """The header of a PNG of that size, and no pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("data", "message"), [
    (b"", "no image of a format"), (b"hello", "no image of a format"), (b"\x89PNG\r\n\x1a\n", "no image of a format"),
    (b"%PDF-1.4", "no image of a format"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a format"),
    (picture("RGB", 64, 64, "BMP"), "no image of a format"), (picture("RGB", 64, 64, "TIFF"), "no image of a format"),
    (picture("RGB", 90, 90)[:500], "cannot be decoded"), (picture("RGB", 90, 90, "JPEG")[:2000], "cannot be decoded"),
    (bomb(50, 50), "cannot be decoded"), (bomb(5001, 5000), "5001 x 5000 pixels, allowed are 25000000"),
    (bomb(10000, 10000), "pixels"), (bomb(2**31 - 1, 2**31 - 1), "more than 25000000 pixels")])
def test_what_is_no_image_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        prepare(data, SETTINGS, "messages[0].content[1]")
    assert str(refused.value).startswith("messages[0].content[1] ") and refused.value.code == "invalid_image"
    assert refused.value.param == "messages[0].content[1]"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(format: str) -> None:
    frames = [PILImage.new("RGB", (40, 40), color) for color in ("red", "blue")]
    with pytest.raises(RequestError, match="animated"):
        prepare(encoded(frames[0], format, save_all=True, append_images=frames[1:]), SETTINGS, "image")


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    data = picture("RGB", 64, 64)
    (tmp_path / "image.png").write_bytes(data)
    with pytest.raises(RequestError, match="bytes, allowed are 100"):
        prepare(data, SETTINGS, "image")
    with pytest.raises(RequestError, match="bytes, allowed are 100"):
        from_path(tmp_path / "image.png")


def test_a_device_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(RequestError, match="/dev/zero has 101 bytes, allowed are 100"):
        from_path(Path("/dev/zero"))


@given(data=st.one_of(st.binary(max_size=200), st.integers(0, 2**32).map(
    lambda seed: damaged(random.Random(seed)))))
@settings(max_examples=examples(150))
def test_damaged_files_are_refused_or_read(data: bytes) -> None:
    try:
        image = prepare(data, SETTINGS, "image")
    except RequestError as error:
        assert error.code == "invalid_image"
    else:
        assert image.pixels().shape[0] == 3


def damaged(rng: random.Random) -> bytes:
    data = bytearray(picture("RGB", 40, 30, rng.choice(["PNG", "JPEG", "WEBP", "GIF"])))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[:rng.randrange(len(data))] if rng.random() < 0.3 else data)


def test_data_urls() -> None:
    data = picture("RGB", 30, 30)
    for encoded in (base64.b64encode(data), base64.encodebytes(data)):
        assert from_data_url("data:image/png;base64," + encoded.decode(), "url") == data
    for wrong in ("data:image/png,hello", "data:text/plain;base64,aGVsbG8=", "data:image/png;base64,a*b", "data:,"):
        with pytest.raises(RequestError) as refused:
            from_data_url(wrong, "url")
        assert refused.value.param == "url"


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing.png' cannot be read: No such file"):
        from_path(tmp_path / "nothing.png")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(images, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"brise\[mistral\]"):
        prepare(picture("RGB", 30, 30), SETTINGS, "image")


def test_only_a_single_image_that_ends_a_message_goes_first() -> None:
    text, image = {"type": "text"}, {"type": "image"}
    assert arranged([text, image]) == [image, text]
    for kept in ([image], [image, text], [text, image, text], [text, image, image], [image, text, image]):
        assert arranged(kept) == kept
