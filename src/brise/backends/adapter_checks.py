"""Checks of adapters that all backends share: what a table refuses, and DoRA's gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from brise.errors import UnsupportedError
from brise.models.lora import check_shape
from brise.models.weights import Array, LowRank

_NUMBERS = 1 << 20  # of a matrix that are read at a time: 8 MB as float64


def check_table(num_slots: int, max_rank: int) -> None:
    """UnsupportedError for a table without a slot or a rank."""
    if num_slots < 1 or max_rank < 1:
        raise UnsupportedError(f"a table of {num_slots} adapters of a rank up to {max_rank}, allowed is 1 and more")


def check_slot(slot: int, num_slots: int) -> None:
    """ValueError unless a table of `num_slots` slots has this one."""
    if not 0 <= slot < num_slots:
        raise ValueError(f"slot {slot} of a table of adapters, allowed are 0 to {num_slots - 1}")


def check_adapter(shapes: Mapping[str, tuple[int, int]], low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array],
                  max_rank: int) -> None:
    """UnsupportedError unless an adapter fits these matrices, its ranks are 1 to max_rank, and exactly the paths with a
    magnitude have a gain."""
    for path, low in low_ranks.items():
        if path not in shapes:
            raise UnsupportedError(f"the adapter changes {path}, which takes no adapter in this model",
                                   hint="the adapter was made for another model")
        check_shape(path, low, shapes[path])
        if not 1 <= len(low.a) <= max_rank:
            raise UnsupportedError(f"{path} has an adapter of rank {len(low.a)}, allowed is 1 to {max_rank}")
        if (low.magnitude is None) != (path not in gains):
            raise UnsupportedError(f"{path} has a magnitude or a gain, allowed are both or neither")
        if path in gains and tuple(gains[path].shape) != (len(low.b),):
            raise UnsupportedError(f"{path} has a gain of shape {tuple(gains[path].shape)}, allowed is ({len(low.b)},)")
    for path in gains:
        if path not in low_ranks:
            raise UnsupportedError(f"{path} has a gain but no adapter")


def gain(rows: Callable[[int, int], Array], low: LowRank) -> Array:
    """DoRA's factors (O,) of a matrix: magnitude / |rows of W + scale * B A|, computed in float64.

    `rows(first, last)` reads rows of W, a few at a time.
    """
    assert low.magnitude is not None, "an adapter without a magnitude has no gain"
    a, b = np.asarray(low.a, np.float64), np.asarray(low.b, np.float64)
    step = max(_NUMBERS // a.shape[1], 1)
    norms = [np.linalg.norm(rows(first, min(first + step, len(b))) + low.scale * (b[first:first + step] @ a), axis=1)
             for first in range(0, len(b), step)]
    return (np.asarray(low.magnitude, np.float64) / np.concatenate(norms)).astype(np.float32)
