"""What virtual keys have reserved and used, counted in the store: so every server that shares it keeps one budget.

A request reserves what it may cost when it begins, and settles when its cost is known. What is reserved includes what
was used: a process that dies in between leaves its reservations counted, and no budget is overspent by a crash.

    key_spans   one row for each key and span: a minute, a day or a month of UTC, numbered from the epoch
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from brise.traffic.schema import Database, Row, Transaction
from brise.traffic.virtual_keys import KeyLimits, VirtualKey

NANO = 1_000_000_000  # of a USD
MINUTE_S, DAY_S = 60, 86400
MOST = 2**62  # no limit, and the largest sum
KEPT_MINUTES = 10  # rows of minutes that are over
AHEAD_SHARE = 16  # at most this part of what is left is reserved ahead, so that little lies idle where it is scarce
_COUNTS = ("reserved_requests", "reserved_tokens", "reserved_nano_usd", "requests", "tokens", "nano_usd",
           "estimated_nano_usd", "unknown_requests")
_UPSERT = (f"INSERT INTO key_spans (key, span, start, {', '.join(_COUNTS)}) VALUES ({', '.join('?' * 11)}) "
           "ON CONFLICT (key, span, start) DO UPDATE SET "
           + ", ".join(f"{name} = key_spans.{name} + excluded.{name}" for name in _COUNTS))
Span = Literal["minute", "day", "month"]
Limit = Literal["requests_per_minute", "tokens_per_minute", "usd_per_day", "usd_per_month"]


@dataclass(frozen=True)
class Amounts:
    """Requests, tokens and money, reserved or used; changes may be negative."""

    requests: int = 0
    tokens: int = 0
    nano_usd: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.requests + other.requests, self.tokens + other.tokens, self.nano_usd + other.nano_usd)

    def __sub__(self, other: Amounts) -> Amounts:
        return self + other * -1

    def __mul__(self, number: int) -> Amounts:
        return Amounts(self.requests * number, self.tokens * number, self.nano_usd * number)

    def covers(self, other: Amounts) -> bool:
        """Whether none of the other amounts is larger."""
        return (self.requests >= other.requests and self.tokens >= other.tokens and self.nano_usd >= other.nano_usd)


@dataclass(frozen=True)
class KeyChange:
    """What changed for requests that began in one minute. Of `unknown` requests the cost is an estimate."""

    reserved: Amounts = Amounts()
    used: Amounts = Amounts()
    estimated_nano_usd: int = 0
    unknown: int = 0

    def __add__(self, other: KeyChange) -> KeyChange:
        return KeyChange(self.reserved + other.reserved, self.used + other.used,
                      self.estimated_nano_usd + other.estimated_nano_usd, self.unknown + other.unknown)


@dataclass(frozen=True)
class Demand:
    """One request of a key that wants to begin, and how many more like it may be reserved with it.

    `need` is what it may cost; `each` what one of those `ahead` may.
    """

    key: str
    limits: KeyLimits
    minute: int
    need: Amounts
    each: Amounts = Amounts(1)
    ahead: int = 0


@dataclass(frozen=True)
class Exceeded:
    """The limit that a request would exceed. `is_used_up`: by what was used; otherwise by what others have reserved."""

    limit: Limit
    is_used_up: bool


@dataclass(frozen=True)
class Grant:
    """Whether a request may begin; what was reserved beyond its need; what is left after it."""

    exceeded: Exceeded | None = None
    ahead: Amounts = Amounts()
    room: Amounts = Amounts(MOST, MOST, MOST)


@dataclass
class SpanCounts:
    """A row of key_spans."""

    reserved: Amounts = Amounts()
    used: Amounts = Amounts()
    estimated_nano_usd: int = 0
    unknown_requests: int = 0

    @property
    def usd(self) -> float:
        """What was used, the estimates too."""
        return self.used.nano_usd / NANO


@dataclass(frozen=True)
class KeyUse:
    """What a key has used in the spans of one moment."""

    minute: SpanCounts = field(default_factory=SpanCounts)
    day: SpanCounts = field(default_factory=SpanCounts)
    month: SpanCounts = field(default_factory=SpanCounts)


def listed(key: VirtualKey, use: KeyUse, now_s: float) -> dict[str, Any]:
    """A key with its limits and what it has used, as `brise keys list --json` prints it. Its secret is in no store."""
    return {
        "name": key.name, "state": key.refusal(now_s) or "active", "created_s": key.created_s,
        "expires_s": key.expires_s, "last_used_s": key.last_used_s, "limits": asdict(key.limits),
        **{span: {"requests": counts.used.requests, "tokens": counts.used.tokens, "usd": counts.usd,
                  "estimated_usd": counts.estimated_nano_usd / NANO, "unknown_requests": counts.unknown_requests,
                  "reserved_usd": max(counts.reserved.nano_usd - counts.used.nano_usd, 0) / NANO}
           for span, counts in (("minute", use.minute), ("day", use.day), ("month", use.month))}}


class KeyBudgets:
    """The counts in a database. What a call writes is durable when it returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def exchange(self, changes: Mapping[tuple[str, int], KeyChange], demands: Sequence[Demand],
                 used_s: Mapping[str, float] = {}) -> list[Grant]:
        """Writes changes by key and minute, then grants or refuses each demand, all in one transaction.

        `used_s` is when keys were used last.
        """
        totals: dict[tuple[str, Span, int], KeyChange] = {}
        for (key, minute), change in changes.items():
            for place in _places(key, minute):
                totals[place] = totals.get(place, KeyChange()) + change
        for demand in demands:
            for place in _places(demand.key, demand.minute):
                totals.setdefault(place, KeyChange())
        with self._database.transaction() as transaction:
            # In one order, whoever writes: so no two transactions wait for each other. Writing a row also locks it.
            transaction.run_many(_UPSERT, [(*place, *_counts(totals[place])) for place in sorted(totals)])
            transaction.run_many("UPDATE virtual_keys SET last_used_s = ? WHERE id = ? AND "
                                 "(last_used_s IS NULL OR last_used_s < ?)",
                                 [(used_s[key], key, used_s[key]) for key in sorted(used_s)])
            return [_grant(transaction, demand) for demand in demands]

    def use(self, key: str, now_s: float) -> KeyUse:
        """What a key has used in the minute, day and month of this moment."""
        return KeyUse(*(_read(self._database.rows, place) for place in _places(key, int(now_s // MINUTE_S))))

    def expire(self, minute: int) -> None:
        """Deletes rows of minutes that are over; those of days and months stay."""
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM key_spans WHERE span = 'minute' AND start < ?", (minute - KEPT_MINUTES,))

    def close(self) -> None:
        self._database.close()


def wait_s(exceeded: Exceeded, now_s: float) -> float:
    """How long until a request may be tried again."""
    if not exceeded.is_used_up:
        return 1.0
    match exceeded.limit:
        case "requests_per_minute" | "tokens_per_minute":
            return MINUTE_S - now_s % MINUTE_S
        case "usd_per_day":
            return DAY_S - now_s % DAY_S
        case "usd_per_month":
            now = datetime.fromtimestamp(now_s, UTC)
            end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
            return end.timestamp() - now_s


def room(limits: KeyLimits, use: KeyUse) -> Amounts:
    """What is left of the limits."""
    usd = [limit - span.reserved.nano_usd for limit, span in (
        (_nano(limits.usd_per_day), use.day), (_nano(limits.usd_per_month), use.month))]
    return Amounts(_limit(limits.requests_per_minute) - use.minute.reserved.requests,
                   _limit(limits.tokens_per_minute) - use.minute.reserved.tokens, min(usd))


def exceeded(limits: KeyLimits, use: KeyUse, need: Amounts) -> Exceeded | None:
    """The limit that stands against a request.

    The number of requests is never exceeded. Tokens and costs are known when an answer is complete: a request begins
    as long as anything is left, so all servers together exceed a budget by less than what runs at one time.
    """
    minute = use.minute
    most = _limit(limits.requests_per_minute)
    if minute.reserved.requests + need.requests > most:
        return Exceeded("requests_per_minute", True)
    most = _limit(limits.tokens_per_minute)
    if need.tokens > 0 and minute.reserved.tokens >= most:
        return Exceeded("tokens_per_minute", minute.used.tokens >= most)
    spans: Iterable[tuple[Limit, int, SpanCounts]] = (
        ("usd_per_month", _nano(limits.usd_per_month), use.month), ("usd_per_day", _nano(limits.usd_per_day), use.day))
    for name, most, span in spans:
        if need.nano_usd > 0 and span.reserved.nano_usd >= most:
            return Exceeded(name, span.used.nano_usd >= most)
    return None


def _grant(transaction: Transaction, demand: Demand) -> Grant:
    places = _places(demand.key, demand.minute)
    use = KeyUse(*(_read(transaction.rows, place) for place in places))
    refused = exceeded(demand.limits, use, demand.need)
    left = room(demand.limits, use)
    if refused is not None:
        return Grant(refused, room=left)
    ahead = demand.each * _num_ahead(demand, left - demand.need)
    for place in places:
        transaction.run(_UPSERT, (*place, *_counts(KeyChange(reserved=demand.need + ahead))))
    return Grant(None, ahead, left - demand.need - ahead)


def _num_ahead(demand: Demand, left: Amounts) -> int:
    parts = [left.requests // AHEAD_SHARE]
    parts += [have // (AHEAD_SHARE * each) for have, each in (
        (left.tokens, demand.each.tokens), (left.nano_usd, demand.each.nano_usd)) if each > 0]
    return max(min(demand.ahead, *parts), 0)


def _places(key: str, minute: int) -> list[tuple[str, Span, int]]:
    date = datetime.fromtimestamp(minute * MINUTE_S, UTC)
    return [(key, "minute", minute), (key, "day", minute * MINUTE_S // DAY_S),
            (key, "month", date.year * 12 + date.month - 1)]


def _read(rows: Callable[[str, Row], list[Row]], place: tuple[str, Span, int]) -> SpanCounts:
    found = rows(f"SELECT {', '.join(_COUNTS)} FROM key_spans WHERE key = ? AND span = ? AND start = ?", place)
    if not found:
        return SpanCounts()
    values = found[0]
    return SpanCounts(Amounts(*values[:3]), Amounts(*values[3:6]), values[6], values[7])


def _counts(change: KeyChange) -> tuple[int, ...]:
    return (change.reserved.requests, change.reserved.tokens, change.reserved.nano_usd, change.used.requests,
            change.used.tokens, change.used.nano_usd, change.estimated_nano_usd, change.unknown)


def _limit(value: int | None) -> int:
    return MOST if value is None else value


def _nano(usd: float | None) -> int:
    return MOST if usd is None else round(usd * NANO)
