"""Dequantisation agrees with gguf's own NumPy code to the last bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from brise.errors import UnsupportedError
from brise.quant.dequantize import dequantize
from brise.quant.formats import FORMATS
from tests.checkpoint.make_gguf import random_blocks

K_FORMATS = [name for name in FORMATS if name.endswith("_K") or name.startswith("IQ4")]  # that gguf only reads
SIMPLE_FORMATS = [name for name in FORMATS if name not in K_FORMATS]


@pytest.mark.parametrize("name", FORMATS)
def test_table_of_formats_agrees_with_gguf(name: str) -> None:
    expected = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert (FORMATS[name].block_size, FORMATS[name].block_bytes) == expected


@pytest.mark.parametrize("cols", [256, 768])
@pytest.mark.parametrize("name", K_FORMATS)
def test_random_k_blocks_are_bit_equal(name: str, cols: int) -> None:
    data = random_blocks(np.random.default_rng(1), name, 5, cols)
    assert_bit_equal(dequantize(name, data, cols), oracle(name, data))


@pytest.mark.parametrize("cols", [32, 96])
@pytest.mark.parametrize("name", SIMPLE_FORMATS)
def test_quantised_numbers_are_bit_equal(name: str, cols: int) -> None:
    values = np.random.default_rng(2).standard_normal((7, cols)).astype(np.float32)
    data = gguf.quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8)
    assert_bit_equal(dequantize(name, data, cols), oracle(name, data))


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_are_bit_equal_even_where_scales_are_infinite(name: str) -> None:
    cols = FORMATS[name].block_size * 4
    shape = (64, FORMATS[name].row_bytes(cols))
    data = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = oracle(name, data)
    assert_bit_equal(dequantize(name, data, cols), expected)


def test_rows_need_not_lie_next_to_each_other() -> None:
    data = random_blocks(np.random.default_rng(4), "Q4_K", 6, 256)
    assert_bit_equal(dequantize("Q4_K", data[::2], 256), dequantize("Q4_K", data, 256)[::2])


def test_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'IQ3_S', allowed are .*IQ4_XS"):
        dequantize("IQ3_S", np.zeros((1, 110), np.uint8), 256)


def test_row_of_wrong_length_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"\(1, 17\).*\(rows, 18\)"):
        dequantize("Q4_0", np.zeros((1, 17), np.uint8), 32)
    with pytest.raises(ValueError, match="33 numbers.*multiples of 32"):
        dequantize("Q4_0", np.zeros((1, 18), np.uint8), 33)


def oracle(name: str, data: np.ndarray) -> np.ndarray:
    kind = GGMLQuantizationType[name]
    plain = {"F32": np.float32, "F16": np.float16}
    return gguf.quants.dequantize(data.view(plain[name]) if name in plain else data, kind)


def assert_bit_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, but for the payload of a NaN."""
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])
