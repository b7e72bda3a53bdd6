"""A real `brise serve --upstream` and a hosted model before which it stands, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx

UPSTREAM = Path(__file__).parent / "faulty_upstream.py"
STARTED = re.compile(r"brise serves .* at (\S+)/v1")
PATIENCE_S = 120.0  # a request without an end by then counts as lost


class Upstream:
    """The hosted model; it can die and come back under the same address."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._options, self._process = options, None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, str(UPSTREAM), str(self.port), *self._options])
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Gateway:
    """The process under test, with a store and keys in `home`."""

    def __init__(self, model: Path, upstream: Upstream, home: Path, *options: str) -> None:
        self.store = home / "traffic.sqlite"
        command = [sys.executable, "-m", "brise", "serve", f"small={model}", "--port", "0", "--log-level", "warning",
                   "--upstream", f"http://127.0.0.1:{upstream.port}/v1", "--store", str(self.store),
                   "--fallback", "small", "--context", "512", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "BRISE_HOME": str(home)})
        self.log: list[str] = []
        self.url = self._wait_until_up()
        threading.Thread(target=self._read_log, daemon=True).start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def num_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def _wait_until_up(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if started := STARTED.search(line):
                return started[1]
        raise SystemExit(f"the gateway did not start: {''.join(self.log)}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            del self.log[:-1000]


@dataclass
class Record:
    """What became of the requests: by outcome, and those that had no end."""

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ended: list[tuple[float, str]] = field(default_factory=list)  # when, and the exchange's id


async def ask(client: httpx.AsyncClient, random: Random, record: Record, max_tokens: int = 8) -> None:
    """One request, whole or as a stream, and how it ended."""
    stream = random.random() < 0.5
    body = {"model": "big", "stream": stream, "max_tokens": max_tokens, "messages": [
        {"role": "user", "content": f"question {random.randrange(10**9)}"}]}
    started_s = time.monotonic()
    try:
        response = await client.post("/v1/chat/completions", json=body)
        outcome = _end_of_stream(response) if "event-stream" in response.headers["content-type"] else _whole(response)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        record.lost.append(f"{'stream' if stream else 'whole'}: {type(error).__name__}: {error}")
        return
    record.outcomes[outcome] += 1
    record.seconds.append(time.monotonic() - started_s)
    record.ended.append((time.monotonic(), response.headers["x-brise-id"]))


async def load(url: str, rate: float, until_s: float, record: Record, seed: int = 0, max_tokens: int = 8) -> None:
    """`rate` requests a second, each begun on time, whatever became of those before; waits for all of them."""
    random, start_s, number = Random(seed), time.monotonic(), 0
    limits = httpx.Limits(max_connections=None)
    async with (httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False) as client,
                asyncio.TaskGroup() as group):
        while time.monotonic() < until_s:
            group.create_task(ask(client, random, record, max_tokens))
            number += 1
            await asyncio.sleep(max(start_s + number / rate - time.monotonic(), 0))


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """All values of a scrape, by name and labels."""
    text = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^(brise_\S+) (\S+)$", text, re.MULTILINE)}


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def _whole(response: httpx.Response) -> str:
    body = response.json()
    if response.status_code == 200:
        return "degraded" if "brise" in body and body["choices"] else "hosted" if body["choices"] else "empty"
    return f"error {response.status_code} {body['error'].get('code') or body['error']['type']}"


def _end_of_stream(response: httpx.Response) -> str:
    """ValueError if it has none."""
    *events, last = [event for event in response.text.split("\n\n") if event]
    if last.startswith("event: error\ndata: "):
        return f"error event {json.loads(last.partition('data: ')[2])['error']['code']}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    if last != "data: [DONE]" or len({chunk["id"] for chunk in chunks}) != 1:
        raise ValueError(f"the stream ends with {last[-80:]!r}")
    label = next((chunk["brise"] for chunk in chunks if "brise" in chunk), None)
    return "hosted" if label is None else "continued" if label.get("continued") else "degraded"
