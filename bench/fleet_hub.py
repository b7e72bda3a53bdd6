"""The load of a hub with 10,000 devices: its share of a core, and how long devices wait.

    python bench/fleet_hub.py [--devices 10000] [--period 300] [--seconds 60] [--seed 0]

A real `brise hub` in a process of its own, with a roll-out to all devices under way. Devices are coroutines of this
process; what they sign and seal is the real client's (brise.fleet.sealed_records), made before the clock starts. Each
request has a connection of its own, as after 300 s. In each second devices / period of them poll the timestamp (with
its ETag), and as many go through the roll-out, with three reports: fetched, verified and staged; gate-passed and trial;
committed. Before it, devices are written into the hub's database, not enrolled one by one.

Prints a Markdown table and, as its last line, JSON. It fails if the hub takes more than 25 % of one core, p99 is over
50 ms, or a report is missing in the ledger afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from Crypto.PublicKey import ECC

from brise import settings
from brise.fleet.bundle import Blob, Bundle, BundleBase, BundlePlan, DeviceNeeds, GateLimits, bundle_json
from brise.fleet.operator import FleetOperator, OperatorOptions
from brise.fleet.received import SCHEMA
from brise.fleet.repository import PublicKeys, Repository
from brise.fleet.sealed_records import (
    Record,
    RecordBatch,
    batch_json,
    public_seal_key,
    record_json,
    seal_record,
    signed_headers,
)
from brise.traffic.seal import SigningKey
from brise.traffic.sqlite_store import SqliteDatabase

STATES = (("fetched", "verified", "staged"), ("gate-passed", "trial"), ("committed",))
MOST_SHARE, MOST_P99_S = 0.25, 0.05
ROLLOUT = "r1"


@dataclass
class Waits:
    """Seconds of each request, by kind."""

    polls: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def key(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


def repository(home: Path) -> str:
    """A repository with one bundle, and the hub's key; the digest of the bundle."""
    roots = [key("root-1"), key("root-2")]
    release, hub = key("release"), key("hub")
    made = Repository.create(home / "fleet" / "repository", PublicKeys([one.public for one in roots], 2, release.public,
                                                                       hub.public), roots, release, hub)
    content = b"weights"
    bundle = Bundle("tickets", 1, 1.8e9, BundleBase("smollm2", "cd" * 32, 98_000_000),
                    (Blob("adapter/adapter_model.safetensors", hashlib.sha256(content).hexdigest(), len(content)),),
                    None, None, None, None, GateLimits(0.02, 0.9), BundlePlan(400_000_000, 2048, 4), "0f" * 16,
                    "Apache-2.0", DeviceNeeds(400_000_000, 200_000_000, "0.2.0"))
    made.release({bundle.target: bundle_json(bundle), bundle.adapter[0].target: content}, release)
    place = home / "fleet" / "keys" / "hub.key"
    place.parent.mkdir(parents=True)
    place.write_text(str(ECC.construct(curve="Ed25519", seed=hub.seed).export_key(format="PEM")) + "\n")
    place.chmod(0o600)
    return bundle.digest


def write_devices(home: Path, names: Sequence[str], device_key: SigningKey) -> None:
    """All devices at once; they share a key here, so that its making is not measured."""
    with closing(SqliteDatabase(home / "fleet" / "hub" / "hub.sqlite", SCHEMA)) as database, \
            database.transaction() as transaction:
        transaction.run_many("INSERT INTO devices (name, public_key, token, enrolled_s, facts, revoked, mark, dropped) "
                             "VALUES (?, ?, '', 0, '{}', 0, '', '{}')",
                             [(name, device_key.public.hex()) for name in names])


def reports(name: str, fleet: str, seal: bytes, bundle: str, device_key: SigningKey) -> list[bytes]:
    """The three requests of a device in the roll-out."""
    out, number = list[bytes](), 0
    for states in STATES:
        records = list[Record]()
        for state in states:
            number += 1
            body = {"rollout": ROLLOUT, "bundle": bundle, "state": state}
            record = Record(f"{number:016x}", 0.0, "device-state", record_json("device-state", time.time(), body))
            records.append(seal_record(seal, fleet, name, record))
        batch = batch_json(RecordBatch(name, fleet, tuple(records)))
        headers = "".join(f"{header}: {value}\r\n" for header, value in signed_headers(device_key, name, batch).items())
        out.append(f"POST /reports HTTP/1.1\r\nhost: hub\r\nconnection: close\r\ncontent-length: {len(batch)}\r\n"
                   f"{headers}\r\n".encode() + batch)
    return out


async def ask(port: int, request: bytes, waits: list[float], wrong: list[str], status: bytes) -> None:
    """One request on a connection of its own; the wait is from the connection to the last byte."""
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
    except OSError as error:
        wrong.append(repr(error))
        return
    waits.append(time.perf_counter() - began)
    if not answer.startswith(b"HTTP/1.1 " + status):
        wrong.append(answer[:200].decode(errors="replace"))


async def load(port: int, tag: str, wanted: Sequence[Sequence[bytes]], rate: float, seconds: float,
               random: Random) -> Waits:
    """The devices of the roll-out begin at even times, their later reports follow; polls come at random times."""
    waits, tasks = Waits(), list[asyncio.Task[None]]()
    poll = ("GET /repository/metadata/timestamp.json HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n"
            f"if-none-match: {tag}\r\n\r\n")
    due = [(random.uniform(0, seconds), b"") for _ in range(round(rate * seconds))]
    for index, requests in enumerate(wanted):
        for step, request in enumerate(requests):
            due.append((index / rate + step * min(5.0, seconds / 8), request))
    began = time.monotonic()
    for at_s, request in sorted(due, key=lambda one: one[0]):
        await asyncio.sleep(max(began + at_s - time.monotonic(), 0))
        tasks.append(asyncio.create_task(
            ask(port, request, waits.reports, waits.wrong, b"200") if request else
            ask(port, poll.encode(), waits.polls, waits.wrong, b"304")))
    await asyncio.gather(*tasks)
    return waits


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(round(share * len(values)), len(values) - 1)] if values else float("nan")


def measure(args: argparse.Namespace, home: Path) -> dict[str, Any]:
    bundle = repository(home)
    device_key, names = key("device"), [f"d{number}" for number in range(args.devices)]
    environment = settings.child_environment({"BRISE_HOME": str(home), "PYTHONPATH": ":".join(sys.path)})
    command = [sys.executable, "-m", "brise", "hub", "--port", "0"]
    write_devices(home, names, device_key)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = re.search(r":(\d+)$", process.stderr.readline().strip())
        assert found is not None
        port = int(found[1])
        with closing(FleetOperator(OperatorOptions(home, f"http://127.0.0.1:{port}"))) as operator:
            fleet = str(operator.status()["fleet"])
            operator.roll_out({"bundle": bundle, "rollout": ROLLOUT, "stages": [1.0], "wait_s": 1e6})
            seal = public_seal_key(bytes.fromhex((home / "fleet" / "hub" / "seal.key").read_text().strip()))
            rate = args.devices / args.period
            inside = names[:max(round(rate * (args.seconds - 2 * min(5.0, args.seconds / 8))), 1)]
            wanted = [reports(name, fleet, seal, bundle, device_key) for name in inside]
            tag = httpx.get(f"http://127.0.0.1:{port}/repository/metadata/timestamp.json").headers["etag"]
            time.sleep(2)
            began, used = time.monotonic(), cpu_s(process.pid)
            waits = asyncio.run(load(port, tag, wanted, rate, args.seconds, Random(args.seed)))
            seconds, used = time.monotonic() - began, cpu_s(process.pid) - used
            time.sleep(3)
            (state,) = operator.status()["rollouts"]
    finally:
        process.terminate()
        process.wait(30)
    return {"devices": args.devices, "seconds": seconds, "polls": len(waits.polls), "reports": len(waits.reports),
            "share": used / seconds, "wrong": waits.wrong[:5], "num_wrong": len(waits.wrong),
            "committed": state["committed"], "expected": len(inside),
            **{f"{name}_{label}_ms": 1000 * quantile(getattr(waits, name), share)
               for name in ("polls", "reports") for label, share in (("p50", 0.5), ("p99", 0.99))}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--period", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(parser.parse_args(), Path(folder))
    print("| polls/s | reports/s | share of a core | polls p50, p99 | reports p50, p99 |\n|---|---|---|---|---|")
    rates = f"{row['polls'] / row['seconds']:.1f} | {row['reports'] / row['seconds']:.1f}"
    print(f"| {rates} | {100 * row['share']:.1f} % | {row['polls_p50_ms']:.1f}, {row['polls_p99_ms']:.1f} ms | "
          f"{row['reports_p50_ms']:.1f}, {row['reports_p99_ms']:.1f} ms |")
    row["holds"] = (row["share"] <= MOST_SHARE and row["committed"] == row["expected"] and not row["num_wrong"]
                    and max(row["polls_p99_ms"], row["reports_p99_ms"]) <= 1000 * MOST_P99_S)
    print(json.dumps(row))
    return 0 if row["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
