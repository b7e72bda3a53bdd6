"""Hubs for tests: the real application over a real repository, asked in this process; and the devices that report."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from brise.fleet import hub_operations, hub_process
from brise.fleet.hub import FleetHub
from brise.fleet.hub_process import HubOptions, OpenedHub
from brise.fleet.hub_routes import create_app
from brise.fleet.outbox import Outbox
from brise.fleet.sealed_records import RecordBatch, batch_json, signed_headers
from brise.traffic.seal import SigningKey
from tests.fleet.repositories import HUB, Clock, Fleet


@dataclass
class HubRig:
    """A hub that a test asks and moves by hand."""

    opened: OpenedHub
    client: httpx.AsyncClient
    clock: Clock
    folder: Path
    devices: dict[str, SigningKey] = field(default_factory=dict)
    outboxes: dict[str, Outbox] = field(default_factory=dict)

    @property
    def hub(self) -> FleetHub:
        return self.opened.service.hub

    @property
    def operator(self) -> Mapping[str, str]:
        key = (self.folder / "hub" / hub_process.OPERATOR_KEY).read_text().strip()
        return {"authorization": f"Bearer {key}"}

    async def token(self, **terms: Any) -> str:
        found = await self.ask("POST", "/v1/fleet/tokens", {"label": "test", "uses": 1000, **terms})
        return str(found["token"])

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, status: int = 200) -> Any:
        """What the operator gets."""
        response = await self.client.request(method, path, json=body, headers=self.operator)
        assert response.status_code == status, response.text
        return response.json()

    async def enrol(self, name: str, token: str, status: int = 200, /, **changes: Any) -> Any:
        key = self.devices.setdefault(name, SigningKey(name.encode().ljust(32, b"-")[:32]))
        body = {"token": token, "device": name, "public_key": key.public.hex(), "facts": {"cores": 2}, **changes}
        response = await self.client.post("/enrol", json=body)
        assert response.status_code == status, response.text
        found = response.json()
        if status == 200 and name not in self.outboxes:
            self.outboxes[name] = Outbox(self.folder / f"{name}.sqlite", 1 << 20, self.clock, fleet=found["fleet"],
                                         device=name, hub_key=bytes.fromhex(found["hub_seal_key"]))
        return found

    def says(self, name: str, rollout: str, bundle: str, *states: str, reason: str = "") -> None:
        """Puts states into a device's outbox."""
        for state in states:
            self.outboxes[name].add("device-state", {"rollout": rollout, "bundle": bundle, "state": state,
                                                     "reason": reason}, "alarm")

    async def send(self, name: str, status: int = 200) -> Any:
        """Sends a device's outbox, and takes the acknowledgement."""
        records = tuple(self.outboxes[name].batch(1 << 19))
        batch = batch_json(RecordBatch(name, self.hub.fleet, records, self.outboxes[name].dropped))
        response = await self.post(batch, signed_headers(self.devices[name], name, batch))
        assert response.status_code == status, response.text
        if status == 200:
            self.outboxes[name].acknowledge(response.json()["acknowledged"])
        return response.json()

    async def post(self, batch: bytes, headers: Mapping[str, str]) -> httpx.Response:
        return await self.client.post("/reports", content=batch, headers=dict(headers))


@asynccontextmanager
async def hub(fleet: Fleet, folder: Path, **changes: Any) -> AsyncIterator[HubRig]:
    """A hub in this folder, with the hub's key of tests; its own ticks are the test's."""
    key = folder / "hub.key"
    if not key.exists():
        key.write_text(pem(HUB))
        key.chmod(0o600)
    options = HubOptions(folder / "home", folder / "hub", fleet.repository.folder, key, **changes)
    opened = hub_process.open_hub(options, io.StringIO(), fleet.clock)
    app = create_app(opened.service, hub_operations.routes(opened.service, opened.publisher.bundles))
    keeping = asyncio.create_task(opened.service.keep_reports())
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub") as client:
            yield HubRig(opened, client, fleet.clock, folder)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        opened.service.hub.close()


def pem(key: SigningKey) -> str:
    from Crypto.PublicKey import ECC  # noqa: PLC0415
    return str(ECC.construct(curve="Ed25519", seed=key.seed).export_key(format="PEM")) + "\n"
