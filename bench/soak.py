"""Half an hour of hard use of a real `brise serve`: 32 clients stream, leave, send nonsense and too much.

It fails unless every request ended in an answer or an error that the client could read, and memory and open
files of the server stayed flat after the first fifth of the time.

    python bench/soak.py smollm2 --minutes 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

import httpx

from soak_requests import PATIENCE_S, LostError, Target, kinds

WARM_UP = 0.2  # of the time: caches fill, the allocator finds its level
MAX_GROWTH = 0.02  # of the memory, from the first quarter after the warm-up to the last
SAMPLE_S = 2.0
STARTED = re.compile(r"brise serves .* at (\S+)")


@dataclass(frozen=True)
class Sample:
    """The server at one moment, seconds after the start."""

    at_s: float
    memory_bytes: int
    num_files: int


@dataclass
class Record:
    """What happened so far."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, outcome)
    lost: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model", help="a name that `brise models` lists, or the path of a .gguf file")
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--context", type=int, default=2048)
    arguments.add_argument("--parallel", type=int, default=16)
    arguments.add_argument("--queue", type=int, default=16, help="so small that some must get a 429")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    command = [sys.executable, "-m", "brise", "serve", f"soak={options.model}", "--port", "0",
               "--context", str(options.context), "--parallel", str(options.parallel),
               "--queue", str(options.queue), "--threads", str(options.threads), "--log-level", "warning"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            return asyncio.run(_soak(server, options))
        finally:
            if server.poll() is None:
                server.kill()


async def _soak(server: subprocess.Popen[str], options: argparse.Namespace) -> int:
    url = await asyncio.to_thread(_wait_until_up, server)
    record, start = Record(), time.monotonic()
    end = start + 60 * options.minutes
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(_forward_log, server))
        watch = group.create_task(_watch(server.pid, record, start))
        clients = [asyncio.create_task(_client(url, options, Random(f"{options.seed} {number}"), record, end))
                   for number in range(options.clients)]
        await asyncio.gather(*clients)
        idle = await _idle_metrics(url)
        watch.cancel()
        server.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(server.wait, 60)
    problems = [*record.lost, *_memory_problems(record, start, end), *idle]
    if status:
        problems.append(f"the server ended with status {status}")
    _print_report(options, record, problems)
    return 1 if problems else 0


async def _client(url: str, options: argparse.Namespace, random: Random, record: Record, end: float) -> None:
    """One request after the other on kept connections; some are left open by requests that were left."""
    names = list(kinds())
    weights = [weight for _, weight in kinds().values()]
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        target = Target(client, "soak", options.context)
        while time.monotonic() < end:
            name = random.choices(names, weights)[0]
            try:
                outcome = await kinds()[name][0](target, random)
            except (LostError, httpx.HTTPError) as error:
                outcome = "lost"
                record.lost.append(f"{name}: {type(error).__name__}: {error}")
            record.outcomes[name, outcome] += 1
            if outcome == "error queue_full":
                await asyncio.sleep(1)  # what Retry-After says


async def _watch(pid: int, record: Record, start: float) -> None:
    while True:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        record.samples.append(Sample(time.monotonic() - start, resident * 1024, files))
        await asyncio.sleep(SAMPLE_S)


async def _idle_metrics(url: str) -> list[str]:
    """After the last client has gone nothing may run, wait or have failed, and all pages must be free."""
    async with httpx.AsyncClient(timeout=30) as client:
        for _ in range(30):
            text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
            values = {name: float(value) for name, value in
                      re.findall(r"^brise_engine_(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}
            if values["running"] == values["waiting"] == 0:
                break
            await asyncio.sleep(1)
    wanted = {"running": 0.0, "waiting": 0.0, "failures_total": 0.0, "pages_free": values["pages"]}
    return [f"after the end brise_engine_{name} is {values[name]:g}, not {value:g}"
            for name, value in wanted.items() if values[name] != value]


def _memory_problems(record: Record, start: float, end: float) -> list[str]:
    first, last = _quarters(record.samples, end - start)
    if not first or not last:
        return ["too short to judge memory"]
    problems = []
    before, after = (median(sample.memory_bytes for sample in part) for part in (first, last))
    if after > before * (1 + MAX_GROWTH):
        problems.append(f"memory grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
    files = [max(sample.num_files for sample in part) for part in (first, last)]
    if files[1] > files[0] + 8:
        problems.append(f"open files grew from at most {files[0]} to {files[1]}")
    return problems


def _quarters(samples: list[Sample], seconds: float) -> tuple[list[Sample], list[Sample]]:
    """The first and the last quarter of the time after the warm-up, without what came after the end."""
    warm, quarter = WARM_UP * seconds, (1 - WARM_UP) * seconds / 4
    return ([sample for sample in samples if warm <= sample.at_s < warm + quarter],
            [sample for sample in samples if seconds - quarter <= sample.at_s < seconds])


def _print_report(options: argparse.Namespace, record: Record, problems: list[str]) -> None:
    by_kind: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(record.outcomes.items()):
        by_kind.setdefault(kind, {})[outcome] = count
    lines = ["| request | outcomes |", "|---|---|"]
    lines += [f"| {kind} | {', '.join(f'{outcome} {count}' for outcome, count in outcomes.items())} |"
              for kind, outcomes in by_kind.items()]
    lines += [f"PROBLEM {problem}" for problem in problems[:20]]
    first, last = _quarters(record.samples, 60 * options.minutes)
    summary = {
        "model": options.model, "minutes": options.minutes, "clients": options.clients,
        "requests": record.outcomes.total(), "lost": len(record.lost), "outcomes": by_kind,
        "memory_first_bytes": median(sample.memory_bytes for sample in first) if first else None,
        "memory_last_bytes": median(sample.memory_bytes for sample in last) if last else None,
        "files_first": max((sample.num_files for sample in first), default=None),
        "files_last": max((sample.num_files for sample in last), default=None),
        "files_idle": record.samples[-1].num_files if record.samples else None,
        "problems": len(problems), "passed": not problems}
    sys.stdout.write("\n".join(lines) + "\n" + json.dumps(summary) + "\n")


def _wait_until_up(server: subprocess.Popen[str]) -> str:
    """The base URL that the server writes when it listens."""
    assert server.stderr is not None
    for line in server.stderr:
        sys.stderr.write(line)
        started = STARTED.search(line)
        if started:
            return started[1]
    raise SystemExit("soak: error: the server did not start")


def _forward_log(server: subprocess.Popen[str]) -> None:
    """Somebody has to read it, or the server would wait for room in the pipe."""
    assert server.stderr is not None
    for line in server.stderr:
        sys.stderr.write(line)


if __name__ == "__main__":
    raise SystemExit(main())
