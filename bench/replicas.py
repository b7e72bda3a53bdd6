"""Three servers with HAProxy and PostgreSQL: what a restart, a kill, a lost store and a roll-back cost the clients.

    python bench/replicas.py MODEL.gguf [--only rolling kill switch store prefix latency] [--rate 20] [--seed 0]

rolling   each server ends and starts again under load: no request fails, no stream breaks
kill      SIGKILL of one: at most what was in flight there fails
switch    a switch taken back through one server: 0 of 1,000 later requests are answered by the small model
store     PostgreSQL is away for 30 s: answers go on, /readyz never says 503, and no row is lost
prefix    prefix-cache hits of a replayed trace of 200 conversations, beside those of one server
latency   what HAProxy adds to a whole answer, p50, in turn with the server behind it

Prints a Markdown table and, as its last line, JSON. It fails if one of them misses what is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import httpx

from brise.traffic.store import Query
from brise.traffic.stores import open_store
from gateway_process import Upstream
from replicas_rig import Cluster, Server, status_of, wait_until

WORDS = 40  # of the hosted model's answers, 40 ms each: a stream takes 1.6 s
COUNT = 3
Outcome = dict[str, Any]


@dataclass
class Asked:
    """One request: when, of whom, and how it ended."""

    begun_s: float
    is_stream: bool
    ended_s: float = 0.0
    server: str = ""
    mode: str = ""
    id: str = ""
    problem: str = ""  # nothing if it was answered whole


@dataclass
class Load:
    """All requests of a scenario."""

    asked: list[Asked] = field(default_factory=list)

    def failed(self) -> list[Asked]:
        return [each for each in self.asked if each.problem]


async def ask(client: httpx.AsyncClient, random: Random, load: Load, model: str, task: str = "load") -> Asked:
    """One request of a conversation, half of them streams."""
    one = Asked(time.monotonic(), random.random() < 0.5)
    load.asked.append(one)
    body = {"model": model, "stream": one.is_stream, "max_tokens": 8, "messages": [
        {"role": "user", "content": f"question {random.randrange(10**9)}"}]}
    headers = {"x-brise-conversation": f"c{random.randrange(200)}", "x-brise-task": task}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            one.server, one.id = answer.headers.get("x-brise-replica", ""), answer.headers.get("x-brise-id", "")
            one.mode = answer.headers.get("x-brise-mode", "")
            text = (await answer.aread()).decode()
            if answer.status_code != 200:
                one.problem = f"status {answer.status_code}: {text[:80]}"
            elif one.is_stream and (not text.rstrip().endswith("data: [DONE]") or '"error"' in text):
                one.problem = f"broken stream: {text[-80:]!r}"
            elif not one.is_stream and not json.loads(text)["choices"]:
                one.problem = "empty"
    except (httpx.HTTPError, ValueError) as error:
        one.problem = f"{type(error).__name__}: {error}"
    one.ended_s = time.monotonic()
    return one


async def steady(url: str, rate: float, seed: int, load: Load, work: Callable[[], Awaitable[None]]) -> None:
    """`rate` requests a second, hosted and local in turn, until `work` is done; waits for all of them."""
    random, start_s, number = Random(seed), time.monotonic(), 0
    async with (httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None),
                                  trust_env=False) as client, asyncio.TaskGroup() as group):
        working = group.create_task(_run(work))
        while not working.done():
            group.create_task(ask(client, random, load, ("big", "small")[number % 2]))
            number += 1
            await asyncio.sleep(max(start_s + number / rate - time.monotonic(), 0))


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def rolling(cluster: Cluster, options: argparse.Namespace) -> Outcome:
    load, statuses = Load(), list[int]()

    async def restart() -> None:
        await asyncio.sleep(3)
        for server in cluster.servers:
            statuses.append(await asyncio.to_thread(server.end))
            await asyncio.to_thread(server.start)
            await asyncio.sleep(4)

    await steady(cluster.url, options.rate, options.seed, load, restart)
    failed = load.failed()
    return {"requests": len(load.asked), "streams": sum(each.is_stream for each in load.asked),
            "failed": len(failed), "exit_statuses": statuses, "problems": [each.problem for each in failed[:5]],
            "passed": not failed and not any(statuses)}


async def kill(cluster: Cluster, options: argparse.Namespace) -> Outcome:
    load, killed_s = Load(), [0.0]
    victim = cluster.servers[1]

    async def shoot() -> None:
        await asyncio.sleep(5)
        killed_s[0] = time.monotonic()
        await asyncio.to_thread(victim.kill)
        await asyncio.sleep(10)
        await asyncio.to_thread(victim.start)
        await asyncio.sleep(3)

    await steady(cluster.url, options.rate, options.seed + 1, load, shoot)
    failed = load.failed()
    in_flight = [each for each in load.asked if each.begun_s <= killed_s[0] <= each.ended_s]
    there = [each for each in in_flight if each.server in ("", victim.name)]
    elsewhere = [each.problem for each in failed if each not in in_flight or each.server not in ("", victim.name)]
    kinds = Counter(each.problem.partition(":")[0] for each in failed)
    return {"requests": len(load.asked), "in_flight_there": len(there), "failed": len(failed), "kinds": dict(kinds),
            "failed_elsewhere": elsewhere[:5], "passed": not elsewhere and len(failed) <= len(there)}


def switched(cluster: Cluster, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "brise", "switch", "trial", "--store", cluster.postgres.url, *words],
                   check=True, capture_output=True, env={**os.environ, "BRISE_HOME": str(cluster.home)})


async def switch(cluster: Cluster, options: argparse.Namespace) -> Outcome:
    random, late, small, rounds = Random(options.seed), 0, 0, 10
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False) as client:
        for _ in range(rounds):
            await asyncio.to_thread(switched, cluster, "--small-model", "small", "--force", "--reason", "a trial",
                                    "--share", "100")
            await asyncio.sleep(0.6)  # a switch may take its time; taking it back may not
            before = await _together(client, random, 20)
            small += sum(each.mode == "small" for each in before)
            await asyncio.to_thread(switched, cluster, "--back")
            late += sum(each.mode == "small" for each in await _together(client, random, 1000 // rounds))
    return {"requests": 1000, "late": late, "small_before": small, "passed": late == 0 and small > 0}


async def _together(client: httpx.AsyncClient, random: Random, number: int) -> list[Asked]:
    load, at_once = Load(), asyncio.Semaphore(20)

    async def one() -> Asked:
        async with at_once:
            return await ask(client, random, load, "big", "trial")

    return list(await asyncio.gather(*(one() for _ in range(number))))


async def store(cluster: Cluster, options: argparse.Namespace) -> Outcome:
    load, probes = Load(), Counter[str]()

    async def outage() -> None:
        await asyncio.sleep(3)
        await asyncio.to_thread(cluster.postgres.stop)
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s:
            for server in cluster.servers:
                probes[await asyncio.to_thread(_ready, server)] += 1
            await asyncio.sleep(0.5)
        await asyncio.to_thread(cluster.postgres.start)
        await asyncio.sleep(8)

    await steady(cluster.url, options.rate, options.seed + 2, load, outage)
    for server in cluster.servers:  # their queues are written when they end
        await asyncio.to_thread(server.end)
    ids = {each.id for each in load.asked if each.id and not each.problem}
    opened = open_store(cluster.postgres.url, cluster.home)
    missing = ids - opened.known(ids)
    num_rows = opened.count(Query(task="load"))
    opened.close()
    for server in cluster.servers:
        await asyncio.to_thread(server.start)
    failed = load.failed()
    is_alive = all(name.startswith("200") for name in probes) and any("degraded" in name for name in probes)
    return {"requests": len(load.asked), "failed": len(failed), "problems": [each.problem for each in failed[:5]],
            "captured": len(ids), "missing": len(missing), "rows": num_rows, "readyz": dict(probes),
            "passed": not failed and not missing and is_alive}


def _ready(server: Server) -> str:
    try:
        answer = httpx.get(f"{server.url}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError as error:
        return type(error).__name__
    return f"{answer.status_code} {answer.json()['status']}"


async def prefix(cluster: Cluster, options: argparse.Namespace) -> Outcome:
    """The same trace to one server, to all by the header, and to all without it, each with empty caches."""
    found = {}
    for name, url, has_header in (("one", cluster.servers[0].url, True), ("all", cluster.url, True),
                                  ("no_header", cluster.url, False)):
        for server in cluster.servers:
            await asyncio.to_thread(server.end)
            await asyncio.to_thread(server.start)
        wait_until(lambda: status_of(f"{cluster.url}/readyz") == 200, "the balancer has no server")
        await asyncio.sleep(3)
        await _replay(url, options.seed, has_header)
        counts = [await asyncio.to_thread(_tokens, server) for server in cluster.servers]
        found[name] = sum(cached for _, cached in counts) / max(sum(prompt for prompt, _ in counts), 1)
        print(f"prefix, {name}: {found[name]:.3f} of the prompts' tokens {counts}", file=sys.stderr, flush=True)
    ratio = found["all"] / max(found["one"], 1e-9)
    return {"hit_rates": found, "ratio": ratio, "passed": ratio >= 0.9}


async def _replay(url: str, seed: int, has_header: bool) -> None:
    """200 conversations of three turns, one after the other, their turns mixed; each sends all that was said before."""
    random = Random(seed)
    turns = sorted((0.05 * number + 1.5 * turn + random.random(), number, turn)  # some 60 of them at one time
                   for number in range(200) for turn in range(3))
    said: dict[int, list[dict[str, str]]] = {number: [] for number in range(200)}
    at_once, locks = asyncio.Semaphore(8), {number: asyncio.Lock() for number in range(200)}
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        async def turn_of(number: int, turn: int) -> None:
            async with locks[number], at_once:
                said[number].append({"role": "user", "content": f"conversation {number}, turn {turn}: " + " ".join(
                    str(Random(1000 * number + turn + word).randrange(1000)) for word in range(5))})
                headers = {"x-brise-conversation": f"conversation-{number}"} if has_header else {}
                answer = await client.post("/v1/chat/completions", headers=headers, json={
                    "model": "small", "messages": said[number], "max_tokens": 4, "temperature": 0})
                said[number].append({"role": "assistant", "content": answer.raise_for_status().json()[
                    "choices"][0]["message"]["content"] or "."})

        await asyncio.gather(*(turn_of(number, turn) for _, number, turn in turns))


def _tokens(server: Server) -> tuple[float, float]:
    text = httpx.get(f"{server.url}/metrics", timeout=10, trust_env=False).text
    values = dict(re.findall(r"^(brise_(?:cached_)?prompt_tokens_total)\{[^}]*\} (\S+)$", text, re.MULTILINE))
    return float(values.get("brise_prompt_tokens_total", 0)), float(values.get("brise_cached_prompt_tokens_total", 0))


async def latency(cluster: Cluster, options: argparse.Namespace) -> Outcome:
    """One client, the gateway's list of models: the shortest answer there is, so that the balancer shows."""
    server, times = cluster.servers[0], {"direct": list[float](), "balanced": list[float]()}
    for other in cluster.servers[1:]:
        await asyncio.to_thread(other.end)
    await asyncio.sleep(3)
    async with (httpx.AsyncClient(base_url=server.url, trust_env=False) as direct,
                httpx.AsyncClient(base_url=cluster.url, trust_env=False) as balanced):
        for number in range(2 * options.latency_requests + 100):
            name, client = (("direct", direct), ("balanced", balanced))[number % 2]
            begun_s = time.perf_counter()
            await client.get("/livez")
            if number >= 100:
                times[name].append(time.perf_counter() - begun_s)
    for other in cluster.servers[1:]:
        await asyncio.to_thread(other.start)
    added_ms = 1000 * (median(times["balanced"]) - median(times["direct"]))
    return {"direct_p50_ms": 1000 * median(times["direct"]), "added_p50_ms": added_ms, "requests": len(times["direct"]),
            "passed": added_ms <= 0.5}


SCENARIOS: Mapping[str, Callable[[Cluster, argparse.Namespace], Awaitable[Outcome]]] = {
    "rolling": rolling, "kill": kill, "switch": switch, "store": store, "prefix": prefix, "latency": latency}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency-requests", type=int, default=1000)
    options = parser.parse_args()
    upstream = Upstream("--words", str(WORDS), "--gap-ms", "40")
    upstream.start()
    cluster = Cluster(options.model, COUNT, upstream)
    outcomes = dict[str, Outcome]()
    try:
        cluster.start()
        for name in options.only:
            outcomes[name] = asyncio.run(SCENARIOS[name](cluster, options))
            print(f"{name}: {json.dumps(outcomes[name])}", file=sys.stderr, flush=True)
    finally:
        cluster.stop()
        upstream.kill()
        cluster.remove()
    print("| scenario | result | |\n|---|---|---|")
    for name, outcome in outcomes.items():
        shown = ", ".join(f"{key} {value}" for key, value in outcome.items() if key not in ("passed", "problems"))
        print(f"| {name} | {shown} | {'passed' if outcome['passed'] else 'MISSED'} |")
    print(json.dumps({"model": str(options.model), "rate": options.rate, "seed": options.seed,
                      "load": os.getloadavg()[0], **outcomes}))
    return 0 if all(outcome["passed"] for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
