"""Decodes weights that are small codes and scales: FP8 (one scale, or one for each row or block) and NVFP4.

Both become BF16 when they are read: code times scale in float32, rounded once, as the original BF16 weight was made.
FP8: e4m3 codes times a scale for `block` rows and columns. NVFP4: two e2m1 codes a byte, the low one first; 16
columns share an e4m3 scale, and the whole matrix one in float32. Sources: Micikevicius et al. 2209.05433 (e4m3),
OCP MX 1.0 (e2m1), compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brise.errors import bad_value

Codes = NDArray[Any]  # uint8
Floats = NDArray[np.float32]
Bits = NDArray[np.uint16]

GROUP = 16  # columns that share a scale of NVFP4
PAIRS_FROM = 1 << 19  # codes: the table of all pairs takes as long to make as half of them to look up
E2M1: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Fp8Rows:
    """Rows of an FP8 matrix as BF16. `scales` (R, C) holds one for each `block` rows and columns.

    `order` gives the file's row for each row; without it, rows keep the file's order.
    """

    name: str
    codes: Codes  # (out, in)
    scales: NDArray[np.generic]
    block: tuple[int, int]
    order: NDArray[np.intp] | None = None

    def __call__(self, first: int, last: int) -> Bits:
        rows = slice(first, last) if self.order is None else self.order[first:last]
        scales = check_scales(self.name, self.scales)
        if scales.size == 1:
            return _looked_up(to_bf16(e4m3_numbers() * scales.reshape(())), self.codes[rows])
        numbers = np.take(e4m3_numbers(), self.codes[rows])
        indices = np.arange(first, last) if self.order is None else self.order[first:last]
        of_rows = scales[indices // self.block[0]]
        if of_rows.shape[1] > 1:
            of_rows = np.repeat(of_rows, self.block[1], axis=1)[:, :numbers.shape[1]]
        numbers *= of_rows
        return to_bf16(numbers)


@dataclass(frozen=True)
class Nvfp4Rows:
    """Rows of an NVFP4 matrix as BF16. `whole` is the scale of all: a factor, or where `divides` a divisor."""

    name: str
    packed: Codes  # (out, in / 2)
    scales: Codes  # (out, in / 16), e4m3
    whole: NDArray[np.generic]
    divides: bool
    order: NDArray[np.intp] | None = None

    def __call__(self, first: int, last: int) -> Bits:
        rows = slice(first, last) if self.order is None else self.order[first:last]
        whole = check_scales(f"{self.name} (whole)", self.whole).reshape(())
        scales = np.take(e4m3_numbers(), self.scales[rows])
        if not np.isfinite(scales).all():
            raise bad_value(f"scales of {self.name}", "not a number", "finite numbers")
        scales = scales / whole if self.divides else scales * whole
        packed = self.packed[rows]
        values = np.array([*E2M1, *(-value for value in E2M1)], np.float32)
        numbers = np.empty((len(packed), packed.shape[1], 2), np.float32)
        np.take(values, packed & 15, out=numbers[..., 0])
        np.take(values, packed >> 4, out=numbers[..., 1])
        groups = numbers.reshape(len(packed), -1, GROUP)
        groups *= scales[..., None]
        return to_bf16(groups.reshape(len(packed), -1))


def _looked_up(table: Bits, codes: Codes) -> Bits:
    """table[codes]; many of them two at a time, which is four times as fast."""
    if codes.size < PAIRS_FROM or codes.shape[1] % 2:
        return np.take(table, codes)
    wide = table.astype(np.uint32)
    pairs = (wide[:, None] << 16 | wide).reshape(-1)  # the low byte is the first of the two
    return np.take(pairs, np.ascontiguousarray(codes).view(np.uint16)).view(np.uint16)


def check_scales(name: str, scales: NDArray[np.generic]) -> Floats:
    """Scales as float32; BF16 lies in uint16. CheckpointError unless every one is finite and over 0."""
    numbers = from_bf16(scales) if scales.dtype == np.uint16 else np.asarray(scales, np.float32)
    lies = ~(np.isfinite(numbers) & (numbers > 0))
    if lies.any():
        raise bad_value(f"a scale of {name}", numbers[lies].flat[0], "a finite number over 0")
    return numbers


def e4m3_numbers() -> Floats:
    """The number of each of the 256 codes: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    numbers = np.where(exponents == 0, mantissas / 8 * 2.0**-6, (1 + mantissas / 8) * 2.0 ** (exponents - 7.0))
    numbers[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -numbers, numbers).astype(np.float32)


def to_bf16(numbers: Floats) -> Bits:
    """The upper halves, rounded to nearest, ties to even."""
    bits = numbers.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def from_bf16(bits: NDArray[np.generic]) -> Floats:
    """What uint16 upper halves stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
