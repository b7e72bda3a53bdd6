"""Audits that wait are in the store, and another server makes those of one that is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from brise.errors import StoreError
from brise.gateway.request import ClientRequest, read
from brise.switch.shared_audits import SharedAudits
from brise.traffic.audits_waiting import AuditsWaiting, WaitingAudit
from brise.traffic.records import Exchange
from brise.traffic.servers import Membership
from brise.traffic.stores import open_audits_waiting, open_store
from tests.traffic.records import exchange

REQUEST = read("POST", "/v1/chat/completions", b"/v1/chat/completions", (), b"{}")


def waiting(id: str, server: str = "gone") -> WaitingAudit:
    return WaitingAudit(id, 1.0, 0.5, 7, server)


def member(id: str, *living: str) -> Membership:
    made = Membership()
    made.id, made.living = id, frozenset((id, *living))
    return made


def test_what_a_server_left_is_adopted_once(place: str, tmp_path: Path) -> None:
    open_store(place, tmp_path).close()
    one, other = open_audits_waiting(place, tmp_path), open_audits_waiting(place, tmp_path)
    for audit in (waiting("a"), waiting("b", "one"), waiting("c", "other"), waiting("d")):
        one.add(audit)
    one.remove("d")
    assert [audit.exchange for audit in one.adopt("one", {"one", "other"})] == ["a"]
    assert other.adopt("other", {"one", "other"}) == []
    assert [audit.exchange for audit in other.adopt("other", {"other"})] == ["a", "b"]
    one.close()
    other.close()


class Fake(AuditsWaiting):
    """Rows in memory, of a store that may be away."""

    def __init__(self, *left: WaitingAudit, is_away: bool = False) -> None:
        self.left, self.is_away, self.noted, self.removed = list(left), is_away, list[str](), list[str]()

    def add(self, audit: WaitingAudit) -> None:
        self._check()
        self.noted.append(f"{audit.exchange} {audit.server} {audit.switch}")

    def remove(self, exchange: str) -> None:
        self._check()
        self.removed.append(exchange)

    def adopt(self, server: str, living: object) -> list[WaitingAudit]:
        self._check()
        return self.left

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.is_away:
            raise StoreError("it is away")


def adopted(rows: Fake, who: Membership) -> tuple[SharedAudits, list[str]]:
    """The exchanges whose audits are made here; that of "unknown" cannot be asked again."""
    def rebuild(id: str) -> tuple[ClientRequest, Exchange] | None:
        return None if id == "unknown" else (REQUEST, exchange(id))

    async def run() -> tuple[SharedAudits, list[str]]:
        shared = SharedAudits(rows, who, rebuild, every_s=0)
        shared.note(exchange("x"), 0.5, 7)
        shared.settle("y")
        found = await shared.next()
        shared.close()
        return shared, [each.id for _, _, each in found]

    return asyncio.run(run())


def test_the_leader_makes_what_is_left_and_drops_what_nobody_can_ask() -> None:
    rows = Fake(waiting("a"), waiting("unknown"))
    assert adopted(rows, member("one"))[1] == ["a"]
    assert rows.noted == ["x one 7"] and rows.removed == ["y", "unknown"]


def test_others_and_servers_that_know_nobody_adopt_nothing() -> None:
    follower = member("one")
    follower.update(leads=False)
    assert adopted(Fake(waiting("a")), follower)[1] == []
    assert adopted(Fake(waiting("a")), Membership())[1] == []


def test_a_store_that_is_away_loses_notes_only() -> None:
    shared, found = adopted(Fake(waiting("a"), is_away=True), member("one"))
    assert found == [] and shared.failures == 3
