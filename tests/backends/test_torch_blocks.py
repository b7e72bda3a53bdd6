"""Blocks that a GPU dequantizes by tensor operations: the bits of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from brise.quant.dequantize import dequantize
from brise.quant.formats import FORMATS, QUANTISED

torch = pytest.importorskip("torch")
blocks = pytest.importorskip("brise.backends.torch.blocks")


@pytest.mark.parametrize("format", QUANTISED)
def test_every_code_and_scale_gives_the_bits_of_the_reference(format: str) -> None:
    data = np.random.default_rng(3).integers(0, 256, (300, FORMATS[format].row_bytes(512)), dtype=np.uint8)
    numbers = blocks.dequantize(format, torch.from_numpy(data), 512)
    assert numbers.dtype == torch.float32
    assert np.array_equal(numbers.numpy(), dequantize(format, data, 512), equal_nan=True)


def test_every_exponent_of_mxfp4_has_its_power_of_two() -> None:
    data = np.full((256, 17), 0x21, np.uint8)
    data[:, 0] = np.arange(256)
    assert np.array_equal(blocks.dequantize("MXFP4", torch.from_numpy(data), 32).numpy(), dequantize("MXFP4", data, 32))
