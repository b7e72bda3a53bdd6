"""The options of `brise eval`, and which of them each kind of system takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from brise.cli import chat_options, number_types
from brise.data.parse_row import RowRules
from brise.data.read_rows import Columns
from brise.errors import EvidenceError
from brise.evals import scorers
from brise.evals.data import Reading
from brise.text.images import ImageSettings

MAX_TOKENS, PARALLEL, TIMEOUT_S = 256, 16, 120.0

KINDS = ("model", "endpoint", "baseline")
# Options that not every kind of system can honour: which ones do, and the default. Given to another it is an error.
OWN: Mapping[str, tuple[tuple[str, ...], object]] = MappingProxyType({
    "adapter": (("model",), None), "any_base": (("model",), False), "context": (("model",), None),
    "threads": (("model",), None), "name": (("endpoint",), None), "key_env": (("endpoint",), None),
    "timeout": (("endpoint",), TIMEOUT_S), "train": (("baseline",), None),
    "json_schema": (("model", "endpoint"), None), "max_tokens": (("model", "endpoint"), MAX_TOKENS),
    "parallel": (("model", "endpoint"), PARALLEL)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path,
                        help="files or folders of examples: JSON lines with messages, or with prompt and completion; "
                             "CSV with these columns")
    _add_systems(parser)
    _add_data(parser)
    _add_scoring(parser)


def check(args: argparse.Namespace) -> None:
    """Refuses options that the chosen system cannot honour, and those that need another one."""
    kind = next(kind for kind in KINDS if vars(args)[kind] is not None)
    for name, (kinds, default) in OWN.items():
        if kind not in kinds and vars(args)[name] != default:
            allowed = " or ".join(f"--{other}" for other in kinds)
            raise EvidenceError(f"--{name.replace('_', '-')} goes with {allowed}, not with --{kind}")
    for needs, name in (("endpoint", "name"), ("baseline", "train")):
        if kind == needs and vars(args)[name] is None:
            raise EvidenceError(f"--{needs} needs --{name}")
    if args.any_base and args.adapter is None:
        raise EvidenceError("--any-base needs --adapter FOLDER")
    if args.score is not None and args.scorer is not None:
        raise EvidenceError("--score and --scorer are both given, one is allowed")


def reading_of(args: argparse.Namespace, images: ImageSettings | None) -> Reading:
    """How DATA is read; `images` is what the model's tower takes."""
    absorb: bool | str = False if args.absorb_system is None else args.absorb_system or True
    return Reading(args.turns, RowRules(tuple(args.conversation or ()), images=images),
                   Columns(args.prompt_column, args.completion_column, args.system_column),
                   args.held_out_share, args.split_seed, absorb)


def _add_systems(parser: argparse.ArgumentParser) -> None:
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", metavar="MODEL",
                     help="who answers: a name that `brise models` lists, a .gguf file, or a folder")
    who.add_argument("--endpoint", metavar="URL",
                     help="or a server with OpenAI's API, such as http://127.0.0.1:8080/v1")
    who.add_argument("--baseline", choices=("majority", "tfidf"),
                     help="or no model: the most frequent answer of --train, or TF-IDF with a linear model (for other "
                          "tasks than classification: the answer to the most similar prompt)")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter to put on the model, as `brise tune` and PEFT write them")
    parser.add_argument("--any-base", action="store_true",
                        help="take the adapter although its lineage names another model")
    parser.add_argument("--name", metavar="NAME", help="the model at the endpoint")
    parser.add_argument("--key-env", metavar="VARIABLE",
                        help="the environment variable that holds the endpoint's API key")
    parser.add_argument("--timeout", metavar="SECONDS", type=number_types.seconds, default=TIMEOUT_S,
                        help=f"how long the endpoint may take for an answer (default: {TIMEOUT_S:g})")
    parser.add_argument("--train", metavar="FILE", action="append", type=Path,
                        help="what a baseline learns from; may be given several times. Conversations that are "
                             "evaluated are left out")
    parser.add_argument("--max-tokens", metavar="N", type=chat_options.count, default=MAX_TOKENS,
                        help=f"longest answer in tokens (default: {MAX_TOKENS})")
    parser.add_argument("--json-schema", metavar="FILE", type=Path, help="answers must follow this JSON schema")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=PARALLEL,
                        help=f"examples that are asked at one time (default: {PARALLEL})")
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="tokens of a prompt and its answer (default: what the longest needs)")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", choices=("last", "all"), default="last",
                        help="which answers of a conversation are asked for (default: last)")
    parser.add_argument("--conversation", metavar="FIELD", action="append",
                        help="field that tells conversations apart, such as meta.seed; may be given several times")
    parser.add_argument("--held-out-share", metavar="SHARE", type=number_types.some,
                        help="only the conversations that `brise tune` holds out of DATA with this share")
    parser.add_argument("--split-seed", metavar="N", type=int, default=0,
                        help="the seed that it was given (default: 0)")
    parser.add_argument("--sample", metavar="N", type=chat_options.count,
                        help="only N examples, chosen by their digests: always the same ones")
    parser.add_argument("--absorb-system", metavar="TEXT", nargs="?", const="",
                        help="ask without the rows' system prompts, or with TEXT in their place")
    parser.add_argument("--prompt-column", metavar="NAME", default="prompt", help="of a CSV (default: prompt)")
    parser.add_argument("--completion-column", metavar="NAME", default="completion",
                        help="of a CSV (default: completion)")
    parser.add_argument("--system-column", metavar="NAME", help="of a CSV (default: it has none)")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    names = tuple(scorers.built_in(()))
    parser.add_argument("--score", choices=names, metavar="NAME",
                        help=f"how answers are compared: {', '.join(names)} (default: by the rows' meta.task)")
    parser.add_argument("--scorer", metavar="FILE.py:FUNCTION",
                        help="compare with your own function, which gets (example, answer); its file is run")
    parser.add_argument("--labels", metavar="FILE", type=Path,
                        help="JSON list of a classification's labels (default: those of the reference answers)")
    parser.add_argument("--out", metavar="FILE", type=Path,
                        help="keep every answer in this file; the same command goes on where it was broken off")
    parser.add_argument("--against", metavar="FILE", type=Path,
                        help="compare with the answers of another run, on the examples that both have")
    parser.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the intervals' resampling (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 on is allowed")
    return int(text[:18])
