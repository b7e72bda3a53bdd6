"""From rows to independent units, in the order of time, as far as all of their rows are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brise.prove.pairs import Pair
from brise.prove.scoring import PairScores
from brise.stats.clusters import Floats, unit_means

Rows = np.ndarray[tuple[int], np.dtype[np.intp]]


@dataclass(frozen=True)
class PairClusters:
    """The rows that count, and the unit of each. `waiting` units come behind the first that has an open row."""

    rows: Rows
    of_row: tuple[str, ...]
    waiting: int

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they began."""
        return tuple(dict.fromkeys(self.of_row))

    def of(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs of the rows that count."""
        return [pairs[int(at)] for at in self.rows]

    def means(self, values: Any) -> Floats:
        """A number for each of all rows, as means over the rows of each unit."""
        return unit_means(np.asarray(values, np.float64)[self.rows], self.of_row)


def complete(pairs: Sequence[Pair], scored: PairScores) -> PairClusters:
    """All units before the first that has an open row.

    Only these: which of two answers is better must not decide whether a pair is among those that count.
    """
    is_open = scored.is_open
    waiting = {pair.unit for pair, open_ in zip(pairs, is_open, strict=True) if open_}
    order = list(dict.fromkeys(pair.unit for pair in pairs))
    first = next((at for at, name in enumerate(order) if name in waiting), len(order))
    counted = frozenset(order[:first])
    rows = np.array([at for at, pair in enumerate(pairs) if pair.unit in counted], np.intp)
    return PairClusters(rows, tuple(pairs[at].unit for at in rows), len(order) - first)


def part(units: PairClusters, of_slice: Any) -> PairClusters:
    """The rows of these units for which `of_slice`, one truth value for each of all rows, holds."""
    inside = np.asarray(of_slice, np.bool_)[units.rows]
    names = tuple(name for name, is_in in zip(units.of_row, inside, strict=True) if is_in)
    return PairClusters(units.rows[inside], names, units.waiting)
