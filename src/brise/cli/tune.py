"""`brise tune`: an adapter from examples, on this machine, in a stated memory budget."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from brise.cli import chat_options, data_options, memory_options, number_types, tune_show
from brise.cli.fill import fill
from brise.errors import BriseError, UnsupportedError
from brise.models.lora import MODULES
from brise.tune import run as run_training
from brise.tune.options import (
    BATCH_TOKENS,
    EPOCHS,
    FULL_RATE,
    RATE,
    RoundOptions,
    TeacherEndpoint,
    TeacherOptions,
    TuneOptions,
)
from brise.tune.watch import FirstFailedError

METHODS = ("lora", "qlora", "dora", "full")
OPTIMIZERS = ("adamw", "adamw8")
SCHEDULES = ("cosine", "linear", "constant")
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "tune", help="train a model on your examples", allow_abbrev=False,
        description="Train a model on examples: check the data, say what it takes, train an adapter inside a memory "
                    "budget, and prove that what is served is what was trained. A run that was cut off goes on with "
                    "--resume.",
        epilog="example: brise tune tickets.jsonl --model smollm2 --memory 4GB")
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path,
                        help="files or folders of examples: JSON lines with messages, or with prompt and completion; "
                             "CSV with these columns")
    parser.add_argument("--model", metavar="MODEL", required=True,
                        help="what is tuned: a name that `brise models` lists, a .gguf file, or a folder")
    parser.add_argument("--out", metavar="FOLDER", type=Path,
                        help="the run's folder: adapter, checkpoints, log, loss curve (default: DATA-MODEL, here)")
    parser.add_argument("--memory", metavar="SIZE", type=memory_options.size,
                        help="stay within this much memory (on a GPU: of its memory), or refuse before loading: 4GB")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, to the same bits")
    parser.add_argument("--dry-run", action="store_true",
                        help="only say what is wrong with the data, and what the run would take")
    parser.add_argument("--json", action="store_true", help="print what happens as JSON lines")
    _add_recipe(parser)
    _add_machine(parser)
    _add_teacher(parser)
    _add_rounds(parser)
    _add_endpoint(parser)
    data_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    watcher = tune_show.TuneTerminal(as_json=args.json, is_dry=args.dry_run)
    try:
        options = _options(args)
    except BriseError as error:
        watcher.failed(error)
        raise
    try:
        result = run_training(options, watcher)
    except FirstFailedError:
        return 0  # the first says why, and its exit status counts
    if result.is_first:
        watcher.show(options, result)
    if result.end == "interrupted":
        return INTERRUPTED
    return 0 if result.passed else 1


def _options(args: argparse.Namespace) -> TuneOptions:
    """UnsupportedError names an option that needs another one."""
    return fill(TuneOptions, args, {"rows": data_options.rows_of(args), "teacher": _teacher(args),
                                    "on_policy": _rounds(args), "teacher_endpoint": _endpoint(args)})


def _teacher(args: argparse.Namespace) -> TeacherOptions | None:
    options = {"adapter": args.teacher_adapter, "top": args.teacher_top, "weight": args.teacher_weight,
               "temperature": args.teacher_temperature, "divergence": args.teacher_divergence}
    if args.teacher is not None:
        return fill(TeacherOptions, args, {"model": args.teacher, **options})
    usual = TeacherOptions("")
    _refuse({f"--teacher-{name}": None if value == vars(usual)[name] else value for name, value in options.items()},
            "--teacher MODEL")
    return None


def _rounds(args: argparse.Namespace) -> RoundOptions | None:
    options = {"rounds": args.rounds, "prompts": args.round_prompts, "steps": args.round_steps,
               "max_tokens": args.round_tokens, "temperature": args.round_temperature}
    if args.on_policy:
        return RoundOptions(**{name: value for name, value in options.items() if value is not None})
    _refuse({"--rounds": args.rounds, "--round-prompts": args.round_prompts, "--round-steps": args.round_steps,
             "--round-tokens": args.round_tokens, "--round-temperature": args.round_temperature}, "--on-policy")
    return None


def _endpoint(args: argparse.Namespace) -> TeacherEndpoint | None:
    if args.teacher_endpoint is None:
        _refuse({"--teacher-name": args.teacher_name, "--teacher-key-env": args.teacher_key_env,
                 "--teacher-provider": args.teacher_provider, "--teacher-tokens": args.teacher_tokens,
                 "--teacher-open": args.teacher_open or None}, "--teacher-endpoint URL")
        return None
    if args.teacher_name is None:
        raise UnsupportedError("--teacher-endpoint needs --teacher-name NAME")
    return TeacherEndpoint(args.teacher_endpoint, args.teacher_name, args.teacher_key_env, args.teacher_provider,
                           args.teacher_open, args.teacher_tokens or TeacherEndpoint.max_tokens)


def _refuse(options: Mapping[str, object], needed: str) -> None:
    """UnsupportedError names the first of these that was given."""
    for name, value in options.items():
        if value is not None:
            raise UnsupportedError(f"{name} needs {needed}")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, default="lora",
                        help="lora: adapters; qlora: the same while the base stays as quantised as its file is; dora: "
                             "adapters and the lengths of rows; full: all weights (default: lora)")
    parser.add_argument("--rank", metavar="R", type=chat_options.count, default=16,
                        help="rank of the adapters (default: 16)")
    parser.add_argument("--alpha", metavar="A", type=data_options.number(0.0),
                        help="what they are scaled by, times 1/R (default: twice the rank)")
    parser.add_argument("--dropout", metavar="P", type=data_options.number(0.0), default=0.0,
                        help="share of an adapter's inputs that a step leaves out (default: 0)")
    parser.add_argument("--targets", metavar="NAMES", type=_names, default=TuneOptions.targets,
                        help="matrices that get adapters, separated by commas (default: "
                             f"{','.join(MODULES)})")
    parser.add_argument("--lr", metavar="RATE", type=data_options.number(0.0),
                        help=f"learning rate (default: {RATE:g} for adapters, {FULL_RATE:g} for full)")
    parser.add_argument("--min-lr", metavar="SHARE", type=data_options.number(0.0), default=0.0,
                        help="where the schedule ends, as a share of the rate (default: 0)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine",
                        help="how the rate falls after warm-up (default: cosine)")
    parser.add_argument("--warmup", metavar="SHARE", type=data_options.number(0.0), default=0.03,
                        help="share of the steps in which the rate rises (default: 0.03)")
    parser.add_argument("--weight-decay", metavar="W", type=data_options.number(0.0), default=0.0,
                        help="what weights lose a step, times the rate (default: 0)")
    parser.add_argument("--clip", metavar="NORM", type=data_options.number(0.0), default=1.0,
                        help="longest gradient; 0: any (default: 1)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw",
                        help="AdamW with moments in float32, or in 8 bits (default: adamw)")
    parser.add_argument("--batch-size", metavar="N", type=chat_options.count, default=32,
                        help="examples of a step (default: 32)")
    parser.add_argument("--epochs", metavar="N", type=data_options.number(0.0),
                        help=f"how often all examples are gone through (default: {EPOCHS:g})")
    parser.add_argument("--steps", metavar="N", type=chat_options.count, help="so many steps, in place of --epochs")
    parser.add_argument("--seed", metavar="N", type=data_options.seed, default=0,
                        help="same seed, same weights (default: 0)")
    parser.add_argument("--eval-every", metavar="N", type=chat_options.count,
                        help="steps between evaluations on held-out rows (default: an epoch; with --on-policy a fifth "
                             "of the run)")
    parser.add_argument("--patience", metavar="N", type=chat_options.count,
                        help="stop after so many evaluations without a better one (default: never)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-tokens", metavar="N", type=chat_options.count,
                        help="tokens computed at a time; a step adds up as many microbatches as it needs (default: "
                             f"{BATCH_TOKENS}, or fewer under --memory)")
    parser.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto",
                        help="compute layers again for the gradient: less memory, and the forward pass twice; "
                             "auto: only if --memory asks for it (default: auto)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="numbers in which is computed; auto: what is faster here, by measurement (default: auto)")
    parser.add_argument("--device", metavar="NAME", default="auto",
                        help="cpu, cuda or cuda:1; auto: a GPU if there is one (default: auto)")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--eval-rows", metavar="N", type=chat_options.count, default=TuneOptions.eval_rows,
                        help=f"held-out rows of an evaluation, at most (default: {TuneOptions.eval_rows})")
    parser.add_argument("--parity-rows", metavar="N", type=_rows, default=TuneOptions.parity_rows,
                        help="held-out rows that are replayed at the end through what is served, at most; 0: none "
                             f"(default: {TuneOptions.parity_rows})")
    parser.add_argument("--save-every", metavar="N", type=chat_options.count, default=TuneOptions.save_every,
                        help=f"steps between checkpoints (default: {TuneOptions.save_every})")


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", metavar="MODEL",
                        help="learn from what this model predicts: a name, a .gguf file, or a folder; it must have the "
                             "same tokens")
    parser.add_argument("--teacher-adapter", metavar="FOLDER", type=Path, help="an adapter of the teacher")
    parser.add_argument("--teacher-top", metavar="K", type=chat_options.count, default=TeacherOptions.top,
                        help=f"likeliest tokens of the teacher that are recorded (default: {TeacherOptions.top})")
    parser.add_argument("--teacher-weight", metavar="SHARE", type=number_types.share, default=1.0,
                        help="of its predictions in the loss; the rest is cross entropy (default: 1)")
    parser.add_argument("--teacher-temperature", metavar="T", type=float, default=1.0,
                        help="temperature at which both are compared (default: 1)")
    parser.add_argument("--teacher-divergence", choices=("forward", "reverse"),
                        help="forward: KL(teacher || student), the student covers what the teacher says; reverse: "
                             "KL(student || teacher), it keeps to what the teacher would say (default: forward, with "
                             "--on-policy reverse)")


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on-policy", action="store_true",
                        help="with --teacher: the student answers the prompts of DATA, and learns what the teacher "
                             "would have said at each of its tokens; the answers in DATA serve evaluation")
    parser.add_argument("--rounds", metavar="N", type=chat_options.count,
                        help=f"how often the student answers, with --on-policy (default: {RoundOptions.rounds})")
    parser.add_argument("--round-prompts", metavar="N", type=chat_options.count,
                        help=f"prompts that it answers in a round (default: {RoundOptions.prompts})")
    parser.add_argument("--round-steps", metavar="N", type=chat_options.count,
                        help=f"steps of training on a round's answers (default: {RoundOptions.steps})")
    parser.add_argument("--round-tokens", metavar="N", type=chat_options.count,
                        help=f"longest answer (default: {RoundOptions.max_tokens})")
    parser.add_argument("--round-temperature", metavar="T", type=float,
                        help="at which it answers; 0: the likeliest token each time (default: "
                             f"{RoundOptions.temperature:g})")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
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
                        help="longest answer of the endpoint; longer ones are left out (default: "
                             f"{TeacherEndpoint.max_tokens})")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of up to 9 digits is allowed")
    return int(text)
