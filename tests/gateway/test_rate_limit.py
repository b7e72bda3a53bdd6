"""The rate limit of an upstream, which all gateways of a store keep together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from brise.errors import StoreError
from brise.gateway import rate_limit
from brise.gateway.failure import UpstreamError
from brise.gateway.rate_limit import UpstreamRate
from brise.traffic.rate_buckets import RateBuckets, Taken, capacity, drawn
from brise.traffic.stores import open_rate_buckets, open_store

MINUTE = 600  # requests: ten a second, 60 at once


def test_a_bucket_fills_with_time_up_to_its_capacity() -> None:
    assert capacity(MINUTE) == 60 and capacity(3) == 1
    assert drawn(0.0, 0.05, MINUTE, 5) == (0.5, 0, pytest.approx(0.05))
    assert drawn(0.0, 0.35, MINUTE, 5) == (0.5, 3, pytest.approx(0.05))
    assert drawn(0.0, 3600.0, MINUTE, 100)[:2] == (0.0, 60)


def test_no_minute_has_more_than_a_tenth_too_many() -> None:
    level, granted = capacity(MINUTE), 0
    for _ in range(6000):
        level, number, _ = drawn(level, 0.01, MINUTE, 10)
        granted += number
    assert MINUTE <= granted <= 1.1 * MINUTE


def test_gateways_draw_from_one_bucket(place: str, tmp_path: Path) -> None:
    open_store(place, tmp_path).close()
    one, other = open_rate_buckets(place, tmp_path), open_rate_buckets(place, tmp_path)
    granted = sum(buckets.take("up", 6.0, 1).granted for _ in range(5) for buckets in (one, other))
    refused = other.take("up", 6.0, 1)
    assert granted == 1 and refused.granted == 0 and 5 < refused.wait_s <= 10
    assert one.take("another", 6.0, 1).granted == 1
    one.close()
    other.close()


class Fake(RateBuckets):
    """A store that grants what the test says, or is away."""

    def __init__(self, *grants: int, wait_s: float = 0.01, is_away: bool = False) -> None:
        self.grants, self.wait_s, self.is_away, self.asked = list(grants), wait_s, is_away, list[int]()

    def take(self, name: str, per_minute: float, most: int) -> Taken:
        self.asked.append(most)
        if self.is_away:
            raise StoreError("it is away")
        return Taken(min(self.grants.pop(0), most) if self.grants else 0, self.wait_s)

    def close(self) -> None:
        pass


def admitted(buckets: Fake, number: int, per_minute: int = MINUTE, num_servers: int = 1,
             now: Callable[[], float] = lambda: 100.0) -> int:
    """How many of so many requests begin."""
    async def run() -> int:
        rate = UpstreamRate("up", per_minute, buckets, lambda: num_servers, now)
        try:
            for done in range(number):
                try:
                    await rate.admit()
                except UpstreamError as error:
                    assert (error.failure.kind, error.failure.client_status) == ("limited", 429)
                    assert error.failure.retry_after_s is not None
                    return done
            return number
        finally:
            rate.close()

    return asyncio.run(run())


def test_requests_are_taken_ahead_so_that_few_wait_for_the_store() -> None:
    buckets = Fake(10, 10, 10, 10)
    assert admitted(buckets, 4) == 4 and buckets.asked == [2, 2]


def test_a_request_waits_for_its_turn_and_no_longer_than_it_is_told() -> None:
    assert admitted(Fake(0, 0, 1), 1) == 1
    assert admitted(Fake(1, 0, wait_s=rate_limit.PATIENCE_S + 1), 2) == 1


def test_a_store_that_is_away_leaves_each_its_part_of_the_limit() -> None:
    clock = iter(range(100, 100_000, 10))  # ten seconds from one look to the next
    buckets = Fake(is_away=True)
    assert admitted(buckets, 3, per_minute=60, num_servers=3, now=lambda: float(next(clock))) == 3
    buckets = Fake(is_away=True)
    assert admitted(buckets, 5, per_minute=6, num_servers=3) == 1  # at one moment: one, then 30 s are too long
    assert buckets.asked == [1]
