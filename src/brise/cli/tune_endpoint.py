"""`brise tune --teacher-endpoint`: a model behind an API answers the data's prompts; its texts are learned.

    asked/answers.jsonl    every answer as it came (evals/answers_file.py): nothing is asked twice
    asked/rows.jsonl       the rows that are trained on, with their provider

Both lie in the run's folder. Whether a provider allows training on its answers is settled before anything is asked.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from brise import settings
from brise.cli import chat_options, progress_bar, terminal
from brise.data.parse_row import RowRules
from brise.data.rights import provider_of_model
from brise.errors import EvidenceError, UnsupportedError
from brise.evals import data, run
from brise.evals.answerer import AnswerSettings
from brise.evals.endpoint import Endpoint, EndpointAnswerer, sent
from brise.evals.example import EvalAnswer, EvalExample
from brise.files.atomic import output_errors, staged_file
from brise.tune.run_folder import ASKED

if TYPE_CHECKING:
    from brise.data.prepare import DataOptions
    from brise.tune.run_folder import Plain

ANSWERS, ROWS = "answers.jsonl", "rows.jsonl"
TOKENS = 1024
_WHOLE = ("stop", "tool_calls")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--teacher-endpoint and what belongs to it."""
    parser.add_argument("--teacher-endpoint", metavar="URL",
                        help="learn the texts that a model behind an OpenAI-compatible API answers to the prompts of "
                             "DATA, in place of DATA's: https://api.example.com/v1")
    parser.add_argument("--teacher-name", metavar="NAME", help="the model's name there")
    parser.add_argument("--teacher-key-env", metavar="VARIABLE",
                        help="the environment variable that holds the API key")
    parser.add_argument("--teacher-provider", metavar="NAME",
                        help="who hosts it; --rights must allow training on its answers")
    parser.add_argument("--teacher-open", action="store_true", help="its weights are open: no right is needed")
    parser.add_argument("--teacher-tokens", metavar="N", type=chat_options.count,
                        help=f"longest answer of the endpoint; longer ones are left out (default: {TOKENS})")


def check(args: argparse.Namespace) -> None:
    """UnsupportedError for options that do not go together."""
    if args.teacher_endpoint is None:
        for name, value in (("--teacher-name", args.teacher_name), ("--teacher-key-env", args.teacher_key_env),
                            ("--teacher-provider", args.teacher_provider), ("--teacher-tokens", args.teacher_tokens),
                            ("--teacher-open", args.teacher_open or None)):
            if value is not None:
                raise UnsupportedError(f"{name} needs --teacher-endpoint URL")
        return
    if args.teacher is not None:
        raise UnsupportedError("--teacher and --teacher-endpoint do not go together",
                               hint="the one gives log-probabilities of answers, the other answers")
    if args.dry_run:
        raise UnsupportedError("--dry-run asks nobody, and --teacher-endpoint does",
                               hint="try the data without it")
    if args.teacher_name is None:
        raise UnsupportedError("--teacher-endpoint needs --teacher-name NAME")
    _provider(args)


def settings_of(args: argparse.Namespace) -> dict[str, Plain]:
    """Where the answers came from, for the run and the adapter's lineage."""
    if args.teacher_endpoint is None:
        return {}
    return {"teacher_endpoint": args.teacher_endpoint, "teacher_name": args.teacher_name,
            "teacher_provider": _provider(args)}


def rows(args: argparse.Namespace, out: Path, options: DataOptions) -> tuple[list[Path], DataOptions]:
    """The files to train on, and how they are read; those of DATA without an endpoint."""
    if args.teacher_endpoint is None:
        return args.data, options
    examples = data.read(args.data, data.Reading(rules=RowRules(options.conversation), columns=options.columns))
    provider = _provider(args)
    if provider is not None:
        options.rights.used({provider: len(examples)}, datetime.date.today())
    answerer = _answerer(args)
    folder = out / ASKED
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with progress_bar.bar(f"asking {args.teacher_name}", len({example.digest for example in examples}),
                          "prompts") as advance:
        answers = run.answer_all(answerer, examples, folder / ANSWERS, advance).answers
    _write(folder / ROWS, args.teacher_name, provider, examples, answers)
    return [folder / ROWS], replace(options, conversation=())  # which the rows now name


def _provider(args: argparse.Namespace) -> str | None:
    """Who hosts the teacher; None if its weights are open."""
    known, given = provider_of_model(args.teacher_name), args.teacher_provider
    hosted: str | None = given or known
    if args.teacher_open and hosted:
        raise UnsupportedError(f"--teacher-open is given, and {args.teacher_name} is hosted by {hosted}",
                               hint="rights.toml records what may be trained on (docs/guides/tune.md)")
    if not args.teacher_open and not hosted:
        raise UnsupportedError(f"it is not known who hosts {args.teacher_name}",
                               hint="--teacher-provider NAME, or --teacher-open for a model with open weights")
    return hosted.lower() if hosted else None


def _answerer(args: argparse.Namespace) -> EndpointAnswerer:
    key = None if args.teacher_key_env is None else settings.secret(args.teacher_key_env)
    return EndpointAnswerer(Endpoint(args.teacher_endpoint, args.teacher_name, key),
                            AnswerSettings(args.teacher_tokens or TOKENS))


def _write(path: Path, name: str, provider: str | None, examples: Sequence[EvalExample],
           answers: Sequence[EvalAnswer]) -> None:
    """Rows of the answers that are whole; how many are not is said."""
    lines = [json.dumps(_row(name, provider, example, answer), ensure_ascii=False) + "\n"
             for example, answer in zip(examples, answers, strict=True) if _why_not(answer) is None]
    reasons = [why for answer in answers if (why := _why_not(answer)) is not None]
    for why in dict.fromkeys(reasons):
        terminal.note(f"{reasons.count(why)} of {len(examples)} prompts are left out: {why}")
    if not lines:
        raise EvidenceError(f"none of {len(examples)} prompts got an answer that can be learned: {reasons[0]}")
    text = "".join(lines).encode()
    path.unlink(missing_ok=True)  # of a run that goes on, which writes the same again
    with staged_file(path, len(text)) as file:
        file.write(text)


def _why_not(answer: EvalAnswer) -> str | None:
    """Why an answer cannot be learned."""
    if answer.error is not None:
        return f"the endpoint refused ({answer.error})"
    if answer.finish not in _WHOLE:
        return "the answer is cut, at --teacher-tokens" if answer.finish == "length" else f"it ended by {answer.finish}"
    if not answer.text and not answer.calls:
        return "the answer is empty"
    return None


def _row(name: str, provider: str | None, example: EvalExample, answer: EvalAnswer) -> dict[str, object]:
    calls = [{"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
             for number, call in enumerate(answer.calls)]
    last = {"role": "assistant", "content": answer.text, **({"tool_calls": calls} if calls else {})}
    return {"messages": [*(sent(message, example.place) for message in example.prompt), last],
            **({"tools": [dict(tool) for tool in example.tools]} if example.tools else {}),
            "conversation": example.conversation, "model": name, **({"provider": provider} if provider else {}),
            "meta": {**example.meta, "asked": example.place}}
