"""Brings samples to another rate with a polyphase filter: a sinc of 10 zero crossings on each side under a Kaiser
window with beta 5, cut off at the lower of both Nyquist frequencies, as scipy.signal.resample_poly has it.

With the rates' ratio reduced to up / down and L = 10 max(up, down), sample n is the sum over k of
h[n down + L - k up] x[k]. Its taps depend on its phase, (n down + L) mod up, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import numpy as np

from brise.models.weights import Array

CROSSINGS, BETA = 10, 5.0
BLOCK = 4096  # samples that are made at a time
PHASES = 256  # whose taps are computed at a time: the window takes ten times their memory
# The sum of all taps tends to a limit as the filter gets longer; from here on it has been reached to 1e-8.
LONGEST_SUM = 4096


class Resampler:
    """Makes samples at the rate `new` from those at the rate `old`; taps are computed for the phases that occur."""

    def __init__(self, old: int, new: int) -> None:
        common = gcd(old, new)
        self.up, self.down = new // common, old // common
        self._longest = max(self.up, self.down)
        self._half = CROSSINGS * self._longest
        self.num_taps = 2 * self._half // self.up + 1
        self._taps = np.empty((self.up, self.num_taps), np.float32)
        self._is_made = np.zeros(self.up, bool)
        points = min(self._longest, LONGEST_SUM)
        places = np.arange(-CROSSINGS * points, CROSSINGS * points + 1) / points
        self._scale = self.up / self._longest * points / float(_sinc(places).sum())

    def count(self, num_samples: int) -> int:
        """How many samples come out of so many."""
        return -(-num_samples * self.up // self.down)

    def samples(self, read: Callable[[int, int], Array], first: int, last: int) -> Array:
        """Samples first to last at the new rate, float32; `read` gives old ones, zeros where there are none."""
        if self.up == self.down:
            return read(first, last)
        return np.concatenate([self._block(read, start, min(start + BLOCK, last))
                               for start in range(first, last, BLOCK)] or [np.zeros(0, np.float32)])

    def _block(self, read: Callable[[int, int], Array], first: int, last: int) -> Array:
        places = np.arange(first, last, dtype=np.int64) * self.down + self._half
        phases, ends = places % self.up, places // self.up + 1  # behind the last old sample of each
        begin = int(ends[0]) - self.num_taps
        windows = np.lib.stride_tricks.sliding_window_view(read(begin, int(ends[-1])), self.num_taps)
        self._make(np.unique(phases))
        return np.einsum("nt,nt->n", self._taps[phases], windows[ends - self.num_taps - begin])

    def _make(self, phases: Array) -> None:
        """Computes taps, in the order of the old samples."""
        missing = phases[~self._is_made[phases]]
        for first in range(0, len(missing), PHASES):
            some = missing[first:first + PHASES]
            places = some[:, None] + np.arange(self.num_taps - 1, -1, -1) * self.up - self._half
            self._taps[some] = self._scale * _sinc(places / self._longest)
        self._is_made[missing] = True


def _sinc(x: Array) -> Array:
    """The sinc at x zero crossings from the middle, under the window; zero where that ends."""
    inside = np.maximum(1.0 - (x / CROSSINGS) ** 2, 0.0)
    return np.where(np.abs(x) <= CROSSINGS, np.sinc(x) * np.i0(BETA * np.sqrt(inside)) / np.i0(BETA), 0.0)
