"""Clusters are what counts as one observation: a conversation or session, never one row where rows share a source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brise.errors import EvidenceError

Floats = NDArray[np.float64]

MIN_CLUSTERS = 30


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
    rows = np.asarray(values, np.float64)
    if len(rows) != len(clusters):
        raise EvidenceError(f"there are {len(rows)} rows but {len(clusters)} cluster names")
    index_of: dict[object, int] = {}
    indices = np.array([index_of.setdefault(cluster, len(index_of)) for cluster in clusters], np.intp)
    counts = np.bincount(indices, minlength=len(index_of))
    means: Floats = np.bincount(indices, rows, minlength=len(index_of)) / counts
    return means


def require_clusters(count: int) -> None:
    """EvidenceError if there are too few independent clusters for any claim."""
    if count < MIN_CLUSTERS:
        raise EvidenceError(f"there are {count} independent clusters, at least {MIN_CLUSTERS} are needed",
                            hint="collect more conversations; more rows of the same ones do not help")
