"""`brise tune`: trains an adapter on examples, on this machine, within a memory limit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from brise.cli import chat_options, data_options, memory_options, number_types, tune_show
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.errors import BriseError, UnsupportedError
from brise.models.lora import ENDS, MODULES
from brise.tune import kept_options
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
        description="Train a model on your examples: check the data, plan the memory, train an adapter within a memory "
                    "limit, and check that what is served is what was trained. An interrupted run continues with "
                    "--resume, or ends with --finish; both take its folder in place of DATA and options. Needs pip "
                    "install 'brise[tune]'.\n"
                    "docs/guides/tune.md describes the data, the run's folder, what --json prints, and how torchrun "
                    "trains on several processes. Exit status 1 also if no step made the model better, which leaves no "
                    "adapter, and if what is served is not what was trained; 130 if Ctrl-C ended it, after a "
                    "checkpoint.",
        epilog=examples("brise tune tickets.jsonl --model smollm2",
                        "brise tune tickets.jsonl --model smollm2 --memory 4GB --dry-run",
                        "brise tune tickets.jsonl --model smollm2 --out tickets-run --steps 60 --resume",
                        "brise tune tickets-run --finish"))
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("data", metavar="DATA", nargs="*", default=[], type=Path,
                        help="files or folders of examples: JSON lines with messages, or with prompt and completion; "
                             "CSV with these columns; with --resume or --finish also the run's folder alone")
    parser.add_argument("--model", metavar="MODEL",
                        help="the model to train: a name that `brise models` lists, a .gguf file, or a folder")
    parser.add_argument("--out", metavar="FOLDER", type=Path,
                        help="the run's folder: adapter, checkpoints, log, loss curve (default: DATA-MODEL, here)")
    parser.add_argument("--memory", metavar="SIZE", type=memory_options.size,
                        help="stay within this much memory (on a GPU, of its memory), or refuse before a weight is "
                             "read: 4GB, 3.5GiB; docs/guides/tune.md#memory says how")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder, to the same bits; a "
                                                              "setting that was given before must be given again")
    parser.add_argument("--finish", action="store_true",
                        help="take no more steps: make an adapter of the best checkpoint of the run in the folder")
    parser.add_argument("--dry-run", action="store_true",
                        help="only check the data, and say what the run would take")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    _add_recipe(parser)
    _add_machine(parser)
    _add_teacher(parser)
    _add_rounds(parser)
    _add_endpoint(parser)
    data_options.add_arguments(parser)
    data_options.add_ngram_arguments(parser, "conversations")


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
    return 0 if result.passed and not result.is_worse else 1


def _options(args: argparse.Namespace) -> TuneOptions:
    """UnsupportedError names an option that needs another one."""
    others = {"rows": data_options.rows_of(args), "ngrams": data_options.ngrams_of(args), "teacher": _teacher(args),
              "on_policy": _rounds(args), "teacher_endpoint": _endpoint(args)}
    if args.model is not None and args.data:
        return fill(TuneOptions, args, others)
    folder = args.data[0] if len(args.data) == 1 and args.out is None else args.out if not args.data else None
    if args.model is not None or folder is None or not (args.resume or args.finish):
        missing = [name for name, value in (("DATA", args.data), ("--model", args.model)) if not value]
        args.usage_error(f"the following arguments are required: {', '.join(missing)}")
    assert isinstance(folder, Path)
    return _of_folder(folder, fill(TuneOptions, args, {**others, "data": (), "model": "", "out": folder}))


def _of_folder(folder: Path, given: TuneOptions) -> TuneOptions:
    """The options that the run's folder keeps, with what is given in another way than by default."""
    usual = vars(TuneOptions((), "", folder))
    changed = {name: value for name, value in vars(given).items() if value != usual[name]}
    return replace(kept_options.read(folder), **changed)


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
                        help="lora: adapters; qlora: adapters on a base that stays as quantised as its file is; dora: "
                             "adapters and the norms of rows; full: all weights (default: lora)")
    parser.add_argument("--start", metavar="FOLDER", type=Path,
                        help="go on from this adapter, of the same rank and matrices (default: a new one)")
    parser.add_argument("--rank", metavar="R", type=chat_options.count, default=16,
                        help="rank of the adapters (default: 16)")
    parser.add_argument("--alpha", metavar="A", type=data_options.number(0.0),
                        help="adapters are scaled by A/R (default: twice the rank)")
    parser.add_argument("--dropout", metavar="P", type=data_options.number(0.0), default=0.0,
                        help="share of an adapter's inputs that a step drops (default: 0)")
    parser.add_argument("--targets", metavar="NAMES", type=_names, default=TuneOptions.targets,
                        help=f"matrices that get adapters, separated by commas; {' and '.join(ENDS)} may be among them "
                             f"(default: {','.join(MODULES)})")
    parser.add_argument("--lr", metavar="RATE", type=data_options.number(0.0),
                        help=f"learning rate (default: {RATE:g} for adapters, {FULL_RATE:g} for full)")
    parser.add_argument("--min-lr", metavar="SHARE", type=data_options.number(0.0), default=0.0,
                        help="rate at the end of the schedule, as a share of --lr (default: 0)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine",
                        help="how the rate falls after the warm-up (default: cosine)")
    parser.add_argument("--warmup", metavar="SHARE", type=data_options.number(0.0), default=0.03,
                        help="share of the steps in which the rate rises (default: 0.03)")
    parser.add_argument("--weight-decay", metavar="W", type=data_options.number(0.0), default=0.0,
                        help="weight decay of a step, times the rate (default: 0)")
    parser.add_argument("--clip", metavar="NORM", type=data_options.number(0.0), default=1.0,
                        help="largest norm of the gradient; 0: no limit (default: 1)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw",
                        help="AdamW with its state in float32, or in 8 bits (default: adamw)")
    parser.add_argument("--batch-size", metavar="N", type=chat_options.count, default=32,
                        help="examples of a step (default: 32)")
    parser.add_argument("--epochs", metavar="N", type=data_options.number(0.0),
                        help=f"passes over all examples (default: {EPOCHS:g})")
    parser.add_argument("--steps", metavar="N", type=chat_options.count, help="number of steps, in place of --epochs")
    parser.add_argument("--seed", metavar="N", type=data_options.seed, default=0,
                        help="same seed, same weights (default: 0)")
    parser.add_argument("--eval-every", metavar="N", type=chat_options.count,
                        help="steps between evaluations on held-out rows (default: an epoch; with --on-policy a fifth "
                             "of the run)")
    parser.add_argument("--patience", metavar="N", type=chat_options.count,
                        help="stop after so many evaluations without improvement (default: never)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-tokens", metavar="N", type=chat_options.count,
                        help="tokens of a microbatch; a step sums as many microbatches as it needs (default: "
                             f"{BATCH_TOKENS}, or fewer to stay within --memory)")
    parser.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto",
                        help="recompute layers for the gradient: less memory, but a second forward pass; auto: only if "
                             "--memory requires it (default: auto)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="number type of the computation; auto: the faster one here, as measured (default: auto)")
    parser.add_argument("--device", metavar="NAME", default="auto",
                        help="cpu, cuda or cuda:1; auto: a GPU if there is one (default: auto)")
    parser.add_argument("--offload", choices=("auto", "none", "all"), default="auto",
                        help="what of a run on a GPU lies on the host between uses: inputs of layers that are computed "
                             "again, optimizer state, embedding and output head; auto: what --memory demands (default: "
                             "auto)")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--eval-rows", metavar="N", type=chat_options.count, default=TuneOptions.eval_rows,
                        help=f"largest number of held-out rows in an evaluation (default: {TuneOptions.eval_rows})")
    parser.add_argument("--parity-rows", metavar="N", type=_rows, default=TuneOptions.parity_rows,
                        help="largest number of held-out rows to replay at the end; 0: none "
                             f"(default: {TuneOptions.parity_rows})")
    parser.add_argument("--save-every", metavar="N", type=chat_options.count, default=TuneOptions.save_every,
                        help=f"steps between checkpoints (default: {TuneOptions.save_every})")


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", metavar="MODEL",
                        help="learn the predictions of this model: a name, a .gguf file, or a folder; it must have the "
                             "same vocabulary")
    parser.add_argument("--teacher-adapter", metavar="FOLDER", type=Path, help="an adapter of the teacher")
    parser.add_argument("--teacher-top", metavar="K", type=chat_options.count, default=TeacherOptions.top,
                        help=f"most likely tokens of the teacher to record (default: {TeacherOptions.top})")
    parser.add_argument("--teacher-weight", metavar="SHARE", type=number_types.share, default=1.0,
                        help="share of its predictions in the loss; the rest is cross entropy (default: 1)")
    parser.add_argument("--teacher-temperature", metavar="T", type=float, default=1.0,
                        help="temperature of the comparison (default: 1)")
    parser.add_argument("--teacher-divergence", choices=("forward", "reverse"),
                        help="forward: KL(teacher || student), the student covers what the teacher says; reverse: "
                             "KL(student || teacher), it keeps to what the teacher would say (default: forward, with "
                             "--on-policy reverse)")


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on-policy", action="store_true",
                        help="with --teacher: the student answers the prompts of DATA, and learns what the teacher "
                             "would have said at each of its tokens; the answers in DATA are for evaluation")
    parser.add_argument("--rounds", metavar="N", type=chat_options.count,
                        help=f"number of rounds of answers, with --on-policy (default: {RoundOptions.rounds})")
    parser.add_argument("--round-prompts", metavar="N", type=chat_options.count,
                        help=f"prompts that the student answers in a round (default: {RoundOptions.prompts})")
    parser.add_argument("--round-steps", metavar="N", type=chat_options.count,
                        help=f"steps of training on a round's answers (default: {RoundOptions.steps})")
    parser.add_argument("--round-tokens", metavar="N", type=chat_options.count,
                        help=f"longest answer of the student, in tokens (default: {RoundOptions.max_tokens})")
    parser.add_argument("--round-temperature", metavar="T", type=float,
                        help="temperature of the answers; 0: always the most likely token (default: "
                             f"{RoundOptions.temperature:g})")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher-endpoint", metavar="URL",
                        help="learn the answers of a model at an OpenAI-compatible API to the prompts of DATA, instead "
                             "of the answers in DATA: https://api.example.com/v1")
    parser.add_argument("--teacher-name", metavar="NAME", help="the name of the model there")
    parser.add_argument("--teacher-key-env", metavar="VARIABLE",
                        help="the environment variable that holds the API key")
    parser.add_argument("--teacher-provider", metavar="NAME",
                        help="the provider that hosts it; --rights must allow training on its answers")
    parser.add_argument("--teacher-open", action="store_true", help="its weights are open, so that no right is needed")
    parser.add_argument("--teacher-tokens", metavar="N", type=chat_options.count,
                        help="longest answer of the endpoint, in tokens; longer ones are left out (default: "
                             f"{TeacherEndpoint.max_tokens})")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of up to 9 digits is allowed")
    return int(text)
