"""Whether clients got an answer, whose, and what the hosted model's outages would have done without the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from brise.report.traffic import TrafficOverview
from brise.traffic.records import Exchange

# 30 minutes of outage in 14 days: what a provider with one bad afternoon reaches.
REFERENCE = 1 - 30 / (14 * 24 * 60)
_LEFT, _TOO_MANY = 499, 429


@dataclass(frozen=True)
class Outage:
    """Requests in a row that the hosted model did not answer."""

    since_s: float
    seconds: float
    requests: int
    answered: int  # by the local model


@dataclass(frozen=True)
class Availability:
    """Shares of the requests whose clients waited for an answer; `hosted_alone` as it had been without the gateway."""

    requests: int
    answered: float
    degraded: float
    hosted_alone: float | None
    failed: int
    left: int  # clients that did not wait
    outages: tuple[Outage, ...]
    pending: int  # requests that still wait for the hosted model's answer


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
    return row.status >= 500 or row.status == _TOO_MANY


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
