"""`brise eval`: how good a model's answers are on your data, with intervals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brise import settings
from brise.checkpoint import lineage
from brise.checkpoint.adapters import WEIGHTS_FILE
from brise.checkpoint.store import Store, file_digest, locate
from brise.cli import eval_options, eval_report, progress_bar, terminal
from brise.engine.model import LoadedModel, load
from brise.errors import EvidenceError, RequestError
from brise.evals import answers_file, baseline, classify, custom, data, report, scorers
from brise.evals.answerer import Answerer, Asked
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import Example
from brise.evals.local import LocalAnswerer, OnTop
from brise.evals.report import Judged
from brise.evals.run import Answered, answer_all


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
    asked = Asked(args.max_tokens, _schema(args.json_schema), judged.scorer.name == "perplexity", reading.absorb_system)
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
        eval_report.show(document)
    return 0


def sample(examples: Sequence[Example], number: int | None) -> Sequence[Example]:
    """`number` of them in their order; the lowest digests are as good as a draw, and the same in every run."""
    if number is None or number >= len(examples):
        return examples
    chosen = sorted(range(len(examples)), key=lambda at: (examples[at].digest, at))[:number]
    return [examples[at] for at in sorted(chosen)]


def _answered(answerer: Answerer, examples: Sequence[Example], out: Path | None) -> Answered:
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
    located = locate(name, Store(settings_.home))
    if adapter is not None:
        lineage.check_base(lineage.read_lineage(adapter), located, any_base=any_base)
    terminal.note(f"loading {located.name} from {located.path}")
    model = load(located.path, threads=threads or settings_.threads, name=located.name, digest=located.digest)
    digest = lineage.base_digest(located)
    if adapter is None:
        return Local(model, digest, None)
    # Its base was looked at above, before the model was loaded.
    return Local(model, f"{digest} + {file_digest(adapter / WEIGHTS_FILE)}", OnTop(adapter, any_base=True))


def _endpoint(args: argparse.Namespace, asked: Asked) -> Answerer:
    key = None if args.key_env is None else settings.secret(args.key_env)
    return EndpointAnswerer(Endpoint(args.endpoint, args.name, key, args.timeout), asked, parallel=args.parallel)


def _baseline(args: argparse.Namespace, reading: data.Reading, examples: Sequence[Example],
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


def _judged(args: argparse.Namespace, examples: Sequence[Example]) -> Judged:
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
