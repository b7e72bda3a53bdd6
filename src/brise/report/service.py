"""Service to clients: whether they got an answer and whose, how long they waited, and what the large model's outages
would have done without the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.report.traffic import TrafficOverview
from brise.traffic.records import Exchange, RecordedAnswer

# 30 minutes of outage in 14 days: what a provider with one bad afternoon reaches.
REFERENCE = 1 - 30 / (14 * 24 * 60)
_LEFT, _TOO_MANY = 499, 429
MOST_VALUES = 400  # of a plotted sample: its quantiles, evenly
# A quantile needs so many values beyond it that one of them does not decide.
_BEYOND = 5


@dataclass(frozen=True)
class Outage:
    """Requests in a row that the large model did not answer."""

    since_s: float
    seconds: float
    requests: int
    answered: int  # by the small model


@dataclass(frozen=True)
class Availability:
    """Shares of the requests whose clients waited for an answer; `hosted_alone`: without the gateway."""

    requests: int
    answered: float
    degraded: float
    hosted_alone: float | None
    failed: int
    left: int  # clients that did not wait
    outages: tuple[Outage, ...]
    pending: int  # requests that still wait for the large model's answer


def availability(traffic: TrafficOverview) -> Availability:
    """A client's own mistake (4xx) is an answer; 429 and 5xx are none."""
    rows = [row for row in traffic.exchanges if row.status != _LEFT]
    failed = [row for row in rows if _failed(row)]
    asked = [row for row in rows if row.mode in ("hosted", "escalated", "degraded", "failed")]
    missed = [row for row in asked if row.mode == "degraded" or _failed(row)]
    count = max(len(rows), 1)
    return Availability(len(rows), 1 - len(failed) / count, sum(row.mode == "degraded" for row in rows) / count,
                        1 - len(missed) / len(asked) if asked else None, len(failed),
                        len(traffic.exchanges) - len(rows), _outages(asked), traffic.pending)


def _failed(row: Exchange) -> bool:
    """Whether nobody answered, or not to the end: the status may be that of a success all the same."""
    return row.status >= 500 or row.status == _TOO_MANY or (row.mode == "failed" and row.status < 400)


def _outages(asked: list[Exchange]) -> tuple[Outage, ...]:
    found, run = list[Outage](), list[Exchange]()
    for row in [*asked, None]:
        if row is not None and (row.mode == "degraded" or _failed(row)):
            run.append(row)
        elif run:
            end = max(item.at_s + item.total_s for item in run)
            found.append(Outage(run[0].at_s, end - run[0].at_s, len(run),
                                sum(item.mode == "degraded" and not _failed(item) for item in run)))
            run = []
    return tuple(found)


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
        "hosted": traffic.of("hosted"), "small": kept or traffic.answers_as("shadow"),
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
