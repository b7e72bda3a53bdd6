"""`brise eval`: measures the quality of a model's answers on your data, with intervals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.cli import chat_options, number_types, terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.progress_bar import TerminalWatcher
from brise.data.read_rows import Columns
from brise.evals import scorers
from brise.evals.evaluate import evaluate
from brise.evals.options import EvalOptions

MOST_FIELDS = 10
# Figures that are not shares of 1 are shown as they are.
PLAIN = frozenset({"perplexity", "nll_per_answer", "tokens_per_answer"})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "eval", help="measure a model's answers on your data", allow_abbrev=False,
        description="Ask a model to answer the prompts of your data, compare its answers with those in the data, and "
                    "print figures with 95 % intervals: a model on this machine, any endpoint with OpenAI's API, or a "
                    "baseline that is not a language model. Sampling is greedy. docs/guides/eval.md defines the scores "
                    "and the intervals.",
        epilog=examples("brise eval valid.jsonl --model smollm2 --out answers.jsonl",
                        "brise eval valid.jsonl --model smollm2 --adapter ./calls --against answers.jsonl",
                        "brise eval valid.jsonl --endpoint https://api.example.com/v1 --name big --key-env API_KEY "
                        "--out big.jsonl",
                        "brise eval train.jsonl --held-out-share 0.1 --baseline tfidf --train train.jsonl"))
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path,
                        help="files or folders of examples: JSON lines with messages, or with prompt and completion; "
                             "CSV with these columns")
    _add_systems(parser)
    _add_data(parser)
    _add_scoring(parser)


def run(args: argparse.Namespace) -> int:
    absorb: bool | str = False if args.absorb_system is None else args.absorb_system or True
    columns = Columns(args.prompt_column, args.completion_column, args.system_column)
    options = fill(EvalOptions, args, {"absorb_system": absorb, "columns": columns})
    document = evaluate(options, TerminalWatcher()).document
    if args.json:
        terminal.result(json.dumps(document, indent=2))
    else:
        show(document)
    return 0


def _add_systems(parser: argparse.ArgumentParser) -> None:
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", metavar="MODEL",
                     help="the model that answers: a name that `brise models` lists, a .gguf file, or a folder")
    who.add_argument("--endpoint", metavar="URL",
                     help="or a server with OpenAI's API, such as http://127.0.0.1:8080/v1")
    who.add_argument("--baseline", choices=("majority", "tfidf"),
                     help="or no model: majority, the most frequent answer of --train; or tfidf, TF-IDF with a linear "
                          "model (for tasks other than classification, the answer to the most similar prompt), which "
                          "needs the extra eval")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter to put on the model, as `brise tune` and PEFT write them")
    parser.add_argument("--any-base", action="store_true",
                        help="accept an adapter whose lineage names another model")
    parser.add_argument("--name", metavar="NAME", help="the model at the endpoint")
    parser.add_argument("--key-env", metavar="VARIABLE",
                        help="the environment variable that holds the endpoint's API key")
    parser.add_argument("--timeout", metavar="SECONDS", type=number_types.seconds, default=EvalOptions.timeout,
                        help=f"how long the endpoint may take for an answer (default: {EvalOptions.timeout:g})")
    parser.add_argument("--train", metavar="FILE", action="append", type=Path,
                        help="training data of a baseline; may be repeated. Conversations that are evaluated are left "
                             "out")
    parser.add_argument("--max-tokens", metavar="N", type=chat_options.count, default=EvalOptions.max_tokens,
                        help=f"longest answer in tokens (default: {EvalOptions.max_tokens})")
    parser.add_argument("--json-schema", metavar="FILE", type=Path, help="answers must follow this JSON schema")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=EvalOptions.parallel,
                        help=f"examples in progress at a time (default: {EvalOptions.parallel})")
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="tokens of a prompt and its answer (default: what the longest example needs)")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("rows", "bfcl"), default="rows",
                        help="bfcl: files of the Berkeley function-calling leaderboard, with the folder "
                             "possible_answer beside them (default: rows)")
    parser.add_argument("--turns", choices=("last", "all"), default="last",
                        help="which answers of a conversation are asked for (default: last)")
    parser.add_argument("--conversation", metavar="FIELD", action="append",
                        help="field that identifies a conversation, such as meta.seed; may be repeated")
    parser.add_argument("--held-out-share", metavar="SHARE", type=number_types.some,
                        help="only the conversations that `brise tune` holds out of DATA with this share")
    parser.add_argument("--split-seed", metavar="N", type=int, default=0,
                        help="the seed of that run (default: 0)")
    parser.add_argument("--sample", metavar="N", type=chat_options.count,
                        help="only N examples, always the same ones: they are chosen by their digests")
    parser.add_argument("--absorb-system", metavar="TEXT", nargs="?", const="",
                        help="leave out the rows' system prompts, or put TEXT in their place")
    parser.add_argument("--prompt-column", metavar="NAME", default="prompt",
                        help="prompt column of a CSV (default: prompt)")
    parser.add_argument("--completion-column", metavar="NAME", default="completion",
                        help="completion column of a CSV (default: completion)")
    parser.add_argument("--system-column", metavar="NAME", help="system prompt column of a CSV (default: none)")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    names = tuple(scorers.built_in(()))
    parser.add_argument("--score", choices=names, metavar="NAME",
                        help=f"how answers are compared: {', '.join(names)} (default: by the rows' meta.task)")
    parser.add_argument("--scorer", metavar="FILE.py:FUNCTION",
                        help="score with your own function of (example, answer); its file is executed")
    parser.add_argument("--labels", metavar="FILE", type=Path,
                        help="JSON list of a classification's labels (default: those of the reference answers)")
    parser.add_argument("--out", metavar="FILE", type=Path,
                        help="keep every answer in this file; the same command continues an interrupted run")
    parser.add_argument("--against", metavar="FILE", type=Path,
                        help="compare with the answers of another run, on the examples of both")
    parser.add_argument("--seed", metavar="N", type=_seed, default=0,
                        help="seed of the intervals' resampling (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 on is allowed")
    return int(text[:18])


def show(report: Mapping[str, Any]) -> None:
    """Figures with intervals, beside those of another system if there is one; then notes on how to read them."""
    console, against = Console(width=110, highlight=False), report["against"]
    title = f"{report['system']}: {report['examples']} examples, {report['conversations']} conversations"
    console.print(Text(terminal.harmless(title), style="bold"))
    table = Table()
    table.add_column("figure")
    table.add_column("estimate", justify="right")
    table.add_column("95 % interval", justify="right")
    if against is not None:
        table.add_column(Text(f"{against['system']}"), justify="right")
        table.add_column("difference", justify="right")
        table.add_column("95 % interval", justify="right")
    for name, figure in report["figures"].items():
        table.add_row(name, *_cells(name, figure), *_difference(name, against))
    console.print(table)
    if report["fields"]:
        console.print(_fields(report["fields"]))
    for line in _notes(report, against):
        console.print(Text(line), soft_wrap=True)


def _fields(fields: Sequence[Mapping[str, Any]]) -> Table:
    """The fields that occur most often in references."""
    table = Table()
    table.add_column(Text(f"field, {min(len(fields), MOST_FIELDS)} of {len(fields)}"))
    for name in ("in references", "in answers", "right", "F1"):
        table.add_column(name, justify="right")
    for field in fields[:MOST_FIELDS]:
        table.add_row(Text(terminal.harmless(field["name"])), str(field["wanted"]), str(field["given"]),
                      str(field["right"]), _value("f1", field["f1"]))
    return table


def _difference(name: str, against: Mapping[str, Any] | None) -> tuple[str, ...]:
    if against is None:
        return ()
    figure = against["figures"].get(name)
    if figure is None:
        return "", "", ""
    return (_value(name, figure["other"]), *_cells(name, figure["difference"], signed=True))


def _cells(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> tuple[str, str]:
    low, high = figure["low"], figure["high"]
    interval = figure["interval"] if low is None else f"{_value(name, low, signed)} to {_value(name, high, signed)}"
    return _value(name, figure["estimate"], signed), interval


def _value(name: str, value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if name in PLAIN:
        return f"{value:{sign}.3f}"
    return f"{100 * value:{sign}.1f} %" if -1 <= value <= 1 else f"{value:{sign}.4g}"


def _notes(report: Mapping[str, Any], against: Mapping[str, Any] | None) -> list[str]:
    figures = [*report["figures"].values()]
    if against is not None:
        figures += [figure["difference"] for figure in against["figures"].values()]
    methods = sorted({figure["interval"] for figure in figures if figure["low"] is not None})
    lines = [f"score: {report['score']} ({report['chosen']}): {report['definition']}", f"labels: {report['labels']}",
             f"intervals: {'; '.join(methods) or 'none'}"]
    if against is not None:
        lines.append(f"compared on {against['examples']} examples that both answered")
    if report["errors"]["number"]:
        counted = "are left out" if report["score"] == "perplexity" else "count as wrong"
        lines.append(f"{report['errors']['number']} examples got no answer and {counted}:")
        lines += [f"  {item['times']} x {item['reason']}" for item in report["errors"]["reasons"]]
    if report["cut"]:
        lines.append(f"{report['cut']} answers were cut by --max-tokens")
    if report["confusions"]:
        lines.append("most frequent mistakes (reference: answer):")
        lines += [f"  {item['times']} x {item['reference']}: {item['answer']!r}" for item in report["confusions"]]
    if report["kept"]:
        lines.append(f"{report['kept']} answers are from an earlier run")
    if report["asked"]:
        lines.append(f"time: {report['seconds']:.1f} s for {report['asked']} answers")
    return lines
