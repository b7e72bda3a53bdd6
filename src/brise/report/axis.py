"""From values to places on a chart: linear or logarithmic, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brise.report import figures

_HUGE = 1e100  # what is larger, or nearer to zero on a logarithmic axis, stands at the end
_DECADES = 12  # a logarithmic axis shows so many at most: below lies nothing that anyone compares


@dataclass(frozen=True)
class Axis:
    """What an axis is called, how its numbers read, and its ends (None: from the data)."""

    name: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    words: Callable[[float], str] = figures.short
    num_ticks: int = 5

    def fitted(self, values: Iterable[float]) -> Axis:
        """The axis with ends that hold all finite `values`; a logarithmic one looks at the positive ones."""
        found = np.asarray(list(values), np.float64)
        found = found[(np.abs(found) < _HUGE) & ((found > 1 / _HUGE) | (not self.is_log))]  # nan is not, either
        low = self.low if self.low is not None else float(found.min()) if len(found) else 0.0
        high = self.high if self.high is not None else float(found.max()) if len(found) else 1.0
        if self.is_log:
            high = high if high > 0 else 1.0
            low = max(low, high / 10.0**_DECADES)
            if high / low < 10:
                low, high = low / math.sqrt(10), high * math.sqrt(10)
        elif high - low <= 1e-9 * abs(high):  # also where all values are one
            margin = max(1.0, 1e-3 * abs(high))
            low, high = low if self.low is not None else low - margin, high + margin
        elif self.low is None or self.high is None:
            margin = 0.06 * (high - low)
            low = low if self.low is not None else low - margin
            high = high if self.high is not None else high + margin
        return replace(self, low=low, high=high)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies beyond stands at the end."""
        assert self.low is not None and self.high is not None, "a fitted axis has its ends"
        if math.isnan(value):
            return math.nan
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> Sequence[tuple[float, str]]:
        """Round numbers within the ends, and how they read."""
        assert self.low is not None and self.high is not None, "a fitted axis has its ends"
        values = (_decades if self.is_log else _steps)(self.low, self.high, self.num_ticks)
        return [(value, self.words(value)) for value in values]


def _steps(low: float, high: float, count: int) -> Sequence[float]:
    raw = (high - low) / max(count, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _decades(low: float, high: float, count: int) -> Sequence[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        return [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)
                if low * (1 - 1e-9) <= digit * 10.0**power <= high * (1 + 1e-9)]
    every = math.ceil((last - first + 1) / (count + 1))
    return [10.0**power for power in range(first, last + 1) if power % every == 0]
