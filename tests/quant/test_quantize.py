"""Quantising: bytes that everybody writes, errors below bounds, the same on every instruction set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import gguf
import numpy as np
import pytest

from brise import _native
from brise.models.weights import Array
from brise.quant.dequantize import dequantize
from brise.quant.formats import FORMATS, QUANTISED
from brise.quant.rows import quantize

PLAIN_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
COLS = 1280  # five blocks of 256: an odd number, so that the last pass of a kernel is half full

# Relative error, the root of sum w (x - x')^2 / sum w x^2, on numbers() of 256 x 1280: normal, heavy tails, and both
# with importance. What llama.cpp's quantiser (ggml 0.25.3) reaches on the same numbers, which ours must stay below.
LLAMA_CPP: Mapping[str, tuple[float, float, float, float]] = MappingProxyType({
    "Q4_0": (0.08600, 0.12800, 0.07120, 0.11281),
    "Q4_1": (0.07823, 0.10030, 0.05545, 0.07155),
    "Q5_0": (0.04272, 0.06613, 0.03531, 0.05978),
    "Q5_1": (0.03790, 0.04850, 0.02690, 0.03484),
    "Q8_0": (0.00536, 0.00843, 0.00532, 0.00836),
    "Q2_K": (0.29659, 0.35191, 0.20109, 0.23873),
    "Q3_K": (0.15081, 0.19026, 0.12128, 0.15883),
    "Q4_K": (0.07143, 0.09269, 0.05661, 0.07468),
    "Q5_K": (0.03617, 0.04703, 0.02947, 0.03971),
    "Q6_K": (0.01778, 0.02539, 0.01468, 0.02210),
    "IQ4_NL": (0.07614, 0.10207, 0.06347, 0.08643),
    "IQ4_XS": (0.07673, 0.10318, 0.06439, 0.08862),
    "MXFP4": (0.11416, 0.14138, 0.11503, 0.14486),
})


def numbers(rows: int, *, heavy: bool) -> Array:
    """Weights of a usual size; heavy tails are Student's t with 3 degrees of freedom."""
    rng = np.random.default_rng(7)
    x = rng.standard_t(3, (rows, COLS)) if heavy else rng.standard_normal((rows, COLS))
    return (x * 0.02).astype(np.float32)


def importance() -> Array:
    return np.exp(np.random.default_rng(8).standard_normal(COLS) * 1.5).astype(np.float32)


def error(format: str, blocks: Array, x: Array, weights: Array | None) -> float:
    off = dequantize(format, blocks, x.shape[1]).astype(np.float64) - x
    w = np.ones(x.shape[1]) if weights is None else weights.astype(np.float64)
    return float(np.sqrt((w * off**2).sum() / (w * x.astype(np.float64)**2).sum()))


@pytest.mark.parametrize("format", PLAIN_BLOCKS)
@pytest.mark.parametrize("heavy", [False, True])
def test_blocks_of_32_are_the_ones_everybody_writes(format: str, heavy: bool) -> None:
    x = numbers(64, heavy=heavy)
    x[3, :64] = 0
    x[4, 32:64] = 0.5
    x[5, 5] = -x[5].max() * 2
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[format])
    assert np.array_equal(quantize(format, x), expected)


@pytest.mark.parametrize("case", range(4), ids=["normal", "heavy", "normal, weighed", "heavy, weighed"])
@pytest.mark.parametrize("format", QUANTISED)
def test_errors_stay_below_those_of_llama_cpp(format: str, case: int) -> None:
    x, weights = numbers(256, heavy=bool(case % 2)), importance() if case >= 2 else None
    assert error(format, quantize(format, x, weights, threads=2), x, weights) <= LLAMA_CPP[format][case]


@pytest.mark.parametrize("format", QUANTISED)
def test_importance_serves_the_columns_that_matter(format: str) -> None:
    x, weights = numbers(16, heavy=False), importance()
    assert error(format, quantize(format, x, weights), x, weights) < error(format, quantize(format, x), x, weights)


@pytest.mark.parametrize("format", QUANTISED)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bytes(format: str) -> None:
    x, weights = numbers(9, heavy=True), importance() / importance().max()
    results = []
    for isa in _native.isa_names():
        for threads in (1, 2):
            out = np.zeros((9, FORMATS[format].row_bytes(COLS)), np.uint8)
            _native.Backend(threads, isa).quantize(format, x, weights, out)
            results.append(out)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("format", QUANTISED)
def test_rows_do_not_depend_on_their_company(format: str) -> None:
    x, weights = numbers(5, heavy=True), importance()
    assert np.array_equal(quantize(format, x, weights)[3:4], quantize(format, x[3:4], weights))


@pytest.mark.parametrize("format", [name for name in QUANTISED if name.endswith("_K") or name.startswith("IQ4")])
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 1e-7, 60000.0])
def test_rows_of_one_number_come_back(format: str, value: float) -> None:
    x = np.full((1, 256), value, np.float32)
    back = dequantize(format, quantize(format, x), 256)
    assert np.abs(back - x).max() <= abs(value) * 0.02 + 1e-7


@pytest.mark.parametrize("format", ["Q4_0", "Q5_0", "IQ4_NL"])
def test_a_fitted_scale_is_as_good_as_any(format: str) -> None:
    codes_of = {"Q4_0": range(-8, 8), "Q5_0": range(-16, 16), "IQ4_NL": gguf.quants.IQ4_NL.kvalues}[format]
    numbers_of = np.array(codes_of, np.float64)
    x, weights = numbers(1, heavy=True)[0, :32], importance()[:32]
    scales = np.linspace(-1, 1, 40001)[:, None] * np.abs(x).max() / numbers_of.max()
    between = (numbers_of[1:] + numbers_of[:-1]) / 2
    codes = numbers_of[np.searchsorted(between, x / np.where(scales == 0, 1, scales))]
    best = np.sqrt((weights * (scales * codes - x)**2).sum(axis=1).min() / (weights * x**2).sum())
    assert error(format, quantize(format, x[None], weights), x[None], weights) <= best * 1.01


def test_what_has_no_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="'F16' has no blocks, allowed are Q4_0"):
        quantize("F16", np.ones((1, 32), np.float32))
    with pytest.raises(ValueError, match="multiples of 256"):
        quantize("Q4_K", np.ones((1, 288), np.float32))
    for wrong in (np.inf, np.nan, 1e6):
        with pytest.raises(ValueError, match="finite ones up to 65504"):
            quantize("Q4_0", np.full((1, 32), wrong, np.float32))
    for weights in (np.ones(31), np.full(32, -1.0), np.full(32, np.nan)):
        with pytest.raises(ValueError, match="finite numbers >= 0"):
            quantize("Q4_0", np.ones((1, 32), np.float32), weights)


def test_importance_of_zero_is_none_at_all() -> None:
    x = numbers(2, heavy=False)
    assert np.array_equal(quantize("Q4_K", x, np.zeros(COLS)), quantize("Q4_K", x))
