"""When the circuit breaker opens, and how it closes again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.gateway.breaker import Breaker, BreakerSettings, Caller, Permit, Scope


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


def ask(breaker: Breaker, client: str, body: str, *, fails: bool = True, scope: Scope = "request",
        model: str = "big") -> str:
    """One attempt of a client: how it went."""
    permit = breaker.enter(Caller(model, client, body.encode()))
    if permit is None:
        return "open"
    if fails:
        breaker.failed(permit, scope=scope)
    else:
        breaker.succeeded(permit)
    return "failed" if fails else "answered"


@pytest.fixture
def usual(clock: Clock) -> Breaker:
    return Breaker(BreakerSettings(), clock)


def test_one_clients_poisoned_request_stops_that_request_only(usual: Breaker) -> None:
    assert [ask(usual, "a", "poison") for _ in range(7)] == ["failed"] * 5 + ["open"] * 2
    assert ask(usual, "a", "other", fails=False) == "answered"
    assert ask(usual, "b", "poison", fails=False) == "answered", "of another client it may be another's fault"
    assert usual.num_open() == {"request": 1}


@pytest.mark.parametrize("others", [0, 1, 7])
def test_two_clients_poisoned_requests_never_stop_the_others(usual: Breaker, clock: Clock, others: int) -> None:
    for number in range(200):
        for client in ("a", "b"):
            ask(usual, client, f"poison {number}")
        for other in range(others):
            assert ask(usual, f"other {other}", f"good {number}", fails=False) == "answered"
        clock.now_s += 0.1
    assert ask(usual, "innocent", "good", fails=False) == "answered"
    assert usual.num_open()["model"] == 0 and usual.state == "closed"


def test_a_client_whose_every_request_fails_is_not_sent_on_until_somebody_is_answered(usual: Breaker) -> None:
    assert [ask(usual, "a", f"r{number}") for number in range(8)] == ["failed"] * 5 + ["open"] * 3
    assert ask(usual, "b", "good", fails=False) == "answered"
    assert ask(usual, "a", "r9", fails=False) == "answered"


@pytest.mark.parametrize(("clients", "attempts"), [(1, 5), (2, 10), (3, 5), (5, 5), (50, 5)])
def test_an_outage_is_recognised_after_so_many_attempts(usual: Breaker, clients: int, attempts: int) -> None:
    got = [ask(usual, f"client {number % clients}", f"request {number}") for number in range(100)]
    assert got.count("failed") == attempts and set(got[attempts:]) == {"open"}


def test_no_connection_stops_everything_whoever_asked(usual: Breaker) -> None:
    assert [ask(usual, "a", "same", scope="upstream") for _ in range(6)] == ["failed"] * 5 + ["open"]
    assert ask(usual, "b", "new", model="other") == "open" and usual.state == "open"


def test_an_answer_of_any_status_shows_that_there_is_a_connection(usual: Breaker) -> None:
    for number in range(20):
        ask(usual, "a", "same", scope="upstream" if number % 5 else "request")
    assert usual.state == "closed"


def test_a_limit_of_the_gateways_own_key_stops_the_model_whoever_asked(usual: Breaker) -> None:
    assert [ask(usual, "a", "same", scope="model") for _ in range(6)] == ["failed"] * 5 + ["open"]
    assert ask(usual, "b", "new") == "open" and ask(usual, "b", "new", model="other", fails=False) == "answered"
    assert usual.open_models() == ["big"]


def test_models_have_circuits_of_their_own(usual: Breaker) -> None:
    for number in range(9):
        ask(usual, f"c{number}", "hi")
    assert ask(usual, "x", "hi") == "open"
    assert ask(usual, "x", "hi", model="other", fails=False) == "answered"
    assert usual.num_open()["model"] == 1


def test_the_first_probe_is_a_request_that_has_not_failed(usual: Breaker, clock: Clock) -> None:
    for number in range(5):
        ask(usual, f"poisoner {number % 3}", f"poison {number}")
    clock.now_s = 5.0
    assert ask(usual, "poisoner 0", "poison") == "open"
    assert ask(usual, "innocent", "good", fails=False) == "answered"
    assert ask(usual, "innocent", "good", fails=False) == "answered" and usual.open_models() == []


def test_where_only_what_failed_is_asked_again_it_is_the_probe_a_second_later(usual: Breaker, clock: Clock) -> None:
    for number in range(5):
        ask(usual, f"c{number % 3}", "hi")
    clock.now_s = 6.0
    assert ask(usual, "c0", "hi", fails=False) == "answered"


def test_failures_long_ago_count_no_more(usual: Breaker, clock: Clock) -> None:
    for number in range(20):
        clock.now_s += 61
        assert ask(usual, f"c{number}", "hi") == "failed"


def test_what_is_remembered_is_bounded(usual: Breaker) -> None:
    for number in range(6000):
        ask(usual, f"c{number}", f"r{number}", model=f"m{number}")
    assert len(usual._circuits) <= 4096


STEPS = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9), st.booleans(), st.integers(0, 9))


@given(st.lists(STEPS, max_size=80))
def test_whatever_two_clients_do_a_third_ones_request_is_let_through(steps: list[tuple[str, int, bool, int]]) -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(), clock)
    for client, body, fails, wait_s in steps:
        clock.now_s += wait_s
        ask(breaker, client, str(body), fails=fails)
        permit = breaker.enter(Caller("big", "c", b"mine"))
        assert permit is not None
        breaker.left(permit)
