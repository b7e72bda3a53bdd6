"""Devices for tests: the real node over a real repository, with a stand-in for the server (fake_serve.py)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from brise.fleet.bundle import Blob, Bundle, BundleBase, DeviceNeeds, bundle_json
from brise.fleet.install_state import InstallState
from brise.fleet.node_options import NodeOptions
from brise.fleet.node_process import DeviceProcess
from brise.fleet.offers import Forgotten, OfferedRollout, TrialTerms
from brise.settings import Settings
from tests.fleet.bundles import bundle
from tests.fleet.repositories import HUB, RELEASE, Fleet
from tests.fleet.shipping import Workshop
from tests.waiting import wait_until

FAKE_SERVE = (sys.executable, "-S", "-E", str(Path(__file__).with_name("fake_serve.py")))
AT_ONCE = TrialTerms(requests=0)


def ship(fleet: Fleet, version: int, *, trial: TrialTerms = AT_ONCE, base: str = "base", share: float = 1.0,
         is_offered: bool = True, **about: Any) -> Bundle:
    """A signed bundle that fake_serve.py understands, offered by a roll-out of its own; `about` is in its adapter."""
    adapter, files = json.dumps({"version": version, **about}).encode(), base.encode()
    blobs = [Blob(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in (
        ("adapter/adapter_model.safetensors", adapter), ("base/model.gguf", files))]
    made = bundle(version=version, adapter=(blobs[0],), needs=DeviceNeeds(1, 1, "0.1"),
                  base=BundleBase("smollm2", blobs[1].sha256, len(files), (blobs[1],)))
    fleet.repository.release({made.target: bundle_json(made), blobs[0].target: adapter, blobs[1].target: files},
                             RELEASE)
    rollout = OfferedRollout(f"r{version}", made.digest, share, "running", "salt", fleet.clock.at,
                             fleet.clock.at + 1e7, trial)
    if is_offered:
        change(fleet, rollout)
    else:
        fleet.repository.sign_hub(HUB)
    return made


def change(fleet: Fleet, *rollouts: OfferedRollout, forgotten: Forgotten | None = None) -> None:
    """The hub signs these roll-outs, those of the same name replaced."""
    before = fleet.repository.rollouts
    named = {one.rollout: one for one in (*before.rollouts, *rollouts)}
    fleet.repository.sign_hub(HUB, rollouts=replace(before, rollouts=tuple(named.values()),
                                                    forgotten=forgotten or before.forgotten))


@dataclass
class DeviceRig:
    """A device that a test moves by hand."""

    process: DeviceProcess
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> InstallState:
        return self.process.installation.state

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Both of its loops, pass by pass, until the condition holds."""

        def step() -> bool:
            self.process.node.step()
            self.process.supervisor.tick()
            return condition()

        wait_until(step)

    def settle(self, version: int) -> None:
        """Until this version is committed, and answers."""
        self.run_until(lambda: self.is_committed(version) and self.process.supervisor.answering == self.state.current)

    def is_committed(self, version: int) -> bool:
        current = self.state.current
        return current is not None and current.version == version and self.state.attempt is None

    def ask(self, method: str = "GET", path: str = "/") -> Mapping[str, Any]:
        with httpx.Client(timeout=10, trust_env=False) as client:
            found: Mapping[str, Any] = client.request(method, f"http://127.0.0.1:{self.process.address[1]}{path}").json()
            return found

    def reported(self) -> list[tuple[str, str, str]]:
        """Kind, state and reason of what is in the outbox, in order."""
        bodies = [(record.kind, json.loads(record.body)["body"]) for record in self.process.outbox.batch(1 << 30)]
        return [(kind, body.get("state", ""), body.get("reason", "")) for kind, body in bodies]


def options_of(fleet: Fleet | Workshop, folder: Path, **changes: Any) -> NodeOptions:
    """Those of a device that polls at each step."""
    root = fleet.folder / "root.json"
    if not root.exists():
        root.write_bytes(fleet.repository.root_bytes)
    made = NodeOptions(folder / "node", Settings(folder / "home"), source=str(fleet.repository.folder), root=root,
                       port=0, poll_s=0.001, jitter=0.0, program=FAKE_SERVE, clock=fleet.clock)
    return replace(made, **changes)


@contextmanager
def device(fleet: Fleet | Workshop, folder: Path, **changes: Any) -> Iterator[DeviceRig]:
    """A device in this folder; its servers end with the block."""
    notes = list[str]()
    with closing(DeviceProcess(options_of(fleet, folder, note=notes.append, **changes))) as process:
        try:
            yield DeviceRig(process, notes)
        finally:
            process.supervisor.stop()
