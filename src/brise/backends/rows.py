"""Ops of encoders that only move rows of arrays, or take their mean: all backends on arrays share them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brise.models.weights import Array


def merged_patches(x: Array, grids: Sequence[tuple[int, int]], merge: int) -> Array:
    """EncoderOps.merge_patches on arrays. It only moves numbers, so other backends use it, too."""
    width, first, parts = x.shape[1], 0, []
    for rows, columns in grids:
        image = x[first:first + rows * columns].reshape(rows // merge, merge, columns // merge, merge, width)
        parts.append(image.transpose(0, 2, 4, 1, 3).reshape(-1, width * merge**2))
        first += rows * columns
    return np.concatenate(parts)


def windows_of_rows(x: Array, size: int, stride: int) -> Array:
    """EncoderOps.windows on arrays. It only moves numbers, so other backends use it, too."""
    padded = np.pad(x, ((size // 2, size // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)[::stride]  # (T', C, size)
    return windows.reshape(len(windows), x.shape[1] * size)


def mean_patches(x: Array, grids: Sequence[tuple[int, int]], size: int) -> Array:
    """EncoderOps.mean_patches on arrays. Other backends use it, too: it is called once for an image."""
    means: Array = merged_patches(x, grids, size).reshape(-1, x.shape[1], size**2).mean(axis=2, dtype=x.dtype)
    return means
