"""Clusters are what counts as one observation: a conversation or session, never one row where rows share a source.

A claim about answers weighs a cluster by its rows. To bet on that, a cluster's rows are summed, and a bound M on their
number must be known before they are seen: of longer clusters the first M rows count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from brise.errors import EvidenceError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Per = Literal["answer", "conversation"]  # what weighs alike
PER: Sequence[Per] = ("answer", "conversation")

MIN_CLUSTERS = 30


@dataclass(frozen=True)
class Weighting:
    """What a claim is about: answers, which weigh alike, or conversations, whose answers' mean counts.

    `most_rows` is M, where it is stated. Else the first 30 clusters say it: a longer one than all before it makes M the
    next power of two, and evidence begins again (sequential_test.wealth). So M is known before each bet.
    """

    per: Per = "answer"
    most_rows: int | None = None

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise EvidenceError(f"what weighs alike is {self.per!r}, allowed is {' or '.join(PER)}")
        if self.most_rows is not None and self.most_rows < 1:
            raise EvidenceError(f"the bound on a conversation's answers is {self.most_rows}, allowed is 1 and more")


@dataclass(frozen=True)
class Bets:
    """What each cluster gives to bet on: the sum of its values and their number, both over `limits` (its M).

    Where conversations weigh alike, these are the mean and 1, and `limits` are 1. `most_rows` is M after all clusters.
    `values` and `weights` may have leading axes, such as simulated runs; clusters lie on the last one.
    """

    values: Floats
    weights: Floats
    limits: Ints
    most_rows: int


@dataclass(frozen=True)
class ClusterLayout:
    """Which rows are of which cluster, in which `place`; how many rows a bet may take of each (`limits`)."""

    per: Per
    of_row: Ints
    place: Ints
    limits: Ints
    most_rows: int  # of a cluster that count after all; of conversations that weigh alike, all

    @property
    def counts(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """The rows that count: the first M of each cluster."""
        return self.place < self.most_rows

    def sums(self, values: Any, inside: Any = None) -> tuple[Floats, Ints]:
        """The sum of each cluster's values that a bet takes, one value for each row, and their number; only of rows
        that are `inside` of a slice, if it is given.
        """
        rows = np.asarray(values, np.float64)
        if len(rows) != len(self.of_row):
            raise EvidenceError(f"there are {len(rows)} rows but {len(self.of_row)} cluster names")
        take = np.ones(len(rows), np.bool_) if inside is None else np.asarray(inside, np.bool_)
        if self.per == "answer":
            take = take & (self.place < self.limits[self.of_row])
        number = np.bincount(self.of_row[take], minlength=len(self.limits)).astype(np.intp)
        sums: Floats = np.bincount(self.of_row[take], rows[take], minlength=len(self.limits)).astype(np.float64)
        return sums, number

    def bets(self, values: Any, inside: Any = None) -> Bets:
        """The bets on these values. Conversations that weigh alike and have no row inside are no clusters of it."""
        sums, number = self.sums(values, inside)
        if self.per == "answer":
            return bets_of(sums, number, self.limits, self.most_rows)
        has = number > 0
        return Bets(sums[has] / number[has], np.ones(int(has.sum())), self.limits[has], 1)

    def mean(self, values: Any, inside: Any = None) -> float:
        """The mean of these values, one for each row, in which answers or conversations weigh alike."""
        rows = np.asarray(values, np.float64)
        within = np.ones(len(rows), np.bool_) if inside is None else np.asarray(inside, np.bool_)
        if self.per == "answer":
            return float(rows[within & self.counts].mean())
        return float(self.bets(rows, within).values.mean())


def bets_of(sums: Floats, number: Ints, limits: Ints, most_rows: int) -> Bets:
    """Bets on answers: what the rows of each cluster sum up to, and how many they are."""
    return Bets(sums / limits, number / limits, limits, most_rows)


def lay_out(clusters: Sequence[object], weighting: Weighting) -> ClusterLayout:
    """The layout of rows whose clusters have these names, both in the order in which they came."""
    index_of: dict[object, int] = {}
    of_row = np.array([index_of.setdefault(cluster, len(index_of)) for cluster in clusters], np.intp)
    lengths = np.bincount(of_row, minlength=len(index_of))
    order = np.argsort(of_row, kind="stable")
    place = np.empty(len(of_row), np.intp)
    place[order] = np.arange(len(of_row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if weighting.per == "conversation":
        return ClusterLayout("conversation", of_row, place, np.ones(len(lengths), np.intp),
                             int(lengths.max(initial=1)))
    limits, most = bounds(lengths, weighting.most_rows)
    return ClusterLayout("answer", of_row, place, limits, most)


def stacked(parts: Sequence[Bets]) -> Bets:
    """Bets of one layout on several figures, one after the other."""
    return Bets(np.stack([one.values for one in parts]), np.stack([one.weights for one in parts]), parts[0].limits,
                parts[0].most_rows)


def bounds(lengths: Any, stated: int | None = None) -> tuple[Ints, int]:
    """M as it is known before each cluster, and after all of them."""
    found = np.asarray(lengths, np.intp)
    if stated is not None:
        return np.full(len(found), stated, np.intp), stated
    first = np.maximum(found[:MIN_CLUSTERS], 1)
    grown = np.concatenate([[1], np.maximum.accumulate(2 ** np.ceil(np.log2(first)).astype(np.intp))]).astype(np.intp)
    limits: Ints = np.concatenate([grown[:-1], np.repeat(grown[-1:], max(len(found) - MIN_CLUSTERS, 0))])
    return limits, int(grown[-1])


def scores(values: Any, name: str, low: float = 0.0, high: float = 1.0) -> Floats:
    """`values` as a vector of float64, each finite and within [low, high]."""
    out = np.asarray(values, np.float64)
    if out.ndim != 1:
        raise EvidenceError(f"{name} has {out.ndim} dimensions, one is allowed")
    wrong = np.flatnonzero(~((out >= low) & (out <= high)))
    if len(wrong):
        raise EvidenceError(f"{name}[{wrong[0]}] is {out[wrong[0]]}, allowed is {low:g} to {high:g}")
    return out


def cluster_means(values: Any, clusters: Sequence[object]) -> Floats:
    """The mean of each cluster's rows, clusters in the order in which they first appear.

    Rows of one session go wrong together: fed row by row, a valid test errs far more often than its alpha.
    """
    return lay_out(clusters, Weighting("conversation")).bets(values).values


def require_clusters(count: int) -> None:
    """EvidenceError if there are too few independent clusters for any claim."""
    if count < MIN_CLUSTERS:
        raise EvidenceError(f"there are {count} independent clusters, at least {MIN_CLUSTERS} are needed",
                            hint="collect more conversations; more rows of the same ones do not help")
