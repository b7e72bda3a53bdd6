"""`brise parity`: checks that the served model predicts what the trained model predicts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.cli import chat_options, data_options, memory_options, number_types, terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.progress_bar import TerminalWatcher
from brise.quant.quality import QuantQuality
from brise.tune.parity import run as run_parity
from brise.tune.parity import run_endpoint
from brise.tune.parity.endpoint import EndpointReport
from brise.tune.parity.options import ParityOptions
from brise.tune.parity.parity import ParityReport, Tolerance


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    limits = Tolerance()
    parser = subparsers.add_parser(
        "parity", help="compare what is served with what was trained", allow_abbrev=False,
        description="Replay held-out rows, prompt and answer, through the trained model and through the served one, "
                    "and compare tokens and predictions within a tolerance: is what is served what was trained? `brise "
                    "tune` does this at its end. Beyond the tolerance, the exit status is 1, and the layer where they "
                    "diverge is named. Give the data options of `brise tune`, so that the same rows are held out. "
                    "docs/guides/tune.md#parity says how it is measured.",
        epilog=examples("brise parity smollm2 --adapter tickets-smollm2/adapter --data tickets.jsonl",
                        "brise parity smollm2 --adapter tickets-smollm2/adapter --data tickets.jsonl --served "
                        "./merged.gguf --rows 100",
                        "brise parity smollm2 --adapter tickets-smollm2/adapter --data tickets.jsonl --endpoint "
                        "http://127.0.0.1:8000/v1 --name tickets"))
    parser.add_argument("model", metavar="MODEL",
                        help="the base: a name that `brise models` lists, a .gguf file, or a folder")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, required=True,
                        help="the adapter that was trained, in PEFT's layout")
    parser.add_argument("--any-base", action="store_true",
                        help="accept an adapter whose lineage names another model")
    parser.add_argument("--data", metavar="DATA", type=Path, action="append", required=True,
                        help="files or folders of examples, as for brise tune; may be repeated")
    parser.add_argument("--served", metavar="MODEL",
                        help="a model that the adapter was merged into (brise export --merge), in place of the base "
                             "with the adapter")
    parser.add_argument("--endpoint", metavar="URL",
                        help="a server with OpenAI's API that serves the trained model, such as vLLM or llama.cpp at "
                             "http://127.0.0.1:8000/v1, in place of brise's own engine; the KL is a lower bound")
    parser.add_argument("--name", metavar="NAME",
                        help="the model at the endpoint: the adapter's name, where it has one (default: the only one)")
    parser.add_argument("--key-env", metavar="VARIABLE",
                        help="the environment variable that holds the endpoint's API key")
    parser.add_argument("--max-tokens", metavar="N", type=chat_options.count, default=ParityOptions.max_tokens,
                        help="tokens of an answer of the endpoint that are compared, at most (default: "
                             f"{ParityOptions.max_tokens})")
    parser.add_argument("--rows", metavar="N", type=chat_options.count, default=ParityOptions.max_rows,
                        help=f"largest number of held-out rows to replay (default: {ParityOptions.max_rows})")
    parser.add_argument("--max-mean-kl", metavar="NATS", type=data_options.number(0.0), default=limits.max_mean_kl,
                        help=f"largest mean KL divergence a token (default: {limits.max_mean_kl:g})")
    parser.add_argument("--min-agreement", metavar="SHARE", type=number_types.share,
                        default=limits.min_agreement,
                        help="least share of tokens whose most likely token is the same in both (default: "
                             f"{limits.min_agreement:g})")
    parser.add_argument("--max-times-base", metavar="TIMES", type=data_options.number(0.0),
                        default=limits.max_times_base,
                        help="largest mean KL as a multiple of that of the base alone; not used with --served "
                             f"(default: {limits.max_times_base:g})")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads (default: BRISE_THREADS, or one a core)")
    memory_options.add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the report as a JSON object")
    parser.add_argument("--seed", metavar="N", type=data_options.seed, default=0,
                        help="seed of the split: that of the run (default: 0)")
    data_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    options, watcher = _options(args), TerminalWatcher()
    report: ParityReport | EndpointReport
    report = run_parity(options, watcher) if options.endpoint is None else run_endpoint(options, watcher)
    if args.json:
        terminal.result(json.dumps(report.as_json(), indent=1))
    elif isinstance(report, EndpointReport):
        show_endpoint(report)
    else:
        show(report)
    return 0 if report.passed else 1


def _options(args: argparse.Namespace) -> ParityOptions:
    return fill(ParityOptions, args, {
        "max_rows": args.rows, "rows": data_options.rows_of(args),
        "tolerance": Tolerance(args.max_mean_kl, args.min_agreement, args.max_times_base)})


def show(report: ParityReport) -> None:
    """The report as a table."""
    table = Table(title=f"parity: {'passed' if report.passed else 'FAILED'}", title_justify="left")
    table.add_column("")
    table.add_column("trained and served", justify="right")
    limits, quality, base = report.tolerance, report.quality, report.base
    if base is not None:
        table.add_column("without the adapter", justify="right")
    columns = [_cells(each) for each in (quality, base) if each is not None]
    names = (f"mean KL (at most {limits.max_mean_kl:g})", "largest KL",
             f"same most likely token (at least {limits.min_agreement:.0%})", "perplexity: trained, served")
    for cells in zip(names, *columns, strict=True):
        table.add_row(*cells)
    table.add_row("tokens of answers", str(quality.num_tokens))
    table.add_row("conversations with the same tokens",
                  f"{report.num_templates - len(report.template_faults)} of {report.num_templates}")
    Console(width=100).print(table)
    for failure in report.failures:
        terminal.result(f"- {failure}")
    if report.where is not None:
        terminal.result(report.where)


def show_endpoint(report: EndpointReport) -> None:
    """The report of a server as two tables: what the limits judge, and each prompt."""
    limits, quality = report.tolerance, report.quality
    verdict = "passed" if report.passed else "FAILED"
    table = Table(title=Text(f"parity of {terminal.harmless(report.model)} at {report.url}: {verdict}"),
                  title_justify="left")
    table.add_column("")
    table.add_column("trained and served", justify="right")
    if quality is not None:
        names = (f"mean KL, at least (at most {limits.max_mean_kl:g})", "largest KL, at least",
                 f"same most likely token (at least {limits.min_agreement:.0%})", "perplexity: trained, served")
        for cells in zip(names, _cells(quality), strict=True):
            table.add_row(*cells)
        if report.base_kl is not None:
            table.add_row("mean KL from the base without the adapter", f"{report.base_kl:.5f}")
        table.add_row("tokens of answers", str(quality.num_tokens))
    for words in ("same", "same number", "other", "unknown"):
        count = sum(prompt.tokens == words for prompt in report.prompts)
        if count:
            table.add_row(f"prompts with {words} tokens" if words != "same number" else "prompts with as many tokens",
                          f"{count} of {len(report.prompts)}")
    console = Console(width=100)
    console.print(table)
    _show_prompts(console, report)
    for failure in report.failures:
        terminal.result(f"- {failure}")
    if report.where is not None:
        terminal.result(report.where)


def _show_prompts(console: Console, report: EndpointReport) -> None:
    """The prompts of which there is something to say."""
    notes = Table("conversation", "tokens", "mean KL", "agree", "", title="not the same, or not compared",
                  title_justify="left")
    for prompt in report.prompts:
        if prompt.note is not None:
            kl, agreement = prompt.kl, prompt.agreement
            notes.add_row(prompt.place, str(prompt.compared), "" if kl is None else f"{kl:.5f}",
                          "" if agreement is None else f"{agreement:.1%}", Text(terminal.harmless(prompt.note)))
    if notes.row_count:
        console.print(notes)


def _cells(quality: QuantQuality) -> list[str]:
    error = "" if quality.kl_error is None else f" ± {quality.kl_error:.5f}"
    return [f"{quality.kl_mean:.5f}{error}", f"{quality.kl_max:.4f}", f"{quality.top1_agreement:.2%}",
            f"{quality.perplexity_original:.4f}, {quality.perplexity_quantised:.4f}"]
