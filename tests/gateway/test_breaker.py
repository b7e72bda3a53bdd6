"""When the circuit breaker opens, and how it closes again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.gateway.breaker import Breaker, BreakerSettings, Permit


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(BreakerSettings(failures=3, pause_s=5, longest_pause_s=12), clock)


def turn_of(breaker: Breaker) -> Permit:
    turn = breaker.enter()
    assert turn is not None
    return turn


def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        breaker.failed(turn_of(breaker))


def test_it_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded(turn_of(breaker))
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open" and breaker.enter() is None and breaker.wait_s == 5


def test_one_probe_goes_through_after_the_pause(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now_s = 5.0
    assert breaker.state == "half-open"
    probe = turn_of(breaker)
    assert probe.is_probe and breaker.enter() is None
    breaker.succeeded(probe)
    assert breaker.state == "closed" and breaker.enter() is not None


def test_a_probe_that_fails_doubles_the_pause_up_to_a_limit(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    for pause_s in (10, 12, 12):
        clock.now_s += breaker.wait_s
        fail(breaker, 1)
        assert breaker.wait_s == pause_s
    assert breaker.num_opened == 4


def test_a_probe_whose_client_left_makes_room_for_another(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now_s = 5.0
    breaker.left(turn_of(breaker))
    assert turn_of(breaker).is_probe


def test_a_request_from_before_says_nothing_when_it_fails_and_all_when_it_does_not(breaker: Breaker) -> None:
    early, other = turn_of(breaker), turn_of(breaker)
    fail(breaker)
    breaker.failed(early)
    assert breaker.wait_s == 5
    breaker.succeeded(other)
    assert breaker.state == "closed"


def test_it_waits_as_long_as_the_server_says_within_limits(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.failed(turn_of(breaker), wait_s=3600)
    assert breaker.wait_s == 12


@given(st.lists(st.sampled_from(["ok", "fail", "left", "wait"]), max_size=60))
def test_at_most_one_probe_is_under_way_and_time_always_lets_one_through(steps: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=2, pause_s=5, longest_pause_s=20), clock)
    for step in steps:
        if step == "wait":
            clock.now_s += breaker.wait_s
        elif (turn := breaker.enter()) is not None:
            assert not turn.is_probe or breaker.enter() is None
            {"ok": breaker.succeeded, "fail": breaker.failed, "left": breaker.left}[step](turn)
    clock.now_s += breaker.wait_s
    assert breaker.enter() is not None
