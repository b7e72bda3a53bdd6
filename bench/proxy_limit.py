"""The highest rate of requests at which p99 of an answer stays under a limit: brise's gateway beside LiteLLM's proxy.

Each proxy is tried at rates that grow by 30 %, in turn with the others, until p99 is over the limit in two of three
tries, or requests fail. The hosted model (proxy_upstream.py) and the load (proxy_load.py) share the machine's cores
with the proxies, and so bound what can be seen: `direct` is what they reach without any. `brise x 2` are two
processes, each with a store of its own, between which the load chooses at random; LiteLLM's second form has as many
workers as there are cores.

usage: python bench/proxy_limit.py [--limit-ms 20] [--seconds 3] [--start 10] [--litellm-python VENV/bin/python]
                                   [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from proxy import Target, brise, litellm, load, machine, upstream

GROWTH, TRIES, ALLOWED = 1.3, 3, 1  # of the tries of a rate, so many may be over the limit


def main() -> None:
    parser = argparse.ArgumentParser(description="The rate that a gateway keeps up with")
    parser.add_argument("--limit-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--start", type=float, default=10.0)
    parser.add_argument("--litellm-python", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with ExitStack() as stack:
        direct = f"http://127.0.0.1:{stack.enter_context(upstream(1, 0.0))}/v1"
        targets = {"direct": direct, "brise": stack.enter_context(brise(direct)),
                   "brise x 2": ",".join(stack.enter_context(brise(direct)) for _ in range(2))}
        if args.litellm_python:
            targets["litellm"] = stack.enter_context(litellm(args.litellm_python, direct))
            targets["litellm, all cores"] = stack.enter_context(
                litellm(args.litellm_python, direct, os.cpu_count() or 1))
        limits = search(targets, args)
    report = {"machine": machine(), "limit_ms": args.limit_ms, "requests_per_s": limits}
    print(f"{report['machine']}\np99 of whole answers under {args.limit_ms:g} ms up to, requests/s:")
    for name, rate in limits.items():
        print(f"  {name:20} {rate:8.0f}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def search(targets: dict[str, str], args: argparse.Namespace) -> dict[str, float]:
    """The last rate that each kept up with; 0 for one that did not at the first."""
    limits, running, rate = dict.fromkeys(targets, 0.0), dict(targets), args.start
    for url in targets.values():  # to warm up
        load(Target(url), args.start, 1.0, 0, False)
    while running:
        tries: dict[str, list[bool]] = {name: [] for name in running}
        for seed in range(TRIES):
            for name, url in running.items():
                tries[name].append(is_within(url, rate, seed, args))
        running = {name: url for name, url in running.items() if tries[name].count(False) <= ALLOWED}
        limits |= dict.fromkeys(running, rate)
        rate *= GROWTH
    return limits


def is_within(url: str, rate: float, seed: int, args: argparse.Namespace) -> bool:
    times = load(Target(url), rate, args.seconds, seed, False)
    return not times["num_failed"] and 1000 * p99(times["last_s"]) < args.limit_ms


def p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


if __name__ == "__main__":
    main()
