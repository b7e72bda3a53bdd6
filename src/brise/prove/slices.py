"""Parts of the traffic that are proven by themselves: by a label, by length, by writing. An unproven part escalates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brise.prove.pairs import Pair
from brise.prove.scoring import PairClusters, PairScores, part
from brise.stats import sequential_test
from brise.stats.clusters import MIN_CLUSTERS
from brise.text.conversation import plain_text
from brise.traffic import slice_keys

MOST_VALUES = 20  # of a label that is looked at by itself; one with more, such as a user's name, is none


@dataclass(frozen=True)
class Slice:
    """One value of one dimension. `evidence` is the wealth after all of its units; 0 under 30 of them."""

    dimension: str
    value: str
    rows: int
    units: int
    mean: float
    evidence: float
    is_proven: bool

    @property
    def name(self) -> str:
        return f"{self.dimension}={self.value}"


def dimensions(pairs: Sequence[Pair], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """What the pairs are parted by: those that are wanted, else every label of 2 to 20 values, length and writing."""
    if wanted is not None:
        return tuple(wanted)
    found: dict[str, set[str]] = {}
    for pair in pairs:
        for name, value in pair.labels.items():
            found.setdefault(name, set()).add(value)
    return (*(name for name, values in sorted(found.items()) if 2 <= len(values) <= MOST_VALUES), *slice_keys.DERIVED)


def slices(pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters, names: Sequence[str], delta: float,
           alpha: float) -> tuple[Slice, ...]:
    """All of them with their evidence; those that pass e-BH together are proven, if the whole is."""
    found = [one for name in names for one in _of(name, pairs, scored, clusters, delta)]
    proven = sequential_test.proven_slices({one.name: one.evidence for one in found}, alpha)
    return tuple(Slice(one.dimension, one.value, one.rows, one.units, one.mean, one.evidence, one.name in proven)
                 for one in found)


def value_of(pair: Pair, dimension: str) -> str:
    """The value of a label, or of what is derived from the request; the gateway tells it in the same way."""
    text = plain_text(pair.prompt[-1].get("content")) if pair.prompt else ""
    return slice_keys.value_of(pair.labels, text, dimension)


def _of(name: str, pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters, delta: float) -> list[Slice]:
    values = np.array([value_of(pair, name) for pair in pairs], object)
    found = []
    for value in sorted({str(values[at]) for at in clusters.rows}):
        own = part(clusters, values == value)
        means = own.means(scored.differences)
        evidence = float(sequential_test.wealth(means, delta, scored.bound)[-1]) if len(means) >= MIN_CLUSTERS else 0.0
        found.append(Slice(name, value, len(own.rows), len(means), float(means.mean()), evidence, False))
    return found
