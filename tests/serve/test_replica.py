"""A server among those that share its store: what `/readyz` says of the others, and what it loads."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from brise.errors import RequestError, StoreError
from brise.serve.engine_models import EngineModels
from brise.serve.local_server import fingerprints
from brise.serve.replica import Replica
from brise.traffic.ledger import Chain
from brise.traffic.servers import Membership, ServerReport, Servers, SharedAdapter
from brise.traffic.stores import open_servers
from tests.engine.stub import stub_model
from tests.serve.live import Live, live
from tests.waiting import until, wait_until


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    opened = open_servers(tmp_path / "traffic.sqlite", tmp_path)
    yield opened
    opened.close()


@contextmanager
def replica_on(tmp_path: Path, log: io.StringIO | None = None) -> Iterator[Replica]:
    replica = Replica(open_servers(tmp_path / "traffic.sqlite", tmp_path), Membership(), log or io.StringIO())
    yield replica
    replica.close()


@contextmanager
def settled(tmp_path: Path) -> Iterator[tuple[Live, Replica]]:
    with replica_on(tmp_path) as replica, live(stub_model("hi"), replica=replica) as server:
        wait_until(lambda: replica.is_settled)
        yield server, replica


def codes(server: Live) -> tuple[int, str, list[str]]:
    answer = server.get("/readyz")
    return answer.status_code, answer.json()["status"], [reason["code"] for reason in answer.json()["reasons"]]


def test_a_server_says_that_it_is_there_and_what_it_serves(tmp_path: Path, servers: Servers) -> None:
    with settled(tmp_path) as (server, replica):
        (seen,) = servers.all()
        assert (seen.id, seen.report.address) == (replica.id, f"{server.url}/v1")
        assert seen.report.fingerprints == fingerprints(EngineModels({"stub": server.worker}))
        wait_until(lambda: "fingerprints" in server.get("/readyz").json())
        body = server.get("/readyz").json()
        assert (body["status"], body["servers"], body["fingerprints"]) == ("ready", 1, dict(seen.report.fingerprints))
    assert servers.all() == []  # it left


def test_a_server_whose_model_is_another_one_than_that_of_most_is_not_ready(tmp_path: Path, servers: Servers) -> None:
    for name in ("b", "c"):
        servers.beat(name, name, ServerReport("0", "", fingerprints={"stub": "f" * 32}))
    with settled(tmp_path) as (server, _):
        assert codes(server) == (503, "failed", ["fingerprint"])
        assert "2 with ffffffffffff" in server.get("/readyz").json()["reasons"][0]["message"]
        assert server.get("/livez").status_code == 200


def test_a_store_that_is_away_degrades_and_does_not_take_the_server_out(tmp_path: Path) -> None:
    class Away(Servers):
        def lead(self) -> bool:
            raise StoreError("it is away")

    replica = Replica(Away(open_servers(tmp_path / "traffic.sqlite", tmp_path)._database), Membership(), io.StringIO())
    with live(stub_model("hi"), replica=replica) as server:
        wait_until(lambda: replica.is_settled)
        assert codes(server) == (200, "degraded", ["store"])
        assert server.chat().status_code == 200
        assert not replica.member.leads()
    replica.close()


@dataclass
class Fake:
    """A server of which a test sees what was loaded; `broken` adapters cannot be."""

    loaded: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    read: Chain | None = None

    def report(self) -> ServerReport:
        return ServerReport("0", "", fingerprints=self.loaded)

    def chain(self) -> Chain | None:
        return self.read

    def adapters(self) -> dict[str, str]:
        return self.loaded

    async def load(self, adapter: SharedAdapter) -> str:
        if adapter.name in self.broken:
            raise RequestError("there is no such folder")
        self.loaded[adapter.name] = "digest"
        return "digest"

    async def unload(self, name: str) -> None:
        del self.loaded[name]


def after_a_beat(tmp_path: Path, fake: Fake, check: Callable[[Replica], object] = lambda replica: None) -> str:
    """The log of a server that joined, looked at the store once and left."""
    log = io.StringIO()

    async def run(replica: Replica) -> None:
        replica.join(fake, "http://host:80/v1")
        await until(lambda: replica.is_settled)
        check(replica)
        await replica.leave()

    with replica_on(tmp_path, log) as replica:
        asyncio.run(run(replica))
    return log.getvalue()


def test_a_server_loads_what_another_was_told_to_and_unloads_it(tmp_path: Path, servers: Servers) -> None:
    servers.share_adapter(SharedAdapter("calls", "small", "/srv/calls", "digest"))
    servers.share_adapter(SharedAdapter("old", "", "", "digest", is_removed=True))
    fake = Fake({"old": "digest", "own": "other"})
    after_a_beat(tmp_path, fake)
    assert fake.loaded == {"calls": "digest", "own": "other"}
    servers.share_adapter(SharedAdapter("own", "", "", "digest", is_removed=True))  # that was another one of this name
    after_a_beat(tmp_path, fake)
    assert "own" in fake.loaded


def test_what_cannot_be_loaded_or_differs_is_said(tmp_path: Path, servers: Servers) -> None:
    servers.share_adapter(SharedAdapter("calls", "small", "/srv/calls", "digest"))
    servers.share_adapter(SharedAdapter("other", "small", "/srv/other", "d" * 32))
    fake, failed = Fake(broken={"calls"}), dict[str, str]()
    log = after_a_beat(tmp_path, fake, lambda replica: failed.update(replica.not_loaded))
    assert set(failed) == {"calls", "other"} and "no such folder" in failed["calls"]
    assert "its digest is digest here, where it was loaded first dddddddddddd" in failed["other"]
    assert log.count("is not loaded") == 2


def test_a_ledger_that_lost_its_end_is_found(tmp_path: Path) -> None:
    chain, faults = Chain(), list[object]()
    chain.number, chain.digest = 7, "0" * 64
    after_a_beat(tmp_path, Fake(read=chain), lambda replica: faults.append(replica.ledger_fault))
    assert "line 1 is missing: there were 7" in str(faults[0])
