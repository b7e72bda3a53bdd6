"""A device whose hub is gone for thirty days: it goes on, keeps its reports within their bytes, and converges soon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from brise.errors import FleetError
from brise.fleet.device import Device, HubClient
from brise.fleet.device_reports import DeviceReports
from brise.fleet.install import Installation
from brise.fleet.local_gate import GateResult
from brise.fleet.node import Node, PollSchedule
from brise.fleet.offers import Forgotten
from brise.fleet.outbox import LEAST_BYTES, Outbox
from brise.fleet.sealed_records import (
    SIGNATURE_HEADER,
    OpenedRecord,
    is_signed,
    new_seal_key,
    open_record,
    public_seal_key,
    read_batch,
    subject_digest,
)
from brise.fleet.trial import TrialSignals
from brise.fleet.update import UpdateParts, Updates
from brise.traffic.records import Exchange, Pending, new_id
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.fleet.devices import change, ship
from tests.fleet.repositories import Fleet, Liar, key

HOUR_S = 3600.0
DEVICE = Device("robot-1", "fleet-1", "http://hub")


@dataclass
class FakeHub:
    """A hub that can be out of reach. It opens what it gets, and remembers each record by its id."""

    private: bytes = field(default_factory=new_seal_key)
    is_away: bool = False
    got: dict[str, OpenedRecord] = field(default_factory=dict)
    num_twice: int = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.is_away:
            raise httpx.ConnectError("no route to host")
        assert is_signed(key("robot").public, request.content, request.headers[SIGNATURE_HEADER])
        batch = read_batch(request.content, DEVICE.name, DEVICE.fleet)
        for record in batch.records:
            self.num_twice += record.id in self.got
            self.got[record.id] = open_record(self.private, DEVICE.fleet, DEVICE.name, record)
        return httpx.Response(200, json={"acknowledged": batch.records[-1].id})

    def states(self) -> list[str]:
        return [record.body["state"] for record in self.got.values() if record.kind == "device-state"]


@dataclass
class Robot:
    """A device that a test moves through the days, with a gate that passes and trials that end at once."""

    fleet: Fleet
    hub: FakeHub
    source: Liar
    installation: Installation
    outbox: Outbox
    store: SqlStore
    node: Node

    def live(self, days: float, *, traffic: bool = True) -> None:
        """Four hours at a time: a request that waits, an audit, and a poll."""
        for _ in range(int(days * 6)):
            self.fleet.clock.at += 4 * HOUR_S
            if traffic:
                self._serve()
            self.poll()

    def poll(self) -> None:
        """A poll, if one is due, and the passes until the next one."""
        for _ in range(5):
            self.node.step()

    def _serve(self) -> None:
        made = Exchange(new_id(self.fleet.clock.at), self.fleet.clock.at, "tickets", "chat", "/v1/chat/completions",
                        "large", "degraded", 200, "c", subject="ann" if len(self.outbox) % 2 else "bob",
                        request={"model": "large", "messages": [{"role": "user", "content": "x" * 2400}]}, response={})
        self.store.add([made], pending=[Pending(made.id, made.at_s)])
        self.store.append("audit", {"task": "tickets", "exchange": made.id, "difference": 0.0, "probability": 0.5})


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    (tmp_path / "fleet").mkdir()
    fleet, hub = Fleet(tmp_path / "fleet"), FakeHub()
    source, installation = Liar(fleet.source), Installation(tmp_path / "bundles", fleet.clock)
    with ExitStack() as stack:
        store = open_store(tmp_path / "traffic.sqlite", tmp_path / "home")
        outbox = Outbox(tmp_path / "outbox.sqlite", 4 * LEAST_BYTES, fleet.clock, fleet=DEVICE.fleet,
                        device=DEVICE.name, hub_key=public_seal_key(hub.private))
        client = HubClient("http://hub", httpx.Client(transport=httpx.MockTransport(hub.answer)))
        for each in (store, outbox, client):
            stack.callback(each.close)
        updates = Updates(UpdateParts(DEVICE.name, installation, lambda installed, bundle: GateResult((), ()),
                                      lambda attempt, bundle: TrialSignals(), lambda: True, fleet.clock,
                                      lambda text: None))
        reports = DeviceReports(outbox, store, installation, tmp_path, fleet.clock, fleet=DEVICE.fleet)
        node = Node(fleet.device(DEVICE.name, source), updates, reports, installation,
                    PollSchedule(300.0, 0.1, lambda: 0.5), fleet.clock, note=lambda text: None,
                    send=lambda: client.send(outbox, DEVICE, key("robot")))
        yield Robot(fleet, hub, source, installation, outbox, store, node)


def cut(robot: Robot) -> None:
    robot.hub.is_away = True
    robot.source.files["metadata/timestamp.json"] = None


def mend(robot: Robot) -> None:
    robot.hub.is_away = False
    robot.source.files.clear()
    robot.fleet.repository.sign_hub(key("hub"))


def test_thirty_days_without_a_hub(robot: Robot) -> None:
    first = ship(robot.fleet, 1)
    robot.live(0.5)
    assert robot.installation.state.current is not None and robot.installation.state.current.bundle == first.digest
    assert robot.hub.states()[-1] == "committed"
    before = dict(robot.hub.got)
    cut(robot)
    robot.live(30)
    assert robot.installation.state.current.bundle == first.digest
    assert robot.outbox.held_bytes <= 4 * LEAST_BYTES
    assert robot.outbox.dropped["waiting"] > 0 and not robot.outbox.dropped["alarm"]
    held, second = len(robot.outbox), ship(robot.fleet, 2)
    mend(robot)
    for _ in range(3):
        robot.fleet.clock.at += 4000.0
        robot.poll()
    assert robot.installation.state.current.bundle == second.digest
    assert len(robot.outbox) == 0 and robot.hub.num_twice == 0
    assert before.items() <= robot.hub.got.items()
    assert len(robot.hub.got) - len(before) >= held
    assert robot.hub.states().count("committed") == 2


def test_what_was_acknowledged_is_not_sent_again_and_what_was_not_is(robot: Robot) -> None:
    robot.live(1)
    cut(robot)
    robot.live(1)
    waiting = {record.id for record in robot.outbox.batch(1 << 20)}
    assert waiting and not waiting & set(robot.hub.got)
    mend(robot)
    robot.live(1, traffic=False)
    assert waiting <= set(robot.hub.got) and robot.hub.num_twice == 0


def test_a_subject_that_is_forgotten_is_gone_from_store_and_outbox(robot: Robot) -> None:
    made = ship(robot.fleet, 1)
    robot.live(0.5)
    cut(robot)
    robot.live(1)
    number = sum(one.subject is None for one in robot.store.exchanges())
    assert "ann" in robot.store.subjects() and number == 0
    robot.source.files.clear()
    change(robot.fleet, forgotten=Forgotten(1, (subject_digest(DEVICE.fleet, "ann"), made.base.digest)))
    robot.live(0.2, traffic=False)
    assert robot.store.subjects() == ["bob"]
    assert robot.installation.state.forgotten == 1
    mend(robot)
    robot.live(0.2, traffic=False)
    (told,) = [record.body for record in robot.hub.got.values() if record.kind == "forgotten"]
    assert told["number"] == 1 and told["subjects"] == 1 and told["exchanges"] > 0 and told["records"] > 0
    robot.live(0.2, traffic=False)
    assert sum(record.kind == "forgotten" for record in robot.hub.got.values()) == 1


def test_a_refused_repository_is_reported_once_by_its_name(robot: Robot) -> None:
    robot.live(0.5)
    old = robot.source.inner
    assert old is not None
    stale = b"".join(old.read("metadata/timestamp.json", 1 << 16))
    robot.fleet.repository.sign_hub(key("hub"))
    robot.live(0.5)
    robot.source.files["metadata/timestamp.json"] = stale
    robot.live(2)
    refused = [record.body["error"] for record in robot.hub.got.values() if record.kind == "refused"]
    assert refused == ["RolledBackError"]


def test_the_hub_that_answers_nonsense_loses_nothing(robot: Robot, tmp_path: Path) -> None:
    client = HubClient("http://hub", httpx.Client(transport=httpx.MockTransport(
        lambda request: httpx.Response(200, json={"acknowledged": 7}))))
    robot.outbox.add("audit", {"n": 1}, "evidence")
    with pytest.raises(FleetError, match="no 'acknowledged'"):
        client.send(robot.outbox, DEVICE, key("robot"))
    assert len(robot.outbox) == 1
    client.close()
