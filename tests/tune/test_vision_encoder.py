"""A vision encoder that is trained from nothing learns what its pictures show, to the same bits for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from brise.errors import UnsupportedError
from brise.models.weights import Dense, weights_with_paths
from brise.tune import vision_encoder
from brise.tune.vision_encoder import EncoderOptions, TrainedEncoder

pytest.importorskip("torch")

ROWS = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)  # of a dark cell and of a bright one


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 2 x 2 cells of 16 pixels, each dark or bright."""
    bright = np.random.default_rng([7, step]).integers(0, 2, (8, 2, 2))
    pixels = np.kron(2.0 * bright[:, None] - 1, np.ones((1, 3, 16, 16))).astype(np.float32)
    return pixels, ROWS[bright.reshape(8, 4)]


def trained(steps: int) -> TrainedEncoder:
    options = EncoderOptions(width=16, num_layers=1, num_heads=2, ffn_width=16, patch_size=16, image_size=32,
                             steps=steps, threads=1)
    return vision_encoder.train(batch, 16, 5, 1e-5, options)


def test_it_learns_what_its_pictures_show() -> None:
    assert trained(150).loss < 0.05


def test_the_same_seed_gives_the_same_bits() -> None:
    one, two = (weights_with_paths(trained(3).weights) for _ in range(2))
    for (name, first), (_, second) in zip(one, two, strict=True):
        assert isinstance(first, Dense) and isinstance(second, Dense)
        np.testing.assert_array_equal(first.data, second.data, err_msg=name)


@pytest.mark.parametrize(("options", "named"), [
    ({"num_heads": 7}, "7 heads"), ({"num_heads": 96}, "multiple of 4"), ({"image_size": 60}, "image size is 60"),
    ({"steps": 0}, "0 steps")])
def test_sizes_that_cannot_be_are_named(options: dict[str, int], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        EncoderOptions(**options)  # type: ignore[arg-type]
