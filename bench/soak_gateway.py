"""The gateway under steady load while the hosted model fails, dies and comes back: memory and open files stay flat.

    python bench/soak_gateway.py MODEL.gguf --minutes 20 --rate 50 --faults 0.05

It fails unless every request had an end that its client could read, memory and open files stayed flat once the caches
were full, and every request is accounted for by the gateway's own counters. The last line is JSON. The largest cache
holds the ends of the last conversations (threads.py): some 450 bytes for each request, until it is full after 20,000.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx

from brise.traffic.conversations import MOST_DIGESTS
from gateway_process import Gateway, Record, Upstream, load, metrics, percentile

WARM_UP = 0.2  # of the time at least: the allocator finds its level
FILLS = 1.2 * MOST_DIGESTS  # requests until the threads' cache is full; those that fail leave nothing in it
MAX_GROWTH = 0.03  # of the memory, from the first quarter after the warm-up to the last
SAMPLE_S = 2.0
DEAD_EVERY_S, DEAD_S = 60.0, 5.0  # the hosted model dies once a minute


@dataclass(frozen=True)
class Sample:
    """The gateway at one moment, seconds after the start."""

    at_s: float
    memory_bytes: int
    num_files: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--faults", type=float, default=0.05, help="share of requests that the hosted model fails")
    parser.add_argument("--shadow", type=float, default=0.05)
    options = parser.parse_args()
    upstream = Upstream("--faults", str(options.faults))
    upstream.start()
    with tempfile.TemporaryDirectory() as home:
        gateway = Gateway(options.model, upstream, Path(home), "--stall-timeout", "2", "--first-byte-timeout", "2",
                          "--answer-timeout", "2", "--shadow", str(options.shadow))
        try:
            record, samples, counted = asyncio.run(_run(options, gateway, upstream))
        finally:
            upstream.kill()
            status = gateway.stop()
    problems = [*record.lost, *_growth(*_quarters(samples, options))]
    if status:
        problems.append(f"the gateway ended with status {status}")
    total = record.outcomes.total()
    if counted["requests"] != total:
        problems.append(f"the clients had {total} ends, the gateway counted {counted['requests']:.0f} requests")
    return _report(options, record, samples, counted, problems)


async def _run(options: argparse.Namespace, gateway: Gateway, upstream: Upstream,
               ) -> tuple[Record, list[Sample], dict[str, float]]:
    record, samples, start_s = Record(), list[Sample](), time.monotonic()
    end_s = start_s + 60 * options.minutes
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(gateway, samples, start_s))
        killing = group.create_task(_outages(upstream))
        await load(gateway.url, options.rate, end_s, record, max_tokens=4)
        watching.cancel()
        killing.cancel()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
        values = await metrics(client)
    counted = {"requests": sum(value for name, value in values.items()
                               if name.startswith("brise_gateway_requests_total"))}
    counted |= {name.removeprefix("brise_gateway_"): value for name, value in values.items()
                if name.startswith(("brise_gateway_requests_total", "brise_gateway_captured", "brise_gateway_capture_",
                                    "brise_gateway_shadow", "brise_gateway_breaker_opened"))}
    return record, samples, counted


async def _outages(upstream: Upstream) -> None:
    while True:
        await asyncio.sleep(DEAD_EVERY_S - DEAD_S)
        await asyncio.to_thread(upstream.kill)
        await asyncio.sleep(DEAD_S)
        await asyncio.to_thread(upstream.start)


async def _watch(gateway: Gateway, samples: list[Sample], start_s: float) -> None:
    while True:
        samples.append(Sample(time.monotonic() - start_s, gateway.resident_bytes(), gateway.num_files()))
        await asyncio.sleep(SAMPLE_S)


def _quarters(samples: list[Sample], options: argparse.Namespace) -> tuple[list[Sample], list[Sample]]:
    """The first and the last quarter of the time after the warm-up; nothing if it ends before its caches are full."""
    seconds = 60 * options.minutes
    warm = max(WARM_UP * seconds, FILLS / options.rate)
    quarter = max(seconds - warm, 0) / 4
    return ([sample for sample in samples if warm <= sample.at_s < warm + quarter],
            [sample for sample in samples if seconds - quarter <= sample.at_s < seconds])


def _tenths(samples: list[Sample], options: argparse.Namespace) -> list[list[Sample]]:
    """The samples of each tenth of the run."""
    length = 6 * options.minutes
    return [[sample for sample in samples if at * length <= sample.at_s < (at + 1) * length] for at in range(10)]


def _growth(first: list[Sample], last: list[Sample]) -> list[str]:
    if not first or not last:
        return [f"too short to judge memory: the caches are full after {FILLS:,.0f} requests"]
    before, after = (median(sample.memory_bytes for sample in part) for part in (first, last))
    problems = []
    if after > before * (1 + MAX_GROWTH):
        problems.append(f"memory grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
    files = [median(sample.num_files for sample in part) for part in (first, last)]
    if files[1] > files[0] + 16:
        problems.append(f"open files grew from {files[0]} to {files[1]}")
    return problems


def _report(options: argparse.Namespace, record: Record, samples: list[Sample], counted: dict[str, float],
            problems: list[str]) -> int:
    first, last = _quarters(samples, options)
    summary = {
        "model": str(options.model), "minutes": options.minutes, "rate": options.rate, "faults": options.faults,
        "requests": record.outcomes.total(), "lost": len(record.lost), "outcomes": dict(record.outcomes),
        "p50_s": percentile(record.seconds, 0.5), "p99_s": percentile(record.seconds, 0.99),
        "memory_first_bytes": median(sample.memory_bytes for sample in first) if first else None,
        "memory_last_bytes": median(sample.memory_bytes for sample in last) if last else None,
        "memory_by_tenth": [round(median(sample.memory_bytes for sample in part) / 1e6, 1)
                            for part in _tenths(samples, options) if part],
        "files_first": median(sample.num_files for sample in first) if first else None,
        "files_last": median(sample.num_files for sample in last) if last else None,
        "counted": counted, "problems": problems[:20], "passed": not problems}
    sys.stdout.write("\n".join(f"PROBLEM {problem}" for problem in problems[:20]) + f"\n{json.dumps(summary)}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
