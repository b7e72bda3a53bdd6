"""brise serve and llama-server over HTTP on the same requests: throughput, time to first token, gap between tokens.

Both read the same file with the same number of threads, one after the other, and get the same prompts at the same
moments. Lengths are those of a trace of real traffic, scaled, so that a small machine gets through it. First as many
requests as the server takes at once say how many it can answer a second: its saturation. Then requests arrive at random
(Poisson) at shares of the saturation of the slower server, and of the server's own. Times count from the moment at
which a request was to be sent. A gap is the time between two pieces of one answer. Prompts are new words, so that no
cache of prefixes helps.

    python bench/serve_load.py MODEL.gguf --threads 2 --llama-server ~/llama.cpp/build/bin/llama-server
    python bench/serve_load.py smollm2.gguf --trace ../shared/data/traces/azure2023_conv.csv.gz --scale 0.25

Without llama-server brise is measured alone. It prints a Markdown table and, as its last line, JSON. With the defaults
it takes at most ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import gzip
import json
import random
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from brise.checkpoint.open import open_checkpoint
from brise.text.load import tokens_for
from proxy import free_port, machine, running

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "azure2023_conv.csv.gz"
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
START_S = 180.0


@dataclass(frozen=True)
class Job:
    """A request: its prompt, and how many tokens its answer has."""

    prompt: str
    num_tokens: int


@dataclass
class Load:
    """What became of the requests of one level; times in seconds."""

    rate: float  # requests a second; 0: all at once
    num_sent: int = 0
    num_failed: int = 0
    num_tokens: int = 0  # of the answers, as the server counts them
    num_prompt_tokens: int = 0
    num_done: int = 0
    took_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    @property
    def done_per_s(self) -> float:
        return self.num_done / self.took_s


@dataclass(frozen=True)
class Server:
    """A server under test: how it is started on a port, and where it says that it is up."""

    name: str
    command: Callable[[int], list[str]]
    extra: dict[str, object]  # fields of a request that only it knows


def main() -> None:
    args = parse()
    servers = [brise(args)]
    binary = args.llama_server or shutil.which("llama-server")
    if binary is None:
        print("llama-server is missing: brise is measured alone\nhint: build llama.cpp with CURL off and give "
              "--llama-server PATH", file=sys.stderr)
    else:
        servers.append(llama(args, str(binary)))
    jobs = read_jobs(args)
    gc.disable()  # its pauses are the client's
    saturation = {server.name: measure_all(server, args, [(0.0, jobs[:args.saturating])])[0] for server in servers}
    slowest = min(load.done_per_s for load in saturation.values())
    results: dict[str, list[Load]] = {}
    for server in servers:
        rates = {round(share / 100 * per_s, 4) for share in args.shares
                 for per_s in (slowest, saturation[server.name].done_per_s)}
        levels = [(rate, jobs[:max(round(rate * args.seconds), 4)]) for rate in sorted(rates)]
        results[server.name] = [saturation[server.name], *measure_all(server, args, levels)]
    show(args, results, slowest)
    report = {"machine": machine(), "model": args.model.name, "trace": args.trace.name, "scale": args.scale,
              "threads": args.threads, "parallel": args.parallel,
              "results": {name: [asdict(load) for load in loads] for name, loads in results.items()}}
    if args.out:
        args.out.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(json.dumps({**report, "results": {name: [summary(load) for load in loads]
                                            for name, loads in results.items()}}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=16, help="answers that a server writes at one time")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a prompt and its answer")
    parser.add_argument("--trace", type=Path, default=TRACE, help="Azure's .csv.gz or Mooncake's .jsonl.gz")
    parser.add_argument("--scale", type=float, default=0.1, help="of the trace's lengths")
    parser.add_argument("--saturating", type=int, default=32, help="requests that find the saturation")
    parser.add_argument("--shares", type=lambda text: [float(part) for part in text.split(",")], default=[50, 80, 100],
                        help="of the saturation, in per cent (default: 50,80,100)")
    parser.add_argument("--seconds", type=float, default=35.0, help="of arrivals at each rate")
    parser.add_argument("--llama-server", type=Path, help="the binary (default: the one on the PATH)")
    parser.add_argument("--llama-args", default="", help="more options for it, separated by blanks")
    parser.add_argument("--brise-args", default="", help="likewise for brise serve")
    parser.add_argument("--out", type=Path, help="a file for the JSON with every time")
    args = parser.parse_args()
    if not args.trace.is_file():
        raise SystemExit(f"there is no trace {args.trace}: name one with --trace")
    return args


def brise(args: argparse.Namespace) -> Server:
    return Server("brise", lambda port: [
        sys.executable, "-m", "brise", "serve", f"m={args.model}", "--threads", str(args.threads), "--context",
        str(args.context), "--parallel", str(args.parallel), "--port", str(port), "--log-level", "warning",
        *args.brise_args.split()], {"ignore_eos": True})


def llama(args: argparse.Namespace, binary: str) -> Server:
    return Server("llama-server", lambda port: [
        binary, "-m", str(args.model), "-t", str(args.threads), "-tb", str(args.threads), "-c",
        str(args.context * args.parallel), "-np", str(args.parallel), "--port", str(port), "--no-webui",
        *args.llama_args.split()], {"ignore_eos": True, "cache_prompt": False})


def read_jobs(args: argparse.Namespace) -> list[Job]:
    """Requests with the trace's lengths: prompts of new words, which have the wanted number of tokens."""
    tokenizer = tokens_for(open_checkpoint(args.model)).tokenizer
    chance, words = random.Random(1), ["wind", "sea", "stone", "river", "night", "bread", "glass", "road"]
    jobs = []
    for number, (prompt, answer) in enumerate(lengths(args.trace)):
        answer = min(max(round(answer * args.scale), 2), args.context // 2)
        wanted = min(max(round(prompt * args.scale), 8), args.context - answer - 8)
        text = f"{number} {chance.randrange(10**6)}"
        size = len(tokenizer.encode(text))
        while size < wanted:
            text += "".join(f" {chance.choice(words)}" for _ in range(max((wanted - size) // 4, 1)))
            size = len(tokenizer.encode(text))
        jobs.append(Job(text, answer))
        if len(jobs) == 2000:
            break
    return jobs


def lengths(path: Path) -> Iterator[tuple[int, int]]:
    """Tokens of the prompt and of the answer of each request of a trace."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        if ".csv" in path.suffixes:
            for row in csv.DictReader(file):
                yield int(row["ContextTokens"]), int(row["GeneratedTokens"])
        else:
            for line in file:
                entry = json.loads(line)
                yield entry["input_length"], entry["output_length"]


def measure_all(server: Server, args: argparse.Namespace, levels: Sequence[tuple[float, Sequence[Job]]]) -> list[Load]:
    """Starts a server, warms it up, and measures one level after the other."""
    with started(server) as port:
        asyncio.run(measure(server, port, 0.0, [Job("Name three winds.", 4)] * 2))
        loads = []
        for rate, jobs in levels:
            print(f"{server.name}: {len(jobs)} requests, {f'{rate:.3g} a second' if rate else 'all at once'}",
                  file=sys.stderr)
            loads.append(asyncio.run(measure(server, port, rate, jobs)))
        return loads


@contextmanager
def started(server: Server) -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryFile() as log, running(server.command(port), stdout=log, stderr=log) as process:
        end = time.monotonic() + START_S
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > end:
                log.seek(0)
                raise SystemExit(f"{server.name} did not start: {log.read()[-2000:].decode(errors='replace')}")
            time.sleep(0.1)
        yield port


async def measure(server: Server, port: int, rate: float, jobs: Sequence[Job]) -> Load:
    chance, load, tasks = random.Random(2), Load(rate), []
    begun = at = time.perf_counter() + 0.05
    for job in jobs:
        await asyncio.sleep(max(at - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(ask(server, port, job, at, load)))
        if rate:
            at += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    load.took_s = time.perf_counter() - begun
    return load


async def ask(server: Server, port: int, job: Job, at: float, load: Load) -> None:
    """One streamed completion; its times go into `load`."""
    body = json.dumps({"model": "m", "prompt": job.prompt, "max_tokens": job.num_tokens, "stream": True,
                       "temperature": 0, "stream_options": {"include_usage": True}, **server.extra}).encode()
    load.num_sent += 1
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                     b"connection: close\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
        is_done = await read(reader, at, load)
        writer.close()
    except OSError:
        is_done = False
    load.num_done += is_done
    load.num_failed += not is_done


async def read(reader: asyncio.StreamReader, at: float, load: Load) -> bool:
    """Reads the events of one answer; whether it came to its end."""
    last = 0.0
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            if line.startswith(b"data: [DONE]"):
                return True
            continue
        now, event = time.perf_counter(), json.loads(line[6:])
        if usage := event.get("usage"):
            load.num_tokens += usage["completion_tokens"]
            load.num_prompt_tokens += usage["prompt_tokens"]
        if not any(choice.get("text") for choice in event.get("choices", ())):
            continue
        if last:
            load.gaps_s.append(now - last)
        else:
            load.first_s.append(now - at)
        last = now
    return False


def summary(load: Load) -> dict[str, float]:
    """The numbers of the table."""
    quantiles = {f"{name}_{key}_s": quantile(values, share)
                 for name, values in (("first", load.first_s), ("gap", load.gaps_s))
                 for key, share in QUANTILES.items()}
    return {"rate": load.rate, "requests": load.num_sent, "failed": load.num_failed, "per_s": load.done_per_s,
            "tokens_per_s": load.num_tokens / load.took_s,
            "all_tokens_per_s": (load.num_tokens + load.num_prompt_tokens) / load.took_s, **quantiles}


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


def show(args: argparse.Namespace, results: dict[str, list[Load]], slowest: float) -> None:
    print(f"{args.model.name}, {args.threads} threads, {args.parallel} answers at one time; {args.trace.name} x "
          f"{args.scale:g}; {machine()}\n")
    print("| requests/s | server | answered/s | answer tokens/s | tokens/s in all | first token p50 / p95 / p99, s | "
          "gap p50 / p95 / p99, ms | failed |\n|---|---|---|---|---|---|---|---|")
    rows = sorted(((load.rate or float("inf"), name, load) for name, loads in results.items() for load in loads),
                  key=lambda row: row[:2])
    for rate, name, load in rows:
        numbers = summary(load)
        what = "all at once" if rate == float("inf") else f"{rate:.3g}, {100 * rate / slowest:.0f} %"
        first, gap = ([numbers[f"{part}_{key}_s"] for key in QUANTILES] for part in ("first", "gap"))
        print(f"| {what} | {name} | {numbers['per_s']:.3g} | {numbers['tokens_per_s']:.4g} | "
              f"{numbers['all_tokens_per_s']:.4g} | {' / '.join(f'{value:.2f}' for value in first)} | "
              f"{' / '.join(f'{1e3 * value:.0f}' for value in gap)} | {numbers['failed']:g} |")
    print("\nPer cent are those of the slower server's saturation.")


if __name__ == "__main__":
    main()
