"""Choosing bfloat16 or float32: whichever trains faster on this machine, measured on the model's own shapes.

Needs the extra `tune`. Matrices of each shape of one decoder layer are multiplied as in the forward and the backward
pass, alternating between the types, for a quarter of a second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from brise.models.weights import Layer, weights_with_paths

_TOKENS = 256
_SECONDS = 0.25
_GAIN = 1.1  # bfloat16 has fewer digits, so it must be this much faster


@dataclass(frozen=True)
class Speed:
    """Multiply-adds a second of each type, in units of 10^9; `dtype` is the type to take."""

    dtype: torch.dtype
    rates: Mapping[str, float]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {2 * rate:.0f} GFLOP/s" for name, rate in self.rates.items())
        return f"{str(self.dtype).removeprefix('torch.')} (measured: {shown})"


def measure(layer: Layer, device: torch.device, seconds: float = _SECONDS) -> Speed:
    """The faster type for a layer of these shapes."""
    shapes = Counter((weight.shape[-2], weight.shape[-1]) for _, weight in weights_with_paths(layer)
                     if len(weight.shape) > 1)
    largest = max(rows * cols for rows, cols in shapes)
    # One product with the largest matrix takes milliseconds, whatever the model.
    tokens = max(16, min(_TOKENS, (1 << 29) // largest))
    times = {torch.float32: 0.0, torch.bfloat16: 0.0}
    for (rows, cols), count in shapes.items():
        share = count * rows * cols / sum(number * a * b for (a, b), number in shapes.items())
        for dtype, each in _times(rows, cols, tokens, device, seconds * share).items():
            times[dtype] += count * each
    work = 2 * tokens * sum(count * rows * cols for (rows, cols), count in shapes.items()) / 1e9
    rates = {str(dtype).removeprefix("torch."): work / each for dtype, each in times.items()}
    is_faster = times[torch.bfloat16] * _GAIN < times[torch.float32]
    return Speed(torch.bfloat16 if is_faster else torch.float32, rates)


def _times(rows: int, cols: int, tokens: int, device: torch.device, seconds: float) -> dict[torch.dtype, float]:
    """The least time of a product and of its gradient with respect to x."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    tensors = {dtype: (torch.ones(tokens, cols, dtype=dtype, device=device),
                       torch.ones(rows, cols, dtype=dtype, device=device)) for dtype in best}
    end = time.perf_counter() + seconds
    is_first = True
    while is_first or time.perf_counter() < end:
        for dtype, (x, w) in tensors.items():
            start = time.perf_counter()
            (x @ w.t()) @ w
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
        is_first = False
    return best
