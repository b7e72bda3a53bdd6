"""A device and the real hub: enrolment, a bundle to its commit, and two devices that answer for each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from brise.fleet import hub_operations
from brise.fleet.device import read_device, read_root
from brise.fleet.hub_process import OPERATOR_KEY, HubOptions, open_hub
from brise.fleet.hub_routes import create_app
from brise.serve.app import QuietServer
from tests.fleet.devices import DeviceRig, device, ship
from tests.fleet.hubs import pem
from tests.fleet.repositories import HUB, Fleet
from tests.waiting import LIMIT_S, wait_until


@dataclass
class LiveHub:
    """A hub over HTTP, and its operator's key."""

    url: str
    key: str
    tick: Callable[[], object]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = httpx.request(method, f"{self.url}/v1/fleet/{path}", json=body, timeout=LIMIT_S, trust_env=False,
                               headers={"authorization": f"Bearer {self.key}"})
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def live_hub(fleet: Fleet, folder: Path) -> Iterator[LiveHub]:
    (folder / "hub.key").write_text(pem(HUB))
    (folder / "hub.key").chmod(0o600)
    options = HubOptions(folder / "home", folder / "hub", fleet.repository.folder, folder / "hub.key")
    with (folder / "hub.log").open("w") as log:
        opened = open_hub(options, log, fleet.clock)
        app = create_app(opened.service, hub_operations.routes(opened.service, opened.publisher.bundles))
        server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None, port=0))

        async def serve() -> None:
            keeping = asyncio.create_task(opened.service.keep_reports())
            await server.serve()
            keeping.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield LiveHub(f"http://127.0.0.1:{port}", (folder / "hub" / OPERATOR_KEY).read_text().strip(),
                          opened.service.hub.tick)
        finally:
            server.should_exit = True
            thread.join()
            opened.service.hub.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    (tmp_path / "fleet").mkdir()
    return Fleet(tmp_path / "fleet")


def test_devices_enrol_commit_and_answer_for_each_other(fleet: Fleet, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(live_hub(fleet, tmp_path))
        token = hub.ask("POST", "tokens", {"label": "robots", "uses": 2})["token"]
        made = ship(fleet, 1, is_offered=False)
        shared = {"hub": hub.url, "token": token, "root": None, "source": None}
        b = stack.enter_context(device(fleet, tmp_path / "b", name="b", peer_listen=("127.0.0.1", 0), **shared))
        assert read_device(tmp_path / "b" / "node").certificate is not None
        assert read_root(tmp_path / "b" / "node") == fleet.root
        a = stack.enter_context(device(fleet, tmp_path / "a", name="a", peers=(peer_url(b),), **shared))
        hub.ask("POST", "roll-outs", {"bundle": made.digest, "rollout": "all", "user": "anna", "wait_s": 0,
                                      "trial_requests": 0})

        def all_run() -> bool:
            hub.tick()
            for rig in (a, b):
                rig.run_until(partial(has_done, fleet, rig))
                rig.process.node.poll()
            return all(one["running"] == made.digest for one in hub.ask("GET", "devices"))

        wait_until(all_run)
        b.settle(1)
        relays(a, made.name)


def peer_url(rig: DeviceRig) -> str:
    assert rig.process.peer_address is not None
    host, port = rig.process.peer_address
    return f"https://{host}:{port}"


def has_done(fleet: Fleet, rig: DeviceRig) -> bool:
    """Whether the device has committed the bundle, or is not in the roll-out yet."""
    return rig.is_committed(1) or not any(
        one.has(rig.process.device.name) for one in fleet.repository.rollouts.rollouts)


def relays(rig: DeviceRig, model: str) -> None:
    """The device's server has ended, and its peer answers at its port."""
    peers = rig.process.peers
    assert peers is not None
    rig.process.supervisor.stop()
    peers.set_answering(False)
    wait_until(lambda: peers.is_relaying)
    answer = httpx.post(f"http://127.0.0.1:{rig.process.address[1]}/v1/chat/completions", timeout=LIMIT_S,
                        json={"model": model, "messages": []}, trust_env=False)
    assert answer.headers["x-brise-mode"] == "peer", answer.text
    assert answer.json()["version"] == 1
