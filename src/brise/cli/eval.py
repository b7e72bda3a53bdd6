"""`brise eval`: how good a model's answers are on your data, with intervals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise import settings
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.cli import eval_options, progress_bar, terminal
from brise.engine.model import LoadedModel, load
from brise.errors import EvidenceError, RequestError
from brise.evals import answers_file, baseline, classify, custom, data, report, scorers
from brise.evals.answerer import Answerer, AnswerSettings
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import EvalExample
from brise.evals.local import LocalAnswerer, OnTop
from brise.evals.report import Judged
from brise.evals.run import Answered, answer_all
from brise.files.digests import file_digest
from brise.hub.store import ModelStore, locate


@dataclass(frozen=True)
class Local:
    """A loaded model, the digest of all that makes its answers, and an adapter of it."""

    model: LoadedModel
    digest: str
    adapter: OnTop | None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "eval", help="measure a model's answers on your data", allow_abbrev=False,
        description="Ask a model the questions of your data, compare its answers with those in the data, and print "
                    "figures with 95 % intervals. Sampling is greedy.",
        epilog="example: brise eval valid.jsonl --model smollm2 --out answers.jsonl")
    eval_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    eval_options.check(args)
    local = None if args.model is None else load_local(args.model, args.adapter, any_base=args.any_base,
                                                       threads=args.threads)
    vision = None if local is None else local.model.vision
    reading = eval_options.reading_of(args, None if vision is None else vision.settings)
    examples = sample(data.read(args.data, reading), args.sample)
    judged = _judged(args, examples)
    # What cannot be compared shows on the references themselves, before an hour of asking.
    rehearsed = examples[:1] if args.scorer is not None else examples
    judged.scorer.measures(rehearsed, [example.reference for example in rehearsed])
    other = None if args.against is None else answers_file.read(args.against)
    asked = AnswerSettings(args.max_tokens, _schema(args.json_schema), judged.scorer.name == "perplexity",
                           reading.absorb_system)
    if local is not None:
        answerer: Answerer = LocalAnswerer(local.model, asked, local.digest, parallel=args.parallel,
                                           context=args.context, adapter=local.adapter)
    elif args.endpoint is not None:
        answerer = _endpoint(args, asked)
    else:
        answerer = _baseline(args, reading, examples, judged)
    answered = _answered(answerer, examples, args.out)
    document = report.document(answerer.name, examples, answered, judged)
    document["against"] = None if other is None else report.compared(examples, answered.answers, other, judged)
    if args.json:
        terminal.result(json.dumps(document, indent=2))
    else:
        show(document)
    return 0


def sample(examples: Sequence[EvalExample], number: int | None) -> Sequence[EvalExample]:
    """`number` of them in their order; the lowest digests are as good as a draw, and the same in every run."""
    if number is None or number >= len(examples):
        return examples
    chosen = sorted(range(len(examples)), key=lambda at: (examples[at].digest, at))[:number]
    return [examples[at] for at in sorted(chosen)]


def _answered(answerer: Answerer, examples: Sequence[EvalExample], out: Path | None) -> Answered:
    try:
        with progress_bar.bar(f"asking {answerer.name}", len({example.digest for example in examples}),
                              "examples") as advance:
            return answer_all(answerer, examples, out, advance)
    except KeyboardInterrupt:
        terminal.note(f"stopped; {out} has the answers so far, and the same command goes on from there" if out else
                      "stopped; nothing is kept. With --out FILE the next run could go on from here")
        raise


def load_local(name: str, adapter: Path | None, *, any_base: bool, threads: int | None) -> Local:
    """A model of this machine and its adapter; UnsupportedError if that was trained on another one."""
    settings_ = settings.read()
    located = locate(name, ModelStore(settings_.home))
    if adapter is not None:
        lineage.check_base(lineage.read_lineage(adapter), located, any_base=any_base)
    terminal.note(f"loading {located.name} from {located.path}")
    model = load(located.path, threads=threads or settings_.threads, name=located.name, digest=located.digest)
    digest = lineage.base_digest(located)
    if adapter is None:
        return Local(model, digest, None)
    # Its base was looked at above, before the model was loaded.
    return Local(model, f"{digest} + {file_digest(adapter / WEIGHTS_FILE)}", OnTop(adapter, any_base=True))


def _endpoint(args: argparse.Namespace, asked: AnswerSettings) -> Answerer:
    key = None if args.key_env is None else settings.secret(args.key_env)
    return EndpointAnswerer(Endpoint(args.endpoint, args.name, key, args.timeout), asked, parallel=args.parallel)


def _baseline(args: argparse.Namespace, reading: data.Reading, examples: Sequence[EvalExample],
              judged: Judged) -> Answerer:
    if judged.scorer.name == "perplexity":
        raise EvidenceError("a baseline has no perplexity: it gives answers, no probabilities")
    rows = data.read(args.train, data.Reading(reading.turns, reading.rules, reading.columns,
                                              absorb_system=reading.absorb_system))
    train = baseline.without(rows, examples)
    if len(train) < len(rows):
        terminal.note(f"{len(rows) - len(train)} of {len(rows)} rows of --train are of conversations that are "
                      "evaluated, and are left out")
    return baseline.BaselineAnswerer(args.baseline, train, classifies=judged.scorer.name == "class")


def _judged(args: argparse.Namespace, examples: Sequence[EvalExample]) -> Judged:
    """The scorer that was asked for, or the one for these rows."""
    if args.scorer is not None:
        return Judged(custom.load(args.scorer), "--scorer", args.seed)
    name, why = (args.score, "--score") if args.score is not None else scorers.pick(examples)
    if args.labels is not None and name != "class":
        raise EvidenceError(f"--labels goes with --score class, here answers are scored by {name} ({why})")
    labels = classify.labels_of(examples) if args.labels is None else _labels(args.labels)
    return Judged(scorers.built_in(labels)[name], why, args.seed)


def _labels(path: Path) -> tuple[str, ...]:
    found = json.loads(_json_text(path))
    if not isinstance(found, list) or not found or not all(isinstance(label, str) for label in found):
        raise EvidenceError(f"{str(path)!r} must be a JSON list of labels")
    return tuple(found)


def _schema(path: Path | None) -> str | None:
    return None if path is None else _json_text(path)


def _json_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except OSError as error:
        raise RequestError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{str(path)!r} is no JSON: {error}") from None
    return text


MOST_FIELDS = 10
# Figures that are no shares of 1: shown as they are.
PLAIN = frozenset({"perplexity", "nll_per_answer", "tokens_per_answer"})


def show(report: Mapping[str, Any]) -> None:
    """Figures with intervals, beside another system's where there is one; then what one must know to read them."""
    console, against = Console(width=110, highlight=False), report["against"]
    console.print(Text(f"{report['system']}: {report['examples']} examples, {report['conversations']} conversations",
                       style="bold"))
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
    """The fields that references have most often."""
    table = Table()
    table.add_column(Text(f"field, {min(len(fields), MOST_FIELDS)} of {len(fields)}"))
    for name in ("in references", "in answers", "right", "F1"):
        table.add_column(name, justify="right")
    for field in fields[:MOST_FIELDS]:
        table.add_row(Text(field["name"]), str(field["wanted"]), str(field["given"]), str(field["right"]),
                      _value("f1", field["f1"]))
    return table


def _difference(name: str, against: Mapping[str, Any] | None) -> tuple[str, ...]:
    if against is None:
        return ()
    found = against["figures"].get(name)
    if found is None:
        return "", "", ""
    return (_value(name, found["other"]), *_cells(name, found["difference"], signed=True))


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
