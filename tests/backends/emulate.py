"""The native backend's linears of quantized weights in plain NumPy, with activations rounded to int8.

Each 32 numbers of a row of x get one float32 scale max|x| / 127 and are rounded, halves to even. All else is
exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brise.backends.reference.ops import ReferenceOps, numbers
from brise.models.weights import Array, Quant, Weight

GROUP = 32


@dataclass(frozen=True)
class RoundedActivationOps(ReferenceOps):
    """The reference ops, except for linears of quantized weights."""

    def linear(self, x: Array, w: Weight) -> Array:
        if not isinstance(w, Quant):
            return super().linear(x, w)
        rounded = round_activations(x).astype(self.precision)
        return rounded @ numbers(w, self.precision).T

    def linears(self, x: Array, weights: Sequence[Weight]) -> tuple[Array, ...]:
        return tuple(self.linear(x, w) for w in weights)


def quantized_linear(x: Array, w: Weight) -> Array:
    """x (T, D) rounded to int8 groups, times w (O, D) transposed, in float64."""
    return round_activations(x) @ numbers(w, np.float64).T


def round_activations(x: Array) -> Array:
    """x (T, D) as int8 times scale gives it back, in float64."""
    grouped = x.astype(np.float32).reshape(len(x), -1, GROUP)
    scales = steps(x)[..., None]
    divisors = np.where(scales == 0, 1, scales)
    return (np.rint(grouped / divisors) * scales).reshape(x.shape)


def steps(x: Array) -> Array:
    """The scale (T, D / 32) of every group, float32 in a float64 array."""
    grouped = np.abs(x.astype(np.float32)).reshape(len(x), -1, GROUP)
    return (grouped.max(-1) / np.float32(127)).astype(np.float64)
