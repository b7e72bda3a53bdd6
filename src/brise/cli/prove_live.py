"""Pairs that are made now: two models answer the questions of a data file, and the answers are kept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from brise import settings
from brise.cli import chat_options, eval_options, progress_bar, terminal
from brise.cli.eval import load_local
from brise.cli.prove_sources import PairSource
from brise.data.parse_row import RowRules
from brise.dialects.bodies import context_digest
from brise.errors import EvidenceError
from brise.evals import data, report
from brise.evals.answerer import Answerer, AnswerSettings
from brise.evals.data import Reading
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.local import LocalAnswerer
from brise.evals.run import answer_all
from brise.files.digests import StoredFile, file_digest, list_digest
from brise.prove.pairs import NO_CONTEXT, ModelAnswer, Pair
from brise.prove.time_window import choose

NEEDED = (("teacher", "teacher_name"), ("endpoint", "name"))
ONLY_LIVE = ("endpoint", "name", "key_env", "teacher", "teacher_name", "teacher_key_env", "reask", "answers",
             "conversation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The data, who answers, and where the answers are kept."""
    parser.add_argument("data", metavar="DATA", nargs="*", type=Path,
                        help="or let both models answer now: files or folders of examples, as `brise eval` reads them")
    parser.add_argument("--endpoint", metavar="URL",
                        help="with DATA: the small model is at this server with OpenAI's API (or it is --model)")
    parser.add_argument("--name", metavar="NAME", help="the small model at --endpoint")
    parser.add_argument("--key-env", metavar="VARIABLE",
                        help="the environment variable that holds the key of --endpoint")
    parser.add_argument("--teacher", metavar="URL", help="with DATA: the server with OpenAI's API of the large model")
    parser.add_argument("--teacher-name", metavar="NAME", help="the large model there")
    parser.add_argument("--teacher-key-env", metavar="VARIABLE",
                        help="the environment variable that holds the key of --teacher")
    parser.add_argument("--reask", action="store_true",
                        help="ask the large model everything twice, to see how far it agrees with itself")
    parser.add_argument("--answers", metavar="FOLDER", type=Path,
                        help="keep the answers there; the same command goes on where it was broken off")
    parser.add_argument("--conversation", metavar="FIELD", action="append",
                        help="with DATA: field that tells conversations apart, such as meta.seed; may be given several "
                             "times")
    parser.add_argument("--max-tokens", metavar="N", type=chat_options.count, default=eval_options.MAX_TOKENS,
                        help=f"with DATA: longest answer in tokens (default: {eval_options.MAX_TOKENS})")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=eval_options.PARALLEL,
                        help=f"with DATA: examples that are asked at one time (default: {eval_options.PARALLEL})")


def check(args: argparse.Namespace) -> None:
    """EvidenceError if DATA lacks somebody to answer, or if somebody lacks DATA."""
    if args.data:
        _check_live(args)
        return
    for name in ONLY_LIVE:
        if vars(args)[name] not in (None, False):
            raise EvidenceError(f"--{name.replace('_', '-')} goes with DATA, which both models are asked now")


def _check_live(args: argparse.Namespace) -> None:
    for name in ("pairs", "judgements", "since", "until", "student", "unit"):
        if vars(args)[name] is not None:
            raise EvidenceError(f"--{name} and DATA are both given, one is allowed")
    if (args.model is None) == (args.endpoint is None):
        raise EvidenceError("with DATA the small model is either --model or --endpoint")
    if args.teacher is None:
        raise EvidenceError("with DATA the large model is needed: --teacher URL --teacher-name NAME")
    for needs, name in NEEDED:
        if vars(args)[needs] is not None and vars(args)[name] is None:
            raise EvidenceError(f"--{needs} needs --{name.replace('_', '-')}")


def find(args: argparse.Namespace) -> PairSource:
    """Asks both models what is not answered yet. With --plan-only nobody is asked, and answers are empty."""
    examples = data.read(args.data, Reading(rules=RowRules(tuple(args.conversation or ()))))
    task = args.task or args.data[0].stem
    nobody = [EvalAnswer()] * len(examples)
    small, large, again = nobody, nobody, None
    name = args.teacher_name
    if args.plan_only:
        if args.psi is None:
            raise EvidenceError("--plan-only with DATA asks nobody, so it cannot count how many answers differ",
                                hint="state --psi, such as 0.1")
        small_name = args.name or args.model
    else:
        answerer = _small(args)
        small_name = answerer.name
        small = _answers(args, answerer, examples, "small")
        large = _answers(args, _teacher(args), examples, "large")
        again = _answers(args, _teacher(args), examples, "again") if args.reask else None
    pairs = [_pair(at, example, ModelAnswer(small[at], small_name), ModelAnswer(large[at], name),
                   None if again is None else ModelAnswer(again[at], name)) for at, example in enumerate(examples)]
    chosen = choose(pairs, any_context=args.any_context)
    return PairSource(task, ", ".join(map(str, args.data)), _digest(args.data), chosen, _notes(examples))


def _pair(at: int, example: EvalExample, small: ModelAnswer, large: ModelAnswer, again: ModelAnswer | None) -> Pair:
    fields = {"messages": [{**message} for message in example.prompt], "tools": [{**tool} for tool in example.tools]}
    return Pair(f"{at}-{example.digest}", example.place, example.conversation, small, large, again,
                prompt=example.prompt, tools=example.tools, reference=example.reference,
                context=context_digest(fields) or NO_CONTEXT, meta=example.meta)


def _small(args: argparse.Namespace) -> Answerer:
    asked = AnswerSettings(args.max_tokens)
    if args.endpoint is not None:
        key = None if args.key_env is None else settings.secret(args.key_env)
        return EndpointAnswerer(Endpoint(args.endpoint, args.name, key), asked, parallel=args.parallel)
    local = load_local(args.model, args.adapter, any_base=args.any_base, threads=None)
    return LocalAnswerer(local.model, asked, local.digest, parallel=args.parallel, adapter=local.adapter)


def _teacher(args: argparse.Namespace) -> Answerer:
    key = None if args.teacher_key_env is None else settings.secret(args.teacher_key_env)
    return EndpointAnswerer(Endpoint(args.teacher, args.teacher_name, key), AnswerSettings(args.max_tokens),
                            parallel=args.parallel)


def _answers(args: argparse.Namespace, answerer: Answerer, examples: Sequence[EvalExample],
             what: str) -> list[EvalAnswer]:
    out = None
    if args.answers is not None:
        args.answers.mkdir(parents=True, exist_ok=True)
        out = args.answers / f"{what}.jsonl"
    with progress_bar.bar(f"asking {answerer.name} ({what})", len({example.digest for example in examples}),
                          "examples") as advance:
        answered = answer_all(answerer, examples, out, advance)
    failed = sum(answer.error is not None for answer in answered.answers)
    if failed:
        terminal.note(f"{failed} of {len(examples)} examples got no answer of {answerer.name}; they count as wrong")
    return list(answered.answers)


def _notes(examples: Sequence[EvalExample]) -> tuple[str, ...]:
    """What must be known where references are no truth."""
    if all(example.provider is None for example in examples):
        return ()
    return (f"the references are {report.label_source(examples)}",)


def _digest(paths: Sequence[Path]) -> str:
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return list_digest([StoredFile(file.name, file_digest(file), file.stat().st_size) for file in files])
