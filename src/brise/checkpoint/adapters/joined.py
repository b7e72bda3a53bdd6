"""Low ranks of matrices that files hold as one (families.JOINED): made one for a file, taken apart when it is read.

A joined matrix is W1 below W2 and so on. Low ranks of its parts have different A, so A of the whole is all of them, one
below the other, and B is a block for each part: its rank is the sum, and the product is the same. The other way round
every part has the whole A and its own rows of B; columns of B that are zero there, and their rows of A, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from brise.errors import UnsupportedError
from brise.models.families import JOINED
from brise.models.lora import LowRanks, module_of
from brise.models.weights import Array, LowRank

Shapes = Mapping[str, tuple[int, int]]


def joined_shapes(shapes: Shapes, joined: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """The shapes (out, in) of the matrices of a file, by path, from those of the model; `joined` are the paths in a
    layer of those that are one there."""
    out: dict[str, tuple[int, int]] = {}
    for path, (rows, cols) in shapes.items():
        whole = _whole(path, joined) or path
        out[whole] = (out[whole][0] + rows if whole in out else rows, cols)
    return out


def join(low_ranks: LowRanks, shapes: Shapes, joined: Mapping[str, str]) -> dict[str, LowRank]:
    """The low ranks of a file's matrices; where an adapter changes a part of one, B is zero in the rows of the others.

    UnsupportedError for magnitudes (DoRA) of a part: the rows of the others would need one.
    """
    out: dict[str, LowRank] = {}
    for path, low_rank in low_ranks.items():
        whole = _whole(path, joined)
        if whole is None:
            out[path] = low_rank
        elif whole not in out:
            out[whole] = _join({part: low_ranks.get(part) for part in _parts(whole)}, shapes)
    return out


def split(path: str, low_rank: LowRank, shapes: Shapes) -> Iterator[tuple[str, LowRank]]:
    """The low ranks of the parts of a file's matrix. Parts that it leaves as they are have none."""
    if path.split(".", 2)[-1] not in JOINED:
        yield path, low_rank
        return
    parts = _parts(path)
    starts = [0, *np.cumsum([shapes[part][0] for part in parts])]
    is_untrained = not np.any(low_rank.b)  # every B begins as zeros
    for part, (first, last) in zip(parts, pairwise(starts), strict=True):
        b = np.asarray(low_rank.b)[first:last]
        own = np.flatnonzero(b.any(axis=0))
        magnitude = None if low_rank.magnitude is None else np.asarray(low_rank.magnitude)[first:last]
        if not len(own) and not is_untrained and magnitude is None:
            continue
        own = own if len(own) else np.arange(b.shape[1])
        a = np.ascontiguousarray(np.asarray(low_rank.a)[own])
        yield part, LowRank(a, np.ascontiguousarray(b[:, own]), low_rank.scale, magnitude)


def _join(parts: Mapping[str, LowRank | None], shapes: Shapes) -> LowRank:
    given = {part: low_rank for part, low_rank in parts.items() if low_rank is not None}
    scale = max(low_rank.scale for low_rank in given.values())
    a = np.concatenate([np.asarray(low_rank.a, np.float32) for low_rank in given.values()])
    b, column = [], 0
    for part in parts:
        rows = np.zeros((shapes[part][0], len(a)), np.float32)
        low_rank = given.get(part)
        if low_rank is not None:
            rank = len(low_rank.a)
            rows[:, column:column + rank] = np.asarray(low_rank.b) * np.float32(low_rank.scale / scale)
            column += rank
        b.append(rows)
    magnitudes: list[Array | None] = [low_rank.magnitude for low_rank in given.values()]
    if all(magnitude is None for magnitude in magnitudes):
        return LowRank(a, np.concatenate(b), scale)
    if len(given) < len(parts):
        missing = ", ".join(module_of(part) for part in parts if part not in given)
        raise UnsupportedError(f"the adapter has magnitudes (DoRA) and none of {missing}, which files of this family "
                               "hold in one matrix with the others", hint="tune all of them")
    return LowRank(a, np.concatenate(b), scale, np.concatenate([np.asarray(magnitude) for magnitude in magnitudes]))


def _whole(path: str, joined: Mapping[str, str]) -> str | None:
    if not path.startswith("layers."):
        return None
    layers, number, tail = path.split(".", 2)
    return next((f"{layers}.{number}.{whole}" for whole in joined if tail in JOINED[whole]), None)


def _parts(whole: str) -> tuple[str, ...]:
    layers, number, tail = whole.split(".", 2)
    return tuple(f"{layers}.{number}.{part}" for part in JOINED[tail])
