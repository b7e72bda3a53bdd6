"""CPU time that the gateway spends on a request, of the event loop's thread and of all its others.

The kernel's count of a thread's own time (schedstat) hardly depends on what else the machine does. One client asks one
request after the other, from bench/proxy_upstream.py through `brise serve --upstream`, with its traffic written down.

usage: python bench/proxy_cpu.py [--requests 2000] [--rounds 5] [--events 20] [--no-stream-usage]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy import free_port, machine, running, upstream, wait_for

WAYS = {"whole": False, "stream": True}
SETTLE_S = 0.3  # the last rows are written a moment after the last answer


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of the gateway for one request")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--no-stream-usage", action="store_true", help="as for brise serve")
    args = parser.parse_args()
    print(f"{machine()}\n{args.rounds} rounds of {args.requests} requests, streams of {args.events} events; "
          "milliseconds of CPU time for one request: median (least to most)")
    port = free_port()
    with upstream(args.events, 0.0) as behind, tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "brise", "serve", "--upstream", f"http://127.0.0.1:{behind}/v1", "--port",
                   str(port), "--log-level", "warning", *(["--no-stream-usage"] if args.no_stream_usage else [])]
        with running(command, env={**os.environ, "BRISE_HOME": home}) as process:
            wait_for(process, port, "/health")
            for way, streams in WAYS.items():
                ask(port, 200, streams)
                rounds = [measure(process.pid, port, args.requests, streams) for _ in range(args.rounds)]
                print(f"{way:6}  event loop {spread([each[0] for each in rounds])}"
                      f"  other threads {spread([each[1] for each in rounds])}")


def measure(pid: int, port: int, number: int, streams: bool) -> tuple[float, float]:
    """Milliseconds a request: the main thread's, and the others'."""
    before = cpu_ns(pid)
    ask(port, number, streams)
    time.sleep(SETTLE_S)
    spent = {thread: now - before.get(thread, 0) for thread, now in cpu_ns(pid).items()}
    loop = spent.pop(pid)
    return loop / number / 1e6, sum(spent.values()) / number / 1e6


def cpu_ns(pid: int) -> Mapping[int, int]:
    """By thread, the nanoseconds that it ran."""
    return {int(task.name): int((task / "schedstat").read_text().split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()}


def ask(port: int, number: int, streams: bool) -> None:
    fields: dict[str, object] = {"model": "big", "messages": [
        {"role": "system", "content": "You are a helpful assistant. " * 8}, {"role": "user", "content": "Hi!"}]}
    body = json.dumps(fields | ({"stream": True} if streams else {}))
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(number):
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
    connection.close()


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
