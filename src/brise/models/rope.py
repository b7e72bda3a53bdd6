"""Rotary position frequencies: plain, linear, Llama 3, YaRN and LongRoPE.

Sources: RoFormer (2104.09864), YaRN (2309.00071), LongRoPE (2402.13753); the Llama 3 rule as
transformers and llama.cpp apply it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

# How the two halves of a rotated pair lie in a head. It belongs to the file format, not to the model:
# GGUF `llama`/`mistral3` and Mistral native files pair neighbours, Hugging Face files pair i with i + dim/2.
Layout = Literal["interleaved", "half"]


@dataclass(frozen=True)
class Yarn:
    """YaRN: high frequencies stay, low ones are divided by `factor`, with a ramp between."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's rule: wavelengths over a limit are stretched by `factor`."""

    factor: float
    original_context: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class Linear:
    """Every frequency divided by `factor`. `original_context` is the one before; it changes no frequency."""

    factor: float
    original_context: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Factors:
    """Every frequency divided by its own factor (the `rope_freqs` tensor of GGUF files)."""

    factors: tuple[float, ...]


@dataclass(frozen=True)
class LongRope:
    """Every frequency divided by its own factor, of the short set or of the long one.

    The set belongs to the context that a model is opened with, not to the length of a sequence (Config.for_context):
    so a token's numbers depend on nothing that comes after it.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float
    is_long: bool


Scaling = Yarn | Llama3 | Linear | Factors | LongRope | None


@dataclass(frozen=True)
class Rope:
    """Rotation of the first `dim` numbers of a head."""

    theta: float
    dim: int
    layout: Layout
    scaling: Scaling = None


def extended_context(scaling: Scaling, stated: int) -> float:
    """The longest context with this scaling in a model whose file states `stated`.

    YaRN is meant for `factor` times the original context, as model cards and vLLM have it (Ministral 3: 16 * 16384).
    Linear scaling stretches what is stated (transformers tells people not to change max_position_embeddings for it).
    Llama 3's files state the stretched context already, unless they state the original one.
    """
    match scaling:
        case Yarn(factor, original) if factor > 1:
            return max(stated, factor * original)
        case Llama3(factor, original) if stated <= original:
            return factor * original
        case Linear(factor, int(original)):
            return max(stated, factor * original)
        case _:
            return stated


def frequencies(rope: Rope) -> tuple[tuple[float, ...], float]:
    """`inv_freq`, the dim/2 inverse frequencies, and `attention_factor`, which multiplies cos and sin."""
    plain = tuple(rope.theta ** (-2.0 * i / rope.dim) for i in range(rope.dim // 2))
    match rope.scaling:
        case None:
            return plain, 1.0
        case Linear(factor, _):
            return tuple(f / factor for f in plain), 1.0
        case Factors(factors):
            return tuple(f / s for f, s in zip(plain, factors, strict=True)), 1.0
        case LongRope(short, long, _, attention_factor, is_long):
            factors = long if is_long else short
            return tuple(f / s for f, s in zip(plain, factors, strict=True)), attention_factor
        case Llama3():
            return tuple(_llama3(f, rope.scaling) for f in plain), 1.0
        case Yarn():
            return _yarn(plain, rope, rope.scaling), _yarn_attention_factor(rope.scaling)


def long_rope_attention_factor(factor: float, original_context: int) -> float:
    """What LongRoPE multiplies cos and sin by in a context `factor` times the original one (2402.13753)."""
    return math.sqrt(1 + math.log(factor) / math.log(original_context)) if factor > 1 else 1.0


def _llama3(frequency: float, scaling: Llama3) -> float:
    wavelength = 2 * math.pi / frequency
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return frequency / scaling.factor
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return frequency
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def _yarn(plain: tuple[float, ...], rope: Rope, scaling: Yarn) -> tuple[float, ...]:
    def cutoff(rotations: float) -> float:
        """The index whose wavelength fits `rotations` times into the original context."""
        return rope.dim * math.log(scaling.original_context / (2 * math.pi * rotations)) / (
            2 * math.log(rope.theta))

    low = max(math.floor(cutoff(scaling.beta_fast)), 0)
    high: float = min(math.ceil(cutoff(scaling.beta_slow)), rope.dim - 1)
    if high == low:
        high += 0.001
    out = []
    for i, frequency in enumerate(plain):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append(frequency / scaling.factor * ramp + frequency * (1 - ramp))
    return tuple(out)


def _yarn_attention_factor(scaling: Yarn) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def factor_of(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return factor_of(scaling.mscale) / factor_of(scaling.mscale_all_dim)
    return factor_of(1.0)
