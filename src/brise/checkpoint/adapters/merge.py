"""Merges an adapter into its base: the result needs no adapter, and is made row by row when it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from brise.checkpoint.adapters.lineage import Lineage, lineage_text
from brise.checkpoint.read_original import Original
from brise.errors import CheckpointError, UnsupportedError
from brise.models.lora import LowRanks, check_shape, place_ends
from brise.models.weights import Array, LowRank, Stored, Weight, Weights
from brise.quant.rows import float_rows

# A GGUF key of ours: the text of lineage.json.
LINEAGE_KEY = "brise.lineage"


def merge(original: Original, low_ranks: LowRanks, lineage: Lineage | None = None) -> Original:
    """The same checkpoint with the adapter in its matrices, as float32 rows. Everything else is unchanged.

    The lineage is kept, and is written into the new files.
    """
    left = set(low_ranks)

    def put(path: str, weight: Weight) -> Weight:
        if path not in low_ranks:
            return weight
        left.discard(path)
        return merged(path, weight, low_ranks[path])

    weights = place_ends(original.weights, put)
    if left:
        raise UnsupportedError("the adapter changes matrices that this model does not have",
                               hint="it was made for another model")
    kept = {key: value for key, value in original.metadata.items() if key != LINEAGE_KEY}
    own = {} if lineage is None else {LINEAGE_KEY: lineage_text(lineage)}
    return replace(original, metadata=kept).with_weights(weights, own)


def rows_of(weights: Weights) -> Callable[[str, int, int], Array]:
    """Reads rows of a matrix of an unplaced model by its path, as float32."""
    by_path: dict[str, Weight] = {}
    place_ends(weights, lambda path, weight: by_path.setdefault(path, weight))
    return lambda path, first, last: float_rows(by_path[path], first, last)


def merged(name: str, base: Weight, low_rank: LowRank) -> Stored:
    """W + scale * B A; with a magnitude each row of it has that length (models/weights.py, LowRank)."""
    check_shape(name, low_rank, base.shape)
    return Stored("F32", base.shape, _rows(name, base, low_rank))


def _rows(name: str, base: Weight, low_rank: LowRank) -> Callable[[int, int], Array]:
    def read(first: int, last: int) -> Array:
        own = np.asarray(low_rank.b)[first:last] * np.float32(low_rank.scale)
        rows = own @ np.asarray(low_rank.a)
        rows += float_rows(base, first, last)
        if low_rank.magnitude is not None:
            lengths = np.linalg.norm(rows, axis=1)
            if not lengths.all():
                raise CheckpointError(f"{name} has a row of zeros, which has no direction that a magnitude could scale",
                                      field=name, value=0, limit="rows with a length over 0")
            rows *= (np.asarray(low_rank.magnitude)[first:last] / lengths)[:, None]
        return rows

    return read
