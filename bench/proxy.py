"""What the gateway adds to the time of an answer, beside LiteLLM's proxy, at a given rate of requests.

Everything is a process of its own: the hosted model (proxy_upstream.py), the proxies, the load (proxy_load.py: Poisson
arrivals, times counted from the moment that was meant). In each round the same load goes straight to the hosted model,
and through each of the proxies; what a proxy adds is the difference of the quantiles in one round, and what is printed
is the median over the rounds, with the smallest and the largest. The gateway writes down all that it sees. With --full
there is a second gateway beside it, with all that a team switches on: two upstreams, a virtual key with a budget and
limits, prices, and OpenTelemetry (bench/otlp_sink.py takes what it exports). With --small there are two more, in front
of a small model behind another server, which is the same process: `named`, where requests name it, and `switched`,
where their task was switched to it. What they add is over asking that server directly. With --shadow MODEL there is one
whose own small model answers all requests once more in the background; how many it has answered is printed, too.

usage: python bench/proxy.py [--rate 100] [--seconds 5] [--rounds 5] [--events 20] [--gap-ms 0] [--full] [--small]
                             [--shadow MODEL] [--litellm-python VENV/bin/python] [--out FILE.json]

LiteLLM's proxy is not needed by brise: python -m venv VENV && VENV/bin/pip install 'litellm[proxy]'
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
Times = Mapping[str, list[float]]
PRICES = """[models.big-2026]
input = 1.0
output = 2.0
"""


@dataclass(frozen=True)
class Target:
    """Where the load goes, and with which key."""

    url: str
    key: str = "sk-0123456789"


def main() -> None:
    args = parse()
    with ExitStack() as stack:
        port = stack.enter_context(upstream(args.events, args.gap_ms))
        direct = f"http://127.0.0.1:{port}/v1"
        targets = {"direct": Target(direct), "brise": Target(stack.enter_context(brise(direct)))}
        if args.full:
            other = stack.enter_context(upstream(args.events, args.gap_ms))
            targets["full"] = stack.enter_context(full(direct, f"http://127.0.0.1:{other}/v1"))
        if args.small:
            targets["named"] = Target(stack.enter_context(small(direct, "big")))
            targets["switched"] = Target(stack.enter_context(small(direct, "mine")))
        if args.shadow:
            targets["shadow"] = Target(stack.enter_context(shadow(direct, args.shadow)))
        if args.litellm_python:
            targets["litellm"] = Target(stack.enter_context(litellm(args.litellm_python, direct)))
        results = {way: measure(targets, args, streams=way == "stream") for way in ("whole", "stream")}
        report = {"machine": machine(), "rate": args.rate, "seconds": args.seconds, "rounds": args.rounds,
                  "events": args.events, "gap_ms": args.gap_ms, "results": results}
        if args.shadow:
            report["shadow"] = shadow_counts(targets["shadow"].url)
    show(report)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency that the gateway adds")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--gap-ms", type=float, default=0.0)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--shadow", metavar="MODEL")
    parser.add_argument("--litellm-python", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measure(targets: Mapping[str, Target], args: argparse.Namespace, *, streams: bool) -> Mapping[str, object]:
    """Added milliseconds by proxy, and the direct ones."""
    rounds: list[Mapping[str, Mapping[str, float]]] = []
    for number in range(args.rounds + 1):  # the first one is to warm up
        seconds = args.seconds if number else min(args.seconds, 2.0)
        rounds.append({name: quantiles(load(target, args.rate, seconds, number, streams))
                       for name, target in targets.items()})
    measured = rounds[1:]
    keys = list(measured[0]["direct"])
    shown: dict[str, object] = {"direct": {key: spread([each["direct"][key] for each in measured]) for key in keys}}
    for name in targets:
        if name != "direct":
            shown[name] = {key: spread([each[name][key] - each["direct"][key] * (key != "failed")
                                        for each in measured]) for key in keys}
    return shown


def load(target: Target, rate: float, seconds: float, seed: int, streams: bool) -> Times:
    command = [sys.executable, str(HERE / "proxy_load.py"), target.url, str(rate), str(seconds), str(seed), target.key]
    done = subprocess.run(command + ["--stream"] * streams, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def quantiles(times: Times) -> Mapping[str, float]:
    """In milliseconds, of the first and of the last byte."""
    found = {f"{part} {name}": 1000 * sorted(times[f"{part}_s"])[int(len(times[f"{part}_s"]) * share)]
             for part in ("first", "last") for name, share in QUANTILES.items()}
    return {**found, "failed": float(times["num_failed"])}  # type: ignore[arg-type]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def show(report: Mapping[str, object]) -> None:
    print(f"{report['machine']}\n{report['rate']:g} requests/s, {report['rounds']} rounds of {report['seconds']:g} s, "
          f"streams of {report['events']} events, {report['gap_ms']:g} ms apart; milliseconds: median (least to most)")
    for way, by_name in report["results"].items():  # type: ignore[attr-defined]
        for name, values in by_name.items():
            label = f"{way:6} {name if name == 'direct' else f'{name} adds':14}"
            parts = [f"{key} {middle:6.2f} ({least:.2f} to {most:.2f})" for key, (middle, least, most) in values.items()
                     if key != "failed" and (way == "stream" or key.startswith("last"))]
            print(f"{label} {'  '.join(parts)}  failed {values['failed'][2]:g}")
    if "shadow" in report:
        print(f"shadow: {report['shadow']}")


def machine() -> str:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())
    return f"{cpu}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


@contextmanager
def upstream(num_events: int, gap_ms: float) -> Iterator[int]:
    with running([sys.executable, str(HERE / "proxy_upstream.py"), str(num_events), str(gap_ms)],
                 stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextmanager
def brise(url: str) -> Iterator[str]:
    """Our gateway, with its traffic written to a new store."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "brise", "serve", "--upstream", url, "--port", str(port),
                   "--log-level", "warning"]
        with running(command, env={**os.environ, "BRISE_HOME": home}) as process:
            wait_for(process, port, "/health")
            yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def small(url: str, name: str) -> Iterator[str]:
    """Our gateway with a small model behind the server: requests name it, or their task is switched to it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "BRISE_HOME": home}
        words = [sys.executable, "-m", "brise"]
        command = [*words, "serve", "--upstream", url, "--small", f"{name}={url}#big-2026", "--small-engine", "other",
                   "--port", str(port), "--log-level", "warning"]
        with running(command, env=environment) as process:
            wait_for(process, port, "/health")
            card = f"http://127.0.0.1:{port}/v1/models/{name}"
            while b"fingerprint" not in urllib.request.urlopen(card, timeout=5).read():
                time.sleep(0.2)
            if name != "big":  # the task of requests for `big`
                subprocess.run([*words, "switch", "big", "--small-model", name, "--force", "--reason", "a bench",
                                "--share", "100", "--audit", "0.001"], env=environment, capture_output=True, check=True)
            yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def shadow(url: str, model: str) -> Iterator[str]:
    """Our gateway with a small model in it, which answers every request in the background."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "brise", "serve", f"mine={model}", "--context", "2048", "--upstream", url,
                   "--shadow", "1", "--port", str(port), "--log-level", "warning"]
        with running(command, env={**os.environ, "BRISE_HOME": home}) as process:
            wait_for(process, port, "/health")
            yield f"http://127.0.0.1:{port}/v1"


def shadow_counts(url: str) -> Mapping[str, float]:
    """What its shadow has done so far, from /metrics."""
    text = urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=5).read().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if "shadow" in line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@contextmanager
def full(first: str, second: str) -> Iterator[Target]:
    """Our gateway with two upstreams, a virtual key, prices and OpenTelemetry."""
    port = free_port()
    with (tempfile.TemporaryDirectory() as home,
          running([sys.executable, str(HERE / "otlp_sink.py")], stdout=subprocess.PIPE) as sink):
        assert sink.stdout is not None
        collector = f"http://127.0.0.1:{int(sink.stdout.readline())}"
        prices, environment = Path(home) / "prices.toml", {**os.environ, "BRISE_HOME": home}
        prices.write_text(PRICES, encoding="utf-8")
        words = [sys.executable, "-m", "brise"]
        made = subprocess.run([*words, "keys", "add", "team", "--usd-per-day", "1000", "--requests-per-minute",
                               "100000", "--tokens-per-minute", "100000000", "--models", "big,second/*"],
                              env=environment, capture_output=True, text=True, check=True)
        command = [*words, "serve", "--upstream", f"first={first}", "--upstream", f"second={second}", "--port",
                   str(port), "--log-level", "warning", "--prices", str(prices), "--otel-endpoint", collector]
        with running(command, env=environment) as process:
            wait_for(process, port, "/health")
            yield Target(f"http://127.0.0.1:{port}/v1", made.stdout.strip())


@contextmanager
def litellm(python: Path, url: str, num_workers: int = 1) -> Iterator[str]:
    """LiteLLM's proxy with one model, no database, no logging."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": [{"model_name": "big", "litellm_params": {
            "model": "openai/big", "api_base": url, "api_key": "sk-none"}}]}), encoding="utf-8")
        command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port),
                   "--host", "127.0.0.1", "--num_workers", str(num_workers), "--telemetry", "False"]
        environment = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                       "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # it listens on this machine only
        environment.pop("PYTHONPATH", None)
        with running(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_for(process, port, "/health/liveliness")
            yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def running(command: Sequence[str], **more: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **more) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(process: subprocess.Popen[str], port: int, path: str) -> None:
    end = time.monotonic() + 180
    while True:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with status {process.returncode} before it answered")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
