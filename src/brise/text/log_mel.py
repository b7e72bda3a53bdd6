"""Computes Whisper's log-mel spectrogram of 16 kHz samples: frames of 400 under a Hann window, one every 160.

The samples are mirrored at both ends, and the frame behind the last sample is left out. Mel bands are Slaney's:
triangles of equal area, linear below 1 kHz and logarithmic above. What is over 8 decades below the loudest number
counts as that.
Source: Whisper (2212.04356).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brise.models.weights import Array

RATE, WINDOW, HOP = 16_000, 400, 160
DECADES = 8.0
LEAST_POWER = 1e-10
BLOCK_FRAMES = 512
_LINEAR_HERTZ, _LINEAR_MELS = 1000.0, 15.0  # where the scale becomes logarithmic
_LOG_STEP = np.log(6.4) / 27.0

Read = Callable[[int, int], Array]


def mel_filters(num_mels: int) -> Array:
    """(frequencies, bands) float64: the weight of each frequency of a frame in each band."""
    edges = _hertz(np.linspace(0.0, _mels(RATE / 2), num_mels + 2))
    frequencies = np.linspace(0.0, RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    falling = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[None, 1:]
    triangles: Array = np.maximum(np.minimum(rising, falling), 0.0)
    return triangles * (2.0 / (edges[2:] - edges[:-2]))


def loudest(read: Read, filters: Array, num_frames: int) -> float:
    """The largest logarithm in `num_frames` frames, on which the numbers of all of them depend."""
    return max(float(block.max()) for block in _blocks(read, filters, 0, num_frames))


def log_mels(read: Read, filters: Array, first: int, last: int, top: float) -> Array:
    """The spectrogram (last - first, bands) of these frames, float32; `top` is `loudest` of all frames.

    `read` gives 16 kHz samples, mirrored at both ends.
    """
    floor = top - DECADES
    return np.concatenate([((np.maximum(block, floor) + 4.0) / 4.0).astype(np.float32)
                           for block in _blocks(read, filters, first, last)])


def _blocks(read: Read, filters: Array, first: int, last: int) -> list[Array]:
    return [_logarithms(read, filters, start, min(start + BLOCK_FRAMES, last))
            for start in range(first, last, BLOCK_FRAMES)]


def _logarithms(read: Read, filters: Array, first: int, last: int) -> Array:
    begin = first * HOP - WINDOW // 2
    samples = read(begin, begin + (last - first - 1) * HOP + WINDOW).astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    bands: Array = np.log10(np.maximum(power @ filters, LEAST_POWER))
    return bands


def _mels(hertz: float) -> float:
    if hertz < _LINEAR_HERTZ:
        return hertz * 3.0 / 200.0
    return float(_LINEAR_MELS + np.log(hertz / _LINEAR_HERTZ) / _LOG_STEP)


def _hertz(mels: Array) -> Array:
    is_linear = mels < _LINEAR_MELS
    return np.where(is_linear, mels * 200.0 / 3.0, _LINEAR_HERTZ * np.exp(_LOG_STEP * (mels - _LINEAR_MELS)))
