"""A whole roll-out through a real hub to simulated devices: enrolment, signed lists, sealed reports, the ledger.

    python bench/fleet_whole.py [--devices 10000] [--rate 0.005] [--silent 0.2] [--seed 0]

Real: the hub's application with its database, ledger and repository; enrolling; the list of roll-outs, signed, and
verified by the device's own client (once for each new list, since all devices read the same); the draw; sealing,
signing and acknowledging of reports. Simulated: the network (the application is called in this process), the clock, the
outbox (a list), and what a model does: a share `rate` of devices fails, half at the gate, half in the trial, and a
share `silent` never begins.

Prints a Markdown row and, as its last line, JSON. It fails if the ledger, the database and the devices do not agree at
the end.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from brise.fleet import hub_operations, hub_process
from brise.fleet.hub_process import HubOptions, OpenedHub
from brise.fleet.hub_routes import Throttle, create_app
from brise.fleet.offers import OfferedRollout
from brise.fleet.sealed_records import (
    Record,
    RecordBatch,
    batch_json,
    record_json,
    seal_record,
    signed_headers,
)
from brise.fleet.sources import FolderSource
from brise.fleet.trust import TrustedRepository
from brise.traffic.seal import SigningKey
from fleet_hub import key, repository

POLL_S, TICK_S, TRIAL_S, BEGUN_S = 300.0, 10.0, 3600.0, 1_800_000_000.0
MOST_S = 30 * 86400.0


@dataclass
class SimulatedClock:
    """The time of hub and devices."""

    now_s: float = BEGUN_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class SimulatedDevice:
    """One device: what it knows, and what it has still to send."""

    name: str
    fate: str  # silent, good, or the state in which it fails
    key: SigningKey
    fleet: str = ""
    seal: bytes = b""
    number: int = 0
    state: str = ""
    records: list[Record] = field(default_factory=list)

    def says(self, rollout: OfferedRollout, states: Sequence[str], now_s: float) -> None:
        """Seals what happened."""
        for self.state in states:
            self.number += 1
            body = {"rollout": rollout.rollout, "bundle": rollout.bundle, "state": self.state}
            record = Record(f"{self.number:016x}", now_s, "device-state", record_json("device-state", now_s, body))
            self.records.append(seal_record(self.seal, self.fleet, self.name, record))

    def next(self, offered: OfferedRollout | None, now_s: float, random: Random) -> float:
        """What it does now, and the time at which it does the next thing."""
        if offered is None:
            return now_s + POLL_S
        match self.state:
            case "" if self.fate == "silent" or offered.state != "running" or not offered.has(self.name):
                return now_s + POLL_S
            case "":
                self.says(offered, ("fetched", "verified", "staged"), now_s)
                return now_s + random.uniform(20, 120)
            case "staged" if self.fate == "gate-failed":
                self.says(offered, ("gate-failed",), now_s)
            case "staged":
                self.says(offered, ("gate-passed", "trial"), now_s)
                return now_s + TRIAL_S
            case "trial":
                self.says(offered, ("rolled-back" if self.fate == "rolled-back" else "committed",), now_s)
        return now_s + MOST_S


class WholeFleet:
    """A hub and its devices in one process."""

    def __init__(self, args: argparse.Namespace, home: Path) -> None:
        self.random, self.clock, self.home = Random(args.seed), SimulatedClock(), home
        self.bundle = repository(home)
        self.opened: OpenedHub = hub_process.open_hub(HubOptions(home), io.StringIO(), self.clock)
        self.opened.service.devices = Throttle(0.5, 60, 200_000, self.clock)
        self.trusted = TrustedRepository(FolderSource(home / "fleet" / "repository"), home / "device",
                                         self.opened.publisher.root(), self.clock)
        names = [f"d{number}" for number in range(args.devices)]
        silent = frozenset(self.random.sample(names, round(args.silent * args.devices)))
        self.devices = [SimulatedDevice(name, "silent" if name in silent else self._fate(args.rate), key("device"))
                        for name in names]
        self.sent = 0

    def _fate(self, rate: float) -> str:
        if self.random.random() >= rate:
            return "good"
        return "gate-failed" if self.random.random() < 0.5 else "rolled-back"

    async def run(self) -> dict[str, Any]:
        """Enrols all, rolls out, and waits for the end."""
        service = self.opened.service
        app = create_app(service, hub_operations.routes(service, self.opened.publisher.bundles))
        keeping = asyncio.create_task(service.keep_reports())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub", timeout=600) as client:
            operator = {"authorization": "Bearer " + (self.home / "fleet" / "hub" / "operator.key").read_text().strip()}
            began = time.monotonic()
            await self._enrol(client, operator)
            enrolled_s = time.monotonic() - began
            answer = await client.post("/v1/fleet/roll-outs", headers=operator, json={
                "bundle": self.bundle, "rollout": "r1", "user": "bench", "trial_hours": 1, "deadline_s": 10800})
            assert answer.status_code == 200, answer.text
            await self._roll_out(client)
            (found,) = (await client.get("/v1/fleet/status", headers=operator)).json()["rollouts"]
        keeping.cancel()
        return {"enrolled_s": enrolled_s, "seconds": time.monotonic() - began - enrolled_s, "reports": self.sent,
                "hours": (self.clock.now_s - BEGUN_S) / 3600, **{name: found[name] for name in (
                    "state", "reason", "committed", "failed", "pending", "unknown", "began")},
                "really_committed": sum(one.state == "committed" for one in self.devices),
                "running": service.hub.enrolment.tally().running.get(self.bundle, 0)}

    async def _enrol(self, client: httpx.AsyncClient, operator: dict[str, str]) -> None:
        token = (await client.post("/v1/fleet/tokens", headers=operator, json={
            "label": "bench", "uses": len(self.devices)})).json()["token"]
        for device in self.devices:
            answer = await client.post("/enrol", json={"token": token, "device": device.name,
                                                       "public_key": device.key.public.hex(), "facts": {}})
            assert answer.status_code == 200, answer.text
            device.fleet, device.seal = answer.json()["fleet"], bytes.fromhex(answer.json()["hub_seal_key"])

    async def _roll_out(self, client: httpx.AsyncClient) -> None:
        due = [(self.clock.now_s + self.random.uniform(0, POLL_S), number) for number in range(len(self.devices))]
        heapq.heapify(due)
        offered: OfferedRollout | None = None
        version = 0.0
        while self.opened.service.hub.rollout("r1").is_open and self.clock.now_s < BEGUN_S + MOST_S:
            self.clock.now_s += TICK_S
            changed = (self.home / "fleet" / "repository" / "metadata" / "timestamp.json").stat().st_mtime_ns
            if changed != version:
                version, offered = changed, self.trusted.refresh().rollouts[-1]
            reporting = list[SimulatedDevice]()
            while due and due[0][0] <= self.clock.now_s:
                at_s, number = heapq.heappop(due)
                device = self.devices[number]
                heapq.heappush(due, (device.next(offered, max(at_s, self.clock.now_s), self.random), number))
                if device.records:
                    reporting.append(device)
            for start in range(0, len(reporting), 100):
                await asyncio.gather(*(self._send(client, one) for one in reporting[start:start + 100]))
            self.opened.service.hub.tick()

    async def _send(self, client: httpx.AsyncClient, device: SimulatedDevice) -> None:
        batch = batch_json(RecordBatch(device.name, device.fleet, tuple(device.records)))
        answer = await client.post("/reports", content=batch, headers=signed_headers(device.key, device.name, batch))
        if answer.status_code == 200:  # else it sends them again with what comes next
            acknowledged = answer.json()["acknowledged"]
            device.records = [one for one in device.records if one.id > acknowledged]
            self.sent += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--silent", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fleet = WholeFleet(args, Path(folder))
        row = asyncio.run(fleet.run())
        fleet.opened.service.hub.close()
    print("| devices | state | committed | failed | unknown | reports | hours simulated | s |\n" + "|---" * 8 + "|")
    print(f"| {args.devices} | {row['reason'] if row['state'] == 'complete' else row['state']} | {row['committed']} | "
          f"{row['failed']} | {row['unknown']} | {row['reports']} | {row['hours']:.1f} | {row['seconds']:.0f} |")
    row["holds"] = row["committed"] == row["running"] and row["committed"] <= row["really_committed"] and (
        row["state"] != "complete" or row["committed"] + row["failed"] + row["unknown"] == args.devices)
    print(json.dumps(row))
    return 0 if row["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
