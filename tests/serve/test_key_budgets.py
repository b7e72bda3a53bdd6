"""One budget for all gateways on a store: at its edge, in a crash, and while the store is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from brise.errors import StoreError
from brise.serve.key_guard import KeyOptions
from brise.traffic.key_budgets import Amounts, Demand, Grant, KeyBudgets, KeyChange
from brise.traffic.stores import open_virtual_keys
from brise.traffic.virtual_keys import KeyLimits
from tests.gateway.fake_upstream import Hold, answer, chat
from tests.serve.keys_rig import NOON_S, Clock, KeyedRig, keyed, words
from tests.waiting import LIMIT_S, wait_until

COST_USD = 0.01  # of an answer of `words(9)`


@pytest.fixture
def gateways(place: str, tmp_path: Path) -> Callable[[int], list[KeyedRig]]:
    """So many gateways on one store, with one clock."""
    with ExitStack() as stack:
        clock = Clock()

        def start(number: int) -> list[KeyedRig]:
            made = [stack.enter_context(keyed(place, tmp_path, clock=clock)) for _ in range(number)]
            for each in made:
                each.rig.fake.default = answer(words(9))
            return made

        yield start  # type: ignore[misc]


def statuses(gateways: Sequence[KeyedRig], key: str, number: int, at_once: int) -> list[int]:
    """Requests to the gateways in turn, so many at one time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda at: gateways[at % len(gateways)].ask(key).status_code, range(number)))


@pytest.mark.parametrize("at_once", [1, 6])
def test_gateways_share_the_requests_of_a_minute(gateways: Callable[[int], list[KeyedRig]], at_once: int) -> None:
    made = gateways(2)
    key = made[0].add(requests_per_minute=11)
    assert sorted(statuses(made, key, 24, at_once)) == [200] * 11 + [429] * 13
    made[0].clock.now_s += 60
    assert statuses(made, key, 11, at_once) == [200] * 11


def test_gateways_share_a_budget(gateways: Callable[[int], list[KeyedRig]]) -> None:
    made = gateways(2)
    key = made[0].add(usd_per_day=5 * COST_USD)
    assert statuses(made, key, 8, 1) == [200] * 5 + [429] * 3
    assert made[1].wait_settled(number=5).day.usd == pytest.approx(5 * COST_USD)


def test_at_its_edge_a_budget_is_exceeded_by_what_was_in_flight_at_most(
        gateways: Callable[[int], list[KeyedRig]]) -> None:
    made = gateways(2)
    key = made[0].add(usd_per_day=5 * COST_USD)
    accepted = 0
    while (codes := statuses(made, key, 8, 8)).count(200):
        accepted += codes.count(200)
    spent = made[0].wait_settled(number=accepted).day.usd
    assert 5 * COST_USD <= spent + 1e-9 and spent < 5 * COST_USD + 8 * COST_USD


def test_a_request_that_runs_holds_its_reservation(gateways: Callable[[int], list[KeyedRig]]) -> None:
    first, second = gateways(2)
    key, hold = first.add(usd_per_day=0.5), Hold()
    first.rig.fake.then(chat("hello", hold=hold))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.ask, key, stream=True, max_tokens=1000)  # 1.00 USD at most
        assert hold.reached.wait(LIMIT_S)
        refused = second.ask(key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "1" and "have reserved what is left" in refused.text
        hold.release()
        assert running.result().status_code == 200
    first.wait_settled()
    assert second.ask(key).status_code == 200


def test_what_a_crashed_gateway_had_reserved_stays_counted(place: str, tmp_path: Path) -> None:
    with keyed(place, tmp_path) as made:
        key = made.add(usd_per_day=1.0, requests_per_minute=2)
        of = made.keys.named("team")
        crashed, budgets = open_virtual_keys(place, tmp_path)
        demand = Demand(of.id, of.limits, int(NOON_S // 60), Amounts(1, 0, 10**9))
        assert budgets.exchange({}, [demand])[0].exceeded is None
        crashed.close()  # and nothing more comes from there
        assert made.ask(key).status_code == 429
        assert made.use().day.reserved == Amounts(1, 0, 10**9)
        made.clock.now_s += 43_200
        assert made.ask(key).status_code == 200


def test_a_request_over_midnight_counts_in_the_day_in_which_it_began(
        gateways: Callable[[int], list[KeyedRig]]) -> None:
    made, = gateways(1)
    made.clock.now_s = NOON_S + 43_199.5
    key, hold = made.add(usd_per_day=1.0), Hold()
    made.rig.fake.then(chat("hello", hold=hold))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.ask, key, stream=True)
        assert hold.reached.wait(LIMIT_S)
        before = made.clock.now_s
        made.clock.now_s += 1
        hold.release()
        assert running.result().status_code == 200
    made.clock.now_s = before
    assert made.wait_settled().day.used.requests == 1
    made.clock.now_s += 1
    assert made.use().day.used.requests == 0 and made.use().day.reserved == Amounts()


class Failing(KeyBudgets):
    """Budgets whose store is away while `is_away`."""

    def __init__(self, budgets: KeyBudgets) -> None:
        super().__init__(budgets._database)
        self.is_away = threading.Event()

    def exchange(self, changes: Mapping[tuple[str, int], KeyChange], demands: Sequence[Demand],
                 used_s: Mapping[str, float] = {}) -> list[Grant]:  # noqa: B006
        if self.is_away.is_set():
            raise StoreError("it is away")
        return super().exchange(changes, demands, used_s)

    def expire(self, minute: int) -> None:
        if self.is_away.is_set():
            raise StoreError("it is away")
        super().expire(minute)


def test_known_keys_go_on_within_their_limits_while_the_store_is_away(tmp_path: Path) -> None:
    made_of: list[Failing] = []
    with keyed(tmp_path / "s.sqlite", tmp_path, around=lambda budgets: made_of.append(
            Failing(budgets)) or made_of[0]) as made:
        key = made.add(requests_per_minute=5)
        assert made.ask(key).status_code == 200
        made_of[0].is_away.set()
        assert [made.ask(key).status_code for _ in range(6)] == [200] * 4 + [429] * 2
        made_of[0].is_away.clear()
        assert made.wait_settled(number=5).minute.reserved.requests == 5
        wait_until(lambda: made.guard.failures_in_a_row == 0)
        assert made.ask(key).status_code == 429


def test_without_grace_requests_are_refused_while_the_store_is_away(tmp_path: Path) -> None:
    made_of: list[Failing] = []
    with keyed(tmp_path / "s.sqlite", tmp_path, options=KeyOptions(grace_s=0.0), around=lambda budgets: made_of.append(
            Failing(budgets)) or made_of[0]) as made:
        key = made.add(requests_per_minute=5)
        assert made.ask(key).status_code == 200
        made_of[0].is_away.set()
        refused = made.ask(key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "key_store_unavailable")
        made_of[0].is_away.clear()
        wait_until(lambda: made.ask(key).status_code == 200)


def test_a_busy_key_reserves_ahead_and_gives_back_when_it_is_idle(tmp_path: Path) -> None:
    with keyed(tmp_path / "s.sqlite", tmp_path) as made:
        key = made.add(requests_per_minute=10_000, usd_per_day=100.0)
        made.rig.fake.default = answer(words(9))
        assert set(statuses([made], key, 200, 4)) == {200}
        use = made.wait_settled(number=200)
        wait_until(lambda: made.use().day.reserved == made.use().day.used)
        assert use.day.used.requests == 200 and made.use().day.usd == pytest.approx(200 * COST_USD)


def test_a_limit_that_is_set_in_the_course_of_a_day_counts_what_was_used_before(tmp_path: Path) -> None:
    with keyed(tmp_path / "s.sqlite", tmp_path) as made:
        key = made.add()
        made.rig.fake.default = answer(words(9))
        assert made.ask(key).status_code == 200
        made.wait_settled()
        made.keys.change("team", KeyLimits(usd_per_day=COST_USD), None)
        wait_until(lambda: made.ask(key).status_code == 429)
