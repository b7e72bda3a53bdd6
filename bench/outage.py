"""Availability while the hosted model is dead for a share of the time: everybody has an answer, and some say degraded.

    python bench/outage.py MODEL.gguf --seconds 300 --rate 4 --dead 0.3 --outages 3

It fails unless every request was answered with a whole answer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from gateway_process import Gateway, Record, Upstream, load, percentile

ANSWERED = frozenset({"hosted", "degraded", "continued"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rate", type=float, default=4, help="requests a second")
    parser.add_argument("--dead", type=float, default=0.3, help="share of the time")
    parser.add_argument("--outages", type=int, default=3)
    options = parser.parse_args()
    upstream = Upstream()
    upstream.start()
    with tempfile.TemporaryDirectory() as home:
        gateway = Gateway(options.model, upstream, Path(home), "--first-byte-timeout", "5", "--stall-timeout", "5")
        try:
            record = asyncio.run(_run(options, gateway, upstream))
        finally:
            upstream.kill()
            status = gateway.stop()
    return _report(options, record, status)


async def _run(options: argparse.Namespace, gateway: Gateway, upstream: Upstream) -> Record:
    record, end_s = Record(), time.monotonic() + options.seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(load(gateway.url, options.rate, end_s, record))
        period_s = options.seconds / options.outages
        for _ in range(options.outages):  # alive, dead, alive: what runs when it dies is in the middle of its answers
            await asyncio.sleep(period_s * (1 - options.dead) / 2)
            await asyncio.to_thread(upstream.kill)
            await asyncio.sleep(period_s * options.dead)
            await asyncio.to_thread(upstream.start)
            await asyncio.sleep(period_s * (1 - options.dead) / 2)
    return record


def _report(options: argparse.Namespace, record: Record, status: int) -> int:
    total = record.outcomes.total() + len(record.lost)
    answered = sum(count for outcome, count in record.outcomes.items() if outcome in ANSWERED)
    degraded = record.outcomes["degraded"] + record.outcomes["continued"]
    passed = answered == total > 0 and status == 0
    summary = {"model": str(options.model), "seconds": options.seconds, "rate": options.rate, "dead": options.dead,
               "outages": options.outages, "requests": total, "answered": answered / max(total, 1),
               "degraded": degraded / max(total, 1), "outcomes": dict(record.outcomes), "lost": record.lost[:5],
               "p50_s": percentile(record.seconds, 0.5), "p99_s": percentile(record.seconds, 0.99), "passed": passed}
    sys.stdout.write(f"{total} requests, upstream dead for {options.dead:.0%} of the time: "
                     f"{answered / max(total, 1):.2%} answered, {degraded / max(total, 1):.1%} degraded\n"
                     f"{json.dumps(summary)}\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
