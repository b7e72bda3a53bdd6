"""The optimizer state that AdamW keeps of a parameter: two moments, in float32 or in 8 bits. Needs the extra `tune`.

8 bits follow "8-bit Optimizers via Block-wise Quantization" (2110.02861): each block of 256 numbers is divided by its
largest magnitude, and each quotient becomes one of 256 values that are dense near 1 and sparse towards 0, over seven
decades. Of the second moment the root is stored: a step divides by it, and it spans half as many decades. A root that
is not 0 never becomes 0, or a step would divide by eps alone.

Rounding is stochastic: the moments move by a thousandth a step, less than the distance of two values, and rounding to
the nearest would never move them.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

Tensor = torch.Tensor
Bits = Literal[8, 32]

BLOCK = 256
MIN_8BIT = 4096  # numbers; smaller parameters (norms, biases) keep float32: they are few, and each counts
_DECADES = 7


class OptimizerState(Protocol):
    """Both moments of one parameter, which are read and written as flat float32 numbers."""

    def read(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """The mean and the mean square of a part, to be changed in place."""
    def write(self, first: int, mean: Tensor, square: Tensor, generator: torch.Generator) -> None:
        """Stores the changed part."""
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps."""


def new_state(parameter: Tensor, bits: Bits, home: torch.device) -> OptimizerState:
    """OptimizerState of a parameter before its first step. It lies on `home`; steps compute where the parameter is."""
    if bits == 8 and parameter.numel() >= MIN_8BIT:
        return BlockState(parameter, home)
    return PlainState(parameter, home)


def state_bytes(count: int, bits: Bits) -> int:
    """Bytes of the state of a parameter of `count` numbers."""
    if bits == 8 and count >= MIN_8BIT:
        return 2 * count + 2 * 4 * -(-count // BLOCK)
    return 8 * count


class PlainState:
    """Moments in float32."""

    def __init__(self, parameter: Tensor, home: torch.device) -> None:
        self._device = parameter.device
        self._mean = torch.zeros(parameter.numel(), device=home)
        self._square = torch.zeros(parameter.numel(), device=home)

    def read(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        return (self._mean[first:first + count].to(self._device),
                self._square[first:first + count].to(self._device))

    def write(self, first: int, mean: Tensor, square: Tensor, generator: torch.Generator) -> None:
        """Does nothing at home: what `read` gave are views."""
        if self._mean.device != self._device:
            self._mean[first:first + len(mean)] = mean
            self._square[first:first + len(square)] = square

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self._mean, "square": self._square}


class BlockState:
    """Moments as 8-bit codes with one scale for each block."""

    def __init__(self, parameter: Tensor, home: torch.device) -> None:
        count, self._device = parameter.numel(), parameter.device
        num_blocks = -(-count // BLOCK)
        signed, unsigned = values(signed=True), values(signed=False)
        zero = int((signed == 0).nonzero())
        self._signed, self._unsigned = signed.to(self._device), unsigned.to(self._device)
        self._mean = torch.full((count,), zero, dtype=torch.uint8, device=home)
        self._root = torch.zeros(count, dtype=torch.uint8, device=home)
        self._mean_scales = torch.zeros(num_blocks, device=home)
        self._root_scales = torch.zeros(num_blocks, device=home)

    def read(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        blocks = slice(first // BLOCK, -(-(first + count) // BLOCK))
        numbers = slice(first, first + count)
        mean, mean_scales, root, root_scales = (part.to(self._device) for part in (
            self._mean[numbers], self._mean_scales[blocks], self._root[numbers], self._root_scales[blocks]))
        return _decode(mean, mean_scales, self._signed), _decode(root, root_scales, self._unsigned).square_()

    def write(self, first: int, mean: Tensor, square: Tensor, generator: torch.Generator) -> None:
        numbers, blocks = slice(first, first + len(mean)), slice(first // BLOCK, -(-(first + len(mean)) // BLOCK))
        for x, codes, scales, table in ((mean, self._mean, self._mean_scales, self._signed),
                                        (square.sqrt(), self._root, self._root_scales, self._unsigned)):
            codes[numbers], scales[blocks] = encode(x, table, generator)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self._mean, "mean_scales": self._mean_scales,
                "root": self._root, "root_scales": self._root_scales}


def values(*, signed: bool) -> Tensor:
    """The 256 values in order: 0, 1, and in each decade below 1 twice as many as in the next lower one.

    With signs there are 127 on either side of 0, and 1 without a counterpart.
    """
    halves = []
    for decade in range(_DECADES):
        count = 2 ** (decade if signed else decade + 1)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        halves.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade + 1 - _DECADES))
    above = torch.cat(halves)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    table = torch.cat([-above.flip(0), zero, above, one] if signed else [zero, above, one])
    return table.float()


def encode(x: Tensor, table: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The codes of flat numbers, and the largest magnitude of each block."""
    padded = torch.nn.functional.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1)
    share = (padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).flatten()[:len(x)]
    upper = torch.bucketize(share, table).clamp_(1, len(table) - 1)  # table[upper - 1] < share <= table[upper]
    low, high = table[upper - 1], table[upper]
    chance = torch.rand(len(x), generator=generator).to(x.device)
    codes = torch.where(chance * (high - low) < share - low, upper, upper - 1)
    if table[0] == 0:  # magnitudes: a number that is not 0 stays so
        codes = torch.where(share > 0, codes.clamp(min=1), 0)
    return codes.to(torch.uint8), scales


def _decode(codes: Tensor, scales: Tensor, table: Tensor) -> Tensor:
    x = table[codes.int()]
    return x.mul_(scales.repeat_interleave(BLOCK)[:len(x)])
