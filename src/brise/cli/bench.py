"""`brise bench`: measures the speed and memory of a model on this machine."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brise import __version__
from brise.cli import chat_options, memory_options, terminal
from brise.cli.command_parser import examples
from brise.errors import EvidenceError
from brise.evals.speculation_speed import SpeculationOptions, measure_speculation
from brise.evals.speed import Rate, SpeedOptions, SpeedReport, measure, median


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench", help="measure a model on this machine", allow_abbrev=False,
        description="Measure prefill, decode, several sequences at once, the time to the first token of a new process, "
                    "and memory. Reports medians; the last line on stdout is JSON.",
        epilog=examples("brise bench smollm2 --sequences 1,8 --threads 2",
                        "brise bench smollm2 --speculate held-out.jsonl --learn train.jsonl"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name from `brise models`, or the path of a .gguf file")
    parser.add_argument("--prompt", metavar="N", type=chat_options.count, default=512,
                        help="prompt length for prefill in tokens (default: 512)")
    parser.add_argument("--decode", metavar="N", type=chat_options.count, default=128,
                        help="tokens to decode (default: 128)")
    parser.add_argument("--depth", metavar="N", type=chat_options.count, default=32,
                        help="tokens in each sequence before decoding starts (default: 32)")
    parser.add_argument("--sequences", metavar="N,N", type=_counts, default=[1, 8],
                        help="how many sequences to decode at once, one measurement each (default: 1,8)")
    parser.add_argument("--threads", metavar="N", type=chat_options.count,
                        help="threads of the kernels (default: BRISE_THREADS, or one per core)")
    memory_options.add_device(parser)
    parser.add_argument("--runs", metavar="N", type=chat_options.count, default=5,
                        help="runs of each measurement; the median is reported (default: 5)")
    parser.add_argument("--json-only", action="store_true", help="print only the line of JSON")
    drafts = parser.add_argument_group("drafts", "With --speculate, speculation is measured instead: how many drafted "
                                                 "tokens are right, and how much sooner answers are written.")
    drafts.add_argument("--speculate", metavar="FILE", type=Path,
                        help="rows with prompts and answers, in the forms that `brise tune` reads")
    drafts.add_argument("--count", metavar="N", type=chat_options.count, default=40,
                        help="answers of the file that are written (default: 40)")
    drafts.add_argument("--answers", choices=("file", "model"), default="file",
                        help="file: write the answers in the file, whatever the model would say; model: let it answer "
                             "(default: file)")
    drafts.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter, and the table of n-grams in its folder")
    drafts.add_argument("--learn", metavar="FILE", type=Path,
                        help="rows to make the table of n-grams of, as `brise tune` does")
    drafts.add_argument("--schema", metavar="FILE", type=Path,
                        help="a JSON schema that the model's own answers follow")


def run(args: argparse.Namespace) -> int:
    if args.speculate is not None:
        return _speculate(args)
    report = measure(SpeedOptions(args.model, args.prompt, args.decode, args.depth, tuple(args.sequences), args.threads,
                                  args.runs, args.device), terminal.note)
    if not args.json_only:
        _print_table(report)
    terminal.result(json.dumps(report.document()))
    return 0


def _speculate(args: argparse.Namespace) -> int:
    try:
        schema = None if args.schema is None else args.schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError(f"cannot read {str(args.schema)!r}: {error}") from None
    report = measure_speculation(SpeculationOptions(
        args.model, args.speculate, args.count, args.answers, args.adapter, args.learn, schema, threads=args.threads,
        device=args.device),
        terminal.note)
    if not args.json_only:
        table = Table(title=f"{terminal.harmless(report.model)}, {report.answers} answers of "
                            f"{terminal.harmless(report.rows)}")
        for name in ("drafts", "tokens/s", "gain", "tokens a step", "drafted", "accepted"):
            table.add_column(name, justify="left" if name == "drafts" else "right")
        for speed in report.speeds:
            accepted = "" if speed.acceptance is None else f"{speed.acceptance:.0%}"
            table.add_row(speed.source, f"{speed.tokens_per_s:.1f}", f"{report.gain(speed):.2f} x",
                          f"{speed.tokens_per_step:.2f}", str(speed.drafted), accepted)
        Console(highlight=False).print(table)
    terminal.result(json.dumps(report.document()))
    return 0


def device_of(facts: Mapping[str, str | int]) -> str:
    """What the model ran on."""
    cpu = f"{facts['threads']} threads ({facts['isa']})"
    return f"{facts['device']}, {cpu} for the host's part" if "device" in facts else cpu


def _print_table(report: SpeedReport) -> None:
    options = report.options
    table = Table(title=f"{terminal.harmless(report.name)}, brise {__version__}, {report.machine}, "
                        f"{device_of(report.backend)}, median of {options.runs}")
    table.add_column("measurement")
    table.add_column("result", justify="right")
    table.add_column("slowest to fastest", justify="right")
    table.add_row(f"prefill, {options.prompt} tokens", *_cells(report.prefill))
    table.add_row(f"decode, {options.decode} tokens at depth {options.depth}", *_cells(report.decode))
    for number, rates in report.concurrent.items():
        if number > 1:
            ratio = median(rates) / median(report.decode)
            table.add_row(f"{number} sequences at once ({ratio:.1f} x one)", *_cells(rates))
    if report.starts:
        times = sorted(start.seconds for start in report.starts)
        table.add_row("process start to first token", f"{statistics.median(times):.2f} s",
                      f"{times[0]:.2f} to {times[-1]:.2f}")
        table.add_row("most memory, one short chat",
                      terminal.size(max(start.peak_bytes for start in report.starts)), "")
    table.add_row("most memory, this benchmark", terminal.size(report.peak_bytes), "")
    Console(highlight=False).print(table)


def _cells(rates: Sequence[Rate]) -> tuple[str, str]:
    values = sorted(rate.tokens_per_s for rate in rates)
    return f"{statistics.median(values):.1f} tokens/s", f"{values[0]:.1f} to {values[-1]:.1f}"


def _counts(text: str) -> list[int]:
    return [chat_options.count(part) for part in text.split(",")]
