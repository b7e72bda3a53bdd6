"""SIGKILL at random moments under load: no acknowledged row is lost, the ledger verifies, and a restart serves.

    python bench/kill_gateway.py MODEL.gguf --kills 200

A request's row is acknowledged when a scrape of /metrics says that no row waits to be written, and the request had its
end before the scrape before that one began. A line of the ledger is acknowledged when `append` returned; another
process appends lines all the time. It fails if a row or line that was acknowledged is missing, the ledger's chain is
broken, a gateway does not start, or does not answer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx

from brise.traffic.ledger import check_chain
from brise.traffic.store import TrafficStore
from brise.traffic.stores import open_store
from gateway_process import Gateway, Record, Upstream, load, metrics

RATE = 20.0  # requests a second


@dataclass
class Found:
    """What the rounds brought."""

    requests: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0  # had their answer, and were killed before they were written
    kept_anyway: int = 0  # of those
    lines: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=float, default=0.1, help="share of requests that the hosted model fails")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random, found = Random(options.seed), Found()
    upstream = Upstream("--faults", str(options.faults))
    upstream.start()
    started_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as home:
            for number in range(options.kills):
                _round(options, Path(home), upstream, random, found, number)
                sys.stderr.write(f"\rkill {number + 1}/{options.kills}: {found.acknowledged} acknowledged rows, "
                                 f"{found.lines} lines, {len(found.problems)} problems")
    finally:
        upstream.kill()
    summary = {"model": str(options.model), "kills": options.kills, "faults": options.faults, "seed": options.seed,
               "seconds": round(time.monotonic() - started_s), "requests": found.requests,
               "acknowledged": found.acknowledged, "unacknowledged": found.unacknowledged,
               "of_those_kept_anyway": found.kept_anyway, "ledger_lines": found.lines,
               "problems": found.problems[:20], "passed": not found.problems}
    sys.stdout.write(f"\n{json.dumps(summary)}\n")
    return 0 if summary["passed"] else 1


def _round(options: argparse.Namespace, home: Path, upstream: Upstream, random: Random, found: Found, number: int,
           ) -> None:
    """A life of the gateway, and what is in the store after its death."""
    gateway = Gateway(options.model, upstream, home, "--stall-timeout", "1")
    store, lines, stop = open_store(gateway.store, home), list[str](), threading.Event()
    writer = threading.Thread(target=_append, args=(store, number, lines, stop))
    writer.start()
    record = Record()
    try:
        safe_s = asyncio.run(_live(gateway, random.uniform(0.2, 4.0), record, number))
    finally:
        gateway.kill()
        stop.set()
        writer.join()
    found.requests += len(record.ended)
    if not record.ended:
        found.problems.append(f"round {number}: nobody had an answer ({record.lost[:1]})")
    _check(store, [id for at_s, id in record.ended if at_s < safe_s],
           [id for at_s, id in record.ended if at_s >= safe_s], lines, found, number)
    store.close()


async def _live(gateway: Gateway, seconds: float, record: Record, seed: int) -> float:
    """Load until the kill, which comes in the middle of it; before when rows were acknowledged."""
    running = asyncio.create_task(load(gateway.url, RATE, time.monotonic() + seconds + 5, record, seed, max_tokens=4))
    while not record.ended and not running.done():  # the gateway's first answers may take a while
        await asyncio.sleep(0.01)
    end_s = time.monotonic() + seconds
    safe_s, before_s = 0.0, 0.0
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10, trust_env=False) as client:
        while (now_s := time.monotonic()) < end_s:
            values = await metrics(client)
            if values["brise_gateway_capture_waiting_rows"] == 0:
                safe_s = before_s
            before_s = now_s
            await asyncio.sleep(0.02)
    gateway.kill()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return safe_s


def _append(store: TrafficStore, number: int, lines: list[str], stop: threading.Event) -> None:
    while not stop.is_set():
        lines.append(store.append("note", {"round": number, "line": len(lines)}).digest)
        stop.wait(0.02)


def _check(store: TrafficStore, acknowledged: list[str], others: list[str], lines: list[str], found: Found, number: int,
           ) -> None:
    missing = [id for id in acknowledged if store.exchange(id) is None]
    found.problems += [f"round {number}: row {id} is lost" for id in missing]
    found.acknowledged += len(acknowledged)
    found.unacknowledged += len(others)
    found.kept_anyway += sum(store.exchange(id) is not None for id in others)
    ledger = list(store.ledger())
    if (broken := check_chain(ledger)) is not None:
        found.problems.append(f"round {number}: {broken.reason}")
    kept = {entry.digest for entry in ledger}
    found.problems += [f"round {number}: a line of the ledger is lost" for digest in lines if digest not in kept]
    found.lines += len(lines)


if __name__ == "__main__":
    raise SystemExit(main())
