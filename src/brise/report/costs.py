"""Costs of a request with each system, and the number of requests after which the machine has paid for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.evals.measure import Measure, bounded, ratio
from brise.report.traffic import TrafficOverview
from brise.traffic.prices import Hardware, Prices
from brise.traffic.records import Exchange, KnownSum, RecordedAnswer

DAY_S = 86400.0
BACKGROUND = ("audit", "reask", "reanswer")  # roles of answers that the large model gives besides


@dataclass(frozen=True)
class Cost:
    """USD per request; None where prices or tokens are unknown.

    `low` and `high` are the interval of the mean over conversations. `tokens_in` and `tokens_out` are means.
    """

    usd: float | None
    low: float | None
    high: float | None
    requests: int
    hosted_usd: float | None  # tokens of the large model
    power_usd: float | None  # electricity of our machine
    machine_usd: float | None  # its price, spread over the time in which it works
    tokens_in: float | None
    tokens_out: float | None
    busy_s: float | None  # of our machine
    known: int = 0  # requests whose cost is known; `usd` of the large model is their mean
    at_least_usd: float | None = None  # where some are unknown: a request's cost if those had cost nothing


@dataclass(frozen=True)
class BreakEven:
    """The number of requests after which the savings have paid for the machine. None: never.

    `low` and `high` follow from the interval of the large model's cost. `days` is at the rate that was measured,
    if that was measured for a day at least.
    """

    system: str
    requests: float | None
    low: float | None
    high: float | None
    saving_usd: float  # per request, after electricity
    days: float | None


@dataclass(frozen=True)
class TrafficCosts:
    """`per_day` is None where less than a day was seen."""

    systems: Mapping[str, Cost]
    break_even: tuple[BreakEven, ...]
    per_day: float | None
    without_price: tuple[str, ...]  # large models that prices.toml does not have
    without_tokens: int  # of the large model's answers: those that did not say how many tokens they had
    half_priced: tuple[str, ...]  # models whose price has nothing for a part of their tokens, such as cache writes
    besides: Mapping[str, KnownSum]  # by role, what the large model was asked in the background


def costs(traffic: TrafficOverview, prices: Prices) -> TrafficCosts:
    """Of the large model as it was used, of the small one, and of the cascade as it ran."""
    billed = _billed(traffic, prices)
    systems: dict[str, Cost] = {}
    hosted_rows = [row for row, _ in billed]
    if hosted_rows:
        systems["hosted"] = _hosted(billed)
    busy_s = _busy_s(traffic)
    if busy_s is not None:
        systems["small"] = _small(traffic, prices.hardware, busy_s)
    if cascade := _cascade(traffic, prices, busy_s):
        systems["cascade"] = cascade
    per_day = len(traffic.exchanges) / traffic.seconds * DAY_S if traffic.seconds >= DAY_S else None
    return TrafficCosts(
        systems, tuple(_break_even(name, systems, prices.hardware, per_day) for name in ("small", "cascade")
                       if _can_break_even(name, systems, prices.hardware)), per_day,
        tuple(sorted({row.served_by or row.model for row in hosted_rows
                      if prices.price(row.served_by, row.model, row.upstream) is None})),
        sum(not _is_counted(row) for row in hosted_rows),
        tuple(sorted({row.served_by or row.model for row, usd in billed if usd is None and _is_counted(row)
                      and prices.price(row.served_by, row.model, row.upstream) is not None})),
        _besides(traffic, prices))


def _billed(traffic: TrafficOverview, prices: Prices) -> list[tuple[Exchange, float | None]]:
    """Requests that the large model answered, and what each cost: by the price file, else as recorded at the time.
    """
    rows = [row for row in traffic.of("hosted", "escalated") if row.status < 400]
    return [(row, _paid(row, row, prices)) for row in rows]


def _paid(answer: Exchange | RecordedAnswer, row: Exchange, prices: Prices) -> float | None:
    """What an answer of the large model to the request of `row` cost: by the price file, else as recorded."""
    usd = prices.cost(answer.served_by, row.model, answer.usage, row.upstream)
    return answer.cost_usd if usd is None else usd


def _is_counted(row: Exchange) -> bool:
    return row.usage is not None and row.usage.total_tokens is not None


def _besides(traffic: TrafficOverview, prices: Prices) -> Mapping[str, KnownSum]:
    rows = {row.id: row for row in traffic.exchanges}
    out: dict[str, KnownSum] = {}
    for role in BACKGROUND:
        costs = [_paid(answer, rows[answer.exchange], prices) for answer in traffic.answers_as(role)
                 if answer.exchange in rows and answer.status < 400]
        known = [usd for usd in costs if usd is not None]
        if costs:
            out[role] = KnownSum(sum(known) if known else None, len(known), len(costs))
    return out


def _hosted(billed: Sequence[tuple[Exchange, float | None]]) -> Cost:
    rows = [row for row, _ in billed]
    known = [(row.conversation, usd) for row, usd in billed if usd is not None]
    usages = [row.usage for row in rows if row.usage is not None]
    usd, low, high = _mean(known)
    return Cost(usd, low, high, len(rows), usd, 0.0 if usd is not None else None, 0.0 if usd is not None else None,
                _average(usage.prompt_tokens for usage in usages),
                _average(usage.completion_tokens for usage in usages), 0.0, len(known),
                sum(usd for _, usd in known) / len(rows) if 0 < len(known) < len(rows) else None)


def _mean(known: Sequence[tuple[str, float]]) -> tuple[float | None, float | None, float | None]:
    if not known:
        return None, None, None
    found = bounded(Measure("usd", np.array([(usd, 1.0) for _, usd in known], np.float64), ratio, is_share=False),
                    [name for name, _ in known])
    return found.estimate, found.low, found.high


def _average(counts: Iterable[int | None]) -> float | None:
    """The mean of what is known."""
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) if known else None


def _busy_s(traffic: TrafficOverview) -> float | None:
    """Busy seconds per request of our machine: time in which several requests were answered is shared among them."""
    small: list[Exchange | RecordedAnswer] = [*traffic.of("small", "degraded"), *traffic.answers_as("shadow", "draft")]
    spans = [(item.at_s, item.at_s + item.total_s) for item in small if item.total_s > 0]
    return _covered(spans) / len(spans) if spans else None


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of their union."""
    total, end = 0.0, -np.inf
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return float(total)


def _small(traffic: TrafficOverview, hardware: Hardware | None, busy_s: float) -> Cost:
    small: list[Exchange | RecordedAnswer] = [*traffic.of("small", "degraded"), *traffic.answers_as("shadow", "draft")]
    usages = [item.usage for item in small if item.usage is not None]
    power = None if hardware is None else hardware.usd_of_power_s * busy_s
    machine = None if hardware is None else hardware.usd_per_busy_s * busy_s
    usd = None if power is None or machine is None else power + machine
    return Cost(usd, usd, usd, len(small), 0.0, power, machine,
                _average(usage.prompt_tokens for usage in usages),
                _average(usage.completion_tokens for usage in usages), busy_s, 0 if usd is None else len(small))


def _cascade(traffic: TrafficOverview, prices: Prices, busy_s: float | None) -> Cost | None:
    """All requests of a switched task try the small model first; escalated ones and audits pay the large one too."""
    rows = traffic.of("small", "escalated")
    if not rows or busy_s is None:
        return None
    audits = {answer.exchange: answer for answer in traffic.answers_as("audit")}
    spent, num_known = list[tuple[str, float]](), 0
    for row in rows:
        usd = 0.0 if row.mode == "small" else _paid(row, row, prices)
        audit = audits.get(row.id)
        more = 0.0 if audit is None else _paid(audit, row, prices)
        num_known += usd is not None and more is not None
        spent.append((row.conversation, (usd or 0.0) + (more or 0.0)))
    is_known = num_known == len(rows)
    hosted, low, high = _mean(spent) if is_known else (None, None, None)
    small = _small(traffic, prices.hardware, busy_s)
    return Cost(_sum(hosted, small.usd), _sum(low, small.usd), _sum(high, small.usd), len(rows), hosted,
                small.power_usd, small.machine_usd, None, None, busy_s, num_known,
                None if is_known else _sum(sum(usd for _, usd in spent) / len(rows), small.usd))


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _can_break_even(name: str, systems: Mapping[str, Cost], hardware: Hardware | None) -> bool:
    return (hardware is not None and name in systems and "hosted" in systems and systems["hosted"].usd is not None
            and systems[name].hosted_usd is not None and systems[name].power_usd is not None)


def _break_even(name: str, systems: Mapping[str, Cost], hardware: Hardware | None, per_day: float | None) -> BreakEven:
    """Each request's saving pays for the machine, so its utilisation does not matter."""
    hosted, system = systems["hosted"], systems[name]
    assert hardware is not None and hosted.usd is not None, "asked for before"
    assert system.hosted_usd is not None and system.power_usd is not None, "asked for before"
    still = system.hosted_usd + system.power_usd

    def after(usd: float | None) -> float | None:
        return None if usd is None or usd <= still else hardware.price / (usd - still)

    requests = after(hosted.usd)
    days = requests / per_day if requests is not None and per_day is not None else None
    return BreakEven(name, requests, after(hosted.high), after(hosted.low), hosted.usd - still, days)
