"""The hidden state behind an answer's last token, made small: what a head that tells right from wrong learns from.

It is the model's normalised state at the position from which the last token was drawn, of which 64 numbers are kept:
random sums with signs (Achlioptas, Database-friendly random projections, 2003), which keep distances as Johnson and
Lindenstrauss say. The signs are the raw bits of a Philox generator: the same on every machine, and in every version.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from brise.models.weights import Array

WIDTH = 64
_SEED = 2003


def reduced(hidden_D: Array) -> tuple[float, ...]:
    """WIDTH numbers; of a state of length sqrt(D), as a norm leaves it, each is about 1 in size."""
    state = np.asarray(hidden_D, np.float64)
    sums = _signs(len(state)) @ state / np.sqrt(len(state))
    return tuple(float(f"{value:.4g}") for value in sums)


@lru_cache(maxsize=4)
def _signs(width: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(WIDTH, width) of 1 and -1."""
    words = np.random.Philox(key=_SEED).random_raw(-(-WIDTH * width // 64))
    bits = np.unpackbits(np.asarray(words, "<u8").view(np.uint8))[:WIDTH * width]
    return np.where(bits.reshape(WIDTH, width), 1.0, -1.0)
