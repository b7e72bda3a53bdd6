"""Servers that share a store: beats, the leader, odd fingerprints, and what all load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from brise.errors import UnsupportedError
from brise.traffic.ledger import Chain, next_entry
from brise.traffic.servers import GONE_S, SeenServer, ServerReport, Servers, SharedAdapter, Status, odd_models
from brise.traffic.stores import open_servers, seen_servers, shared_prices
from tests.traffic import postgres
from tests.waiting import wait_until

Opener = Callable[[], Servers]


@pytest.fixture
def opener(place: str, tmp_path: Path) -> Iterator[Opener]:
    opened = list[Servers]()

    def open_() -> Servers:
        opened.append(open_servers(place, tmp_path))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def report(fingerprint: str = "f1", status: Status = "ready") -> ServerReport:
    return ServerReport("0.9", "http://a:1/v1", status, (), {"small": fingerprint}, running=3, tokens_per_s=1.5)


def seen(id: str, fingerprint: str, started_s: float = 0.0, *, age_s: float = 0.0, status: Status = "ready"
         ) -> SeenServer:
    return SeenServer(id, id, started_s, started_s, age_s, report(fingerprint, status))


def test_a_beat_is_seen_by_the_others_until_the_server_leaves(opener: Opener) -> None:
    one, other = opener(), opener()
    one.beat("one/1", "one", report())
    first = other.all()
    one.beat("one/1", "one", report("f2"))
    (again,) = other.all()
    assert [server.name for server in first] == ["one"] and not again.is_gone
    assert (again.report.running, again.report.fingerprints) == (3, {"small": "f2"})
    assert again.started_s == first[0].started_s <= again.seen_s
    one.leave("one/1")
    assert other.all() == []


def test_what_all_load_is_the_last_word_on_each_name(opener: Opener) -> None:
    one, other = opener(), opener()
    calls = SharedAdapter("calls", "small", "/srv/calls", "d1")
    one.share_adapter(calls)
    one.share_adapter(SharedAdapter("tickets", "small", "/srv/tickets", "d2", any_base=True))
    other.share_adapter(SharedAdapter("calls", "", "", "d1", is_removed=True))
    assert [(each.name, each.any_base, each.is_removed) for each in one.adapters()] == [
        ("tickets", True, False), ("calls", False, True)]


@pytest.mark.slow
@pytest.mark.skipif(not postgres.is_possible(), reason="PostgreSQL is not installed")
def test_one_leads_and_the_next_takes_over_when_it_has_gone(postgres_url: Callable[[], str], tmp_path: Path) -> None:
    url = postgres_url()
    one, other = open_servers(url, tmp_path), open_servers(url, tmp_path)
    assert (one.lead(), other.lead(), one.lead()) == (True, False, True)
    one.close()
    wait_until(other.lead)  # the server of PostgreSQL lets a lock go a moment after its connection has closed
    assert abs(other.now_s() - time.time()) < 5
    other.close()


@pytest.mark.parametrize(("others", "is_odd"), [
    ([], False),
    ([seen("b", "f1")], False),
    ([seen("b", "f2", 1.0), seen("c", "f2", 2.0)], True),
    ([seen("b", "f2", 1.0), seen("c", "f1", 2.0)], False),
    ([seen("b", "f2", 99.0)], True),  # as many, and it was there first
    ([seen("b", "f2", 101.0)], False),
    ([seen("b", "f2", 1.0, age_s=GONE_S + 1)], False),
    ([seen("b", "f2", 1.0, status="draining")], False)])
def test_the_odd_one_has_another_fingerprint_than_most(others: list[SeenServer], is_odd: bool) -> None:
    own: Mapping[str, str] = {"small": "f1", "mine": "f9"}
    odd = odd_models("a", own, [seen("a", "f1", 100.0), *others], 100.0)
    assert set(odd) == ({"small"} if is_odd else set())


def test_a_ledger_that_lost_or_changed_its_end_is_not_whole() -> None:
    first = next_entry(None, 1.0, "note", {"a": 1})
    second = next_entry((1, first.digest), 2.0, "note", {"a": 2})

    def read() -> Chain:
        chain = Chain()
        chain.push(first)
        chain.push(second)
        return chain

    assert read().check_end((2, second.digest)) is None
    assert read().check_end((3, "0" * 64)) is None  # a newer line, which is read next
    fault = read().check_end((1, first.digest))
    assert fault is not None and "line 2 is missing" in fault.reason
    fault = read().check_end((2, "0" * 64))
    assert fault is not None and "line 2 was changed" in fault.reason
    chain = Chain()
    fault = chain.push(second)
    assert fault is not None and fault == chain.fault


def test_a_file_is_no_store_of_several_servers(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="for one server"):
        seen_servers(str(tmp_path / "traffic.sqlite"), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not postgres.is_possible(), reason="PostgreSQL is not installed")
def test_prices_are_those_of_the_server_that_had_a_file(postgres_url: Callable[[], str], tmp_path: Path) -> None:
    url, file = postgres_url(), tmp_path / "prices.toml"
    assert shared_prices(None, url, tmp_path) is None
    file.write_text('[models."big"]\ninput = 2.5\noutput = 10\n')
    own = shared_prices(file, url, tmp_path)
    others = shared_prices(None, url, tmp_path)
    assert own is not None and others is not None and others.models == own.models
    file.write_text("[models.big]\ninput = 3\noutput = 10\n")
    shared_prices(file, url, tmp_path)
    changed = shared_prices(None, url, tmp_path)
    assert changed is not None and changed.models["big"].input == 3
