"""Rope frequencies: the published models' golden values, and each rule where it can be checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from brise.models.rope import Factors, Linear, Llama3, LongRope, Rope, Scaling, Yarn, extended_context, frequencies
from tests.goldens import golden

# Equal to transformers 5.23.0 to 4e-8. Columns: rope, attention_factor, {index: frequency}, sum of all frequencies.
GOLDEN = {
    "Ministral 3 3B and 8B": (
        Rope(1e6, 128, "half", Yarn(16, 16384, mscale_all_dim=1.0)),
        1.0, {32: 3.38235e-4, 63: 7.75586e-8}, 5.135129379),
    "Ministral 3 14B": (
        Rope(1e9, 128, "half", Yarn(16, 16384, mscale_all_dim=1.0)),
        1.0, {32: 1.97642e-6, 63: 8.63983e-11}, 3.604505232),
    "Devstral Small 2": (
        Rope(1e8, 128, "half", Yarn(48, 8192, mscale_all_dim=1.0)),
        1.0, {32: 2.08333e-6, 63: 2.77817e-10}, 3.970431262),
    "Devstral 2 123B": (
        Rope(1e6, 128, "half", Yarn(64, 4096, beta_fast=4, mscale_all_dim=0.0)),
        1.415888, {32: 1.5625e-5, 63: 1.93897e-8}, 5.135358191),
    "Large 3": (
        Rope(1e4, 64, "half", Yarn(36, 8192, mscale_all_dim=1.0)),
        1.0, {16: 7.00855e-3, 31: 3.70423e-6}, 3.970617865),
    "Small 4": (
        Rope(1e4, 64, "half", Yarn(128, 8192, mscale_all_dim=1.0)),
        1.0, {16: 6.94712e-3, 31: 1.04181e-6}, 3.970057437),
}
PLAIN = tuple(10000.0 ** (-i / 8) for i in range(8))


@pytest.mark.parametrize("model", GOLDEN)
def test_yarn_frequencies_of_published_models(model: str) -> None:
    rope, attention_factor, known, total = GOLDEN[model]
    inv_freq, factor = frequencies(rope)
    assert len(inv_freq) == rope.dim // 2
    assert factor == pytest.approx(attention_factor, abs=1e-6)
    assert sum(inv_freq) == pytest.approx(total, abs=5e-8)
    for index, value in known.items():
        assert inv_freq[index] == pytest.approx(value, rel=5e-6)  # six digits are given


def test_explicit_attention_factor_wins() -> None:
    assert frequencies(Rope(1e4, 16, "half", Yarn(4, 64, attention_factor=1.25)))[1] == 1.25


def test_yarn_magnitude_of_both_mscales() -> None:
    _, attention_factor = frequencies(Rope(1e4, 16, "half", Yarn(16, 64, mscale=0.707, mscale_all_dim=1.0)))
    assert attention_factor == pytest.approx((0.0707 * math.log(16) + 1) / (0.1 * math.log(16) + 1))


def test_plain_frequencies() -> None:
    inv_freq, attention_factor = frequencies(Rope(10000.0, 16, "half"))
    assert inv_freq == pytest.approx(PLAIN) and attention_factor == 1.0


def test_linear_divides_every_frequency() -> None:
    inv_freq, attention_factor = frequencies(Rope(10000.0, 16, "half", Linear(4.0)))
    assert inv_freq == pytest.approx([f / 4 for f in PLAIN]) and attention_factor == 1.0


def test_llama3_keeps_high_and_divides_low_frequencies() -> None:
    inv_freq, _ = frequencies(Rope(10000.0, 16, "half", Llama3(8.0, 32)))
    assert inv_freq[0] == PLAIN[0]  # wavelength 6.3, under 32 / 4
    smooth = (32 / (2 * math.pi / PLAIN[1]) - 1) / 3  # wavelength 19.9, between
    assert inv_freq[1] == pytest.approx(PLAIN[1] * ((1 - smooth) / 8 + smooth))
    assert inv_freq[2:] == pytest.approx([f / 8 for f in PLAIN[2:]])  # wavelengths over 32


def test_llama3_as_factors_of_a_gguf_file() -> None:
    scaled, _ = frequencies(Rope(10000.0, 16, "half", Llama3(8.0, 32)))
    factors = Factors(tuple(plain / turn for plain, turn in zip(PLAIN, scaled, strict=True)))
    assert frequencies(Rope(10000.0, 16, "interleaved", factors))[0] == pytest.approx(scaled)


def test_a_wrong_number_of_factors_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        frequencies(Rope(10000.0, 16, "half", Factors((1.0,))))


@pytest.mark.parametrize(("context", "factors"), [(1, (1.0, 2.0)), (64, (1.0, 2.0)), (65, (4.0, 8.0))])
def test_longrope_has_the_factors_of_the_context_that_a_model_is_opened_with(
        context: int, factors: tuple[float, ...]) -> None:
    config = replace(golden.read("llama_tied", "half").config, rope=Rope(
        100.0, 4, "half", LongRope((1.0, 2.0), (4.0, 8.0), 64, 1.25, is_long=True)))
    inv_freq, attention_factor = frequencies(config.for_context(context).rope)
    assert inv_freq == (1 / factors[0], 0.1 / factors[1]) and attention_factor == 1.25


def test_other_models_are_the_same_in_every_context() -> None:
    config = golden.read("llama3_untied", "half").config
    assert config.for_context(1) is config and config.short_context is None


@pytest.mark.parametrize(("scaling", "stated", "longest"), [
    (None, 8192, 8192), (Yarn(4, 8192), 8192, 32768), (Yarn(4, 32768), 40960, 131072),  # Qwen2.5's and Qwen3's cards
    (Yarn(16, 16384), 262144, 262144), (Yarn(1, 8192), 4096, 4096),
    (Llama3(8, 8192), 131072, 131072), (Llama3(8, 8192), 8192, 65536), (Llama3(32, 8192), 131072, 131072),
    (Linear(4, 4096), 4096, 16384), (Linear(4, 4096), 32768, 32768), (Factors((1.0, 2.0)), 4096, 4096),
    (LongRope((1.0,), (2.0,), 4096, 1.19, is_long=True), 131072, 131072)])
def test_scaling_extends_the_context(scaling: Scaling, stated: int, longest: int) -> None:
    assert extended_context(scaling, stated) == longest
