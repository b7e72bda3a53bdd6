"""How long clients waited: quantiles, and the values that a plot needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.report.traffic import TrafficOverview
from brise.traffic.records import Exchange, RecordedAnswer

MOST_VALUES = 400  # of a plotted sample: its quantiles, evenly
# A quantile needs so many values beyond it that one of them does not decide.
_BEYOND = 5


@dataclass(frozen=True)
class Waits:
    """Seconds to the whole answer, and to its first token where answers are streams. None: too few answers."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    first_p50: float | None
    first_p95: float | None
    quantiles: tuple[float, ...]  # of the whole answer, evenly spaced


def waits(traffic: TrafficOverview) -> Mapping[str, Waits]:
    """Of each system. The small model's are those of its shadow answers until a switch: in the background, behind
    clients' requests.
    """
    kept = traffic.of("small")
    samples: Mapping[str, Sequence[Exchange | RecordedAnswer]] = {
        "hosted": traffic.of("hosted"), "small": kept or traffic.told("shadow"),
        "cascade": traffic.of("small", "escalated"), "degraded": traffic.of("degraded")}
    return {name: _waits([item for item in items if item.status < 400]) for name, items in samples.items() if items}


def _waits(items: Sequence[Exchange | RecordedAnswer]) -> Waits:
    total = [item.total_s for item in items if item.total_s > 0]
    first = [item.first_token_s for item in items
             if item.first_token_s is not None and (isinstance(item, RecordedAnswer) or item.streamed)]
    return Waits(len(total), _quantile(total, 0.5), _quantile(total, 0.95), _quantile(total, 0.99),
                 _quantile(first, 0.5), _quantile(first, 0.95), _evenly(total))


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Type 7 of Hyndman and Fan (numpy's), None where fewer than five values lie beyond it."""
    if len(values) * (1 - share) < _BEYOND * (1 - 1e-9):
        return None
    return float(np.quantile(values, share))


def _evenly(values: Sequence[float]) -> tuple[float, ...]:
    if not values:
        return ()
    count = min(len(values), MOST_VALUES)
    return tuple(np.quantile(values, np.linspace(0, 1, count)).tolist())
