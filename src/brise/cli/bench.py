"""`brise bench`: how fast a model runs on this machine, and what it takes."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brise import __version__, settings
from brise.checkpoint.model_files import find_layout
from brise.cli import chat_options, terminal
from brise.cli.bench_runs import BenchEngine, Rate, Start, cold_start, peak_bytes, repeat
from brise.engine.model import LoadedModel, load
from brise.errors import ContextLengthError
from brise.files.digests import Located
from brise.hub.store import ModelStore, locate
from brise.models.ops import Backend


@dataclass(frozen=True)
class Results:
    """All runs of each measurement; `concurrent` by number of sequences."""

    prefill: list[Rate]
    decode: list[Rate]
    concurrent: dict[int, list[Rate]]
    starts: list[Start]  # empty: the model has no chat template


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench", help="measure a model on this machine", allow_abbrev=False,
        description="Measure prefill, decode, several sequences at once, the time to the first token of a "
                    "fresh process, and memory. Medians; the last line on stdout is JSON.",
        epilog="example: brise bench smollm2 --sequences 1,8 --threads 2")
    parser.add_argument("model", metavar="MODEL",
                        help="a name that `brise models` lists, or the path of a .gguf file")
    parser.add_argument("--prompt", metavar="N", type=chat_options.count, default=512,
                        help="tokens of the prompt for prefill (default: 512)")
    parser.add_argument("--decode", metavar="N", type=chat_options.count, default=128,
                        help="tokens to decode (default: 128)")
    parser.add_argument("--depth", metavar="N", type=chat_options.count, default=32,
                        help="tokens in each sequence before decoding starts (default: 32)")
    parser.add_argument("--sequences", metavar="N,N", type=_counts, default=[1, 8],
                        help="how many sequences to decode at once, one measurement each (default: 1,8)")
    parser.add_argument("--threads", metavar="N", type=chat_options.count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--runs", metavar="N", type=chat_options.count, default=5,
                        help="runs of each measurement, of which the median counts (default: 5)")
    parser.add_argument("--json-only", action="store_true", help="print the line of JSON alone")


def run(args: argparse.Namespace) -> int:
    settings_ = settings.read()
    threads = args.threads or settings_.threads
    located = locate(args.model, ModelStore(settings_.home))
    terminal.note(f"loading {located.name} from {located.path}")
    model = load(located.path, threads=threads)
    results = _measure(args, model, located.path, threads)
    report = _report(args, model.backend, located, results)
    if not args.json_only:
        _print_table(args, report, results)
    terminal.result(json.dumps(report))
    return 0


def _measure(args: argparse.Namespace, model: LoadedModel, path: Path, threads: int | None) -> Results:
    longest = max(args.prompt + 1, args.depth + args.decode + 1)
    if longest > model.config.max_context:
        raise ContextLengthError(max(args.prompt, args.depth), longest - max(args.prompt, args.depth),
                                 model.config.max_context)
    starts: list[Start] = []
    if model.chat is not None:
        terminal.note(f"cold start: {args.runs} processes")
        starts = [cold_start(path, threads) for _ in range(args.runs + 1)][1:]
    subject = BenchEngine(model, max(args.sequences), longest)
    terminal.note(f"prefill of {args.prompt} tokens")
    prefill = repeat(args.runs, lambda: subject.prefill(args.prompt))

    def decode(num_sequences: int) -> list[Rate]:
        terminal.note(f"decode of {args.decode} tokens, sequences: {num_sequences}")
        return repeat(args.runs, lambda: subject.decode(num_sequences, args.depth, args.decode))

    one = decode(1)
    concurrent = {number: one if number == 1 else decode(number) for number in args.sequences}
    return Results(prefill, one, concurrent, starts)


def _report(args: argparse.Namespace, backend: Backend, located: Located,
            results: Results) -> dict[str, object]:
    """What goes into the JSON line; rates in tokens per second."""
    return {
        "model": located.name, "brise": __version__,
        "file_bytes": sum(file.stat().st_size for file in find_layout(located.path).files),
        **backend.facts(), "machine": _machine(),
        "runs": args.runs, "prompt": args.prompt, "decode": args.decode, "depth": args.depth,
        "prefill_tokens_per_s": _median(results.prefill), "prefill_runs": _rounded(results.prefill),
        "decode_tokens_per_s": _median(results.decode), "decode_runs": _rounded(results.decode),
        "concurrent_tokens_per_s": {str(n): _median(rates) for n, rates in results.concurrent.items()},
        "concurrent_runs": {str(n): _rounded(rates) for n, rates in results.concurrent.items()},
        "cold_start_s": _middle([start.seconds for start in results.starts]),
        "cold_start_runs": [round(start.seconds, 4) for start in results.starts],
        "chat_peak_bytes": max((start.peak_bytes for start in results.starts), default=None),
        "bench_peak_bytes": peak_bytes(),
    }


def _print_table(args: argparse.Namespace, report: dict[str, object], results: Results) -> None:
    table = Table(title=f"{report['model']}, brise {__version__}, {report['machine']}, "
                        f"{report['threads']} threads ({report['isa']}), median of {args.runs}")
    table.add_column("measurement")
    table.add_column("result", justify="right")
    table.add_column("slowest to fastest", justify="right")
    table.add_row(f"prefill, {args.prompt} tokens", *_cells(results.prefill))
    table.add_row(f"decode, {args.decode} tokens at depth {args.depth}", *_cells(results.decode))
    for number, rates in results.concurrent.items():
        if number > 1:
            ratio = _median(rates) / _median(results.decode)
            table.add_row(f"{number} sequences at once ({ratio:.1f} x one)", *_cells(rates))
    if results.starts:
        times = sorted(start.seconds for start in results.starts)
        table.add_row("process start to first token", f"{statistics.median(times):.2f} s",
                      f"{times[0]:.2f} to {times[-1]:.2f}")
        table.add_row("most memory, one short chat",
                      terminal.size(max(start.peak_bytes for start in results.starts)), "")
    table.add_row("most memory, this benchmark", terminal.size(peak_bytes()), "")
    Console(highlight=False).print(table)


def _cells(rates: Sequence[Rate]) -> tuple[str, str]:
    values = sorted(rate.tokens_per_s for rate in rates)
    return f"{statistics.median(values):.1f} tokens/s", f"{values[0]:.1f} to {values[-1]:.1f}"


def _median(rates: Sequence[Rate]) -> float:
    return round(statistics.median(rate.tokens_per_s for rate in rates), 2)


def _middle(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _rounded(rates: Sequence[Rate]) -> list[float]:
    return [round(rate.tokens_per_s, 2) for rate in rates]


def _machine() -> str:
    """The processor's own name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.is_file() else []
    return f"{names[0] if names else platform.machine()}, {len(names) or 'some'} CPUs"


def _counts(text: str) -> list[int]:
    return [chat_options.count(part) for part in text.split(",")]
