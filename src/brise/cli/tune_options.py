"""The options of `brise tune`, and what they mean to the trainer."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from brise.cli import chat_options, memory_options, tune_endpoint, tune_rounds, tune_teacher
from brise.data.prepare import DataOptions
from brise.data.read_rows import Columns
from brise.data.rights import Rights, read_rights
from brise.models.lora import MODULES
from brise.tune.recipe import Recipe

METHODS = ("lora", "qlora", "dora", "full")
OPTIMIZERS = ("adamw", "adamw8")
SCHEDULES = ("cosine", "linear", "constant")
BATCH_TOKENS = 2048
EPOCHS = 3.0
EVAL_ROWS, PARITY_ROWS, SAVE_EVERY = 200, 20, 20
_RATE, _FULL_RATE = 1e-3, 2e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them."""
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
    tune_teacher.add_arguments(parser)
    tune_rounds.add_arguments(parser)
    tune_endpoint.add_arguments(parser)
    add_data(parser)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """How to train; UnsupportedError names what is not allowed."""
    is_full = args.method == "full"
    rate = args.lr if args.lr is not None else _FULL_RATE if is_full else _RATE
    rounds, steps, eval_every = tune_rounds.plan_of(args), args.steps, args.eval_every or 0
    if rounds is not None:
        steps = rounds.rounds * rounds.steps
        eval_every = eval_every or max(1, steps // tune_rounds.EVALUATIONS)
    return Recipe(
        method="lora" if args.method == "qlora" else args.method, rank=args.rank,
        alpha=2.0 * args.rank if args.alpha is None else args.alpha, dropout=args.dropout,
        targets=tuple(args.targets.split(",")), learning_rate=rate, min_learning_rate=args.min_lr,
        schedule=args.schedule, warmup=args.warmup, weight_decay=args.weight_decay, clip=args.clip,
        optimizer=args.optimizer, batch_size=args.batch_size, epochs=EPOCHS if args.epochs is None else args.epochs,
        steps=steps, seed=args.seed, eval_every=eval_every, patience=args.patience or 0,
        distill_weight=args.teacher_weight, distill_temperature=args.teacher_temperature,
        distill_direction=tune_teacher.direction_of(args))


def data_options_of(args: argparse.Namespace, max_tokens: int) -> DataOptions:
    """How data become rows; `max_tokens` is what the model allows."""
    absorb: bool | str = False
    if args.absorb_system is not None:
        absorb = args.absorb_system or True
    return DataOptions(
        seed=args.seed,
        columns=Columns(args.prompt_column, args.completion_column, args.system_column, args.conversation_column),
        conversation=tuple(args.conversation or ()), provider=args.provider,
        rights=Rights() if args.rights is None else read_rights(args.rights), skip_bad=args.skip_bad,
        held_out_share=args.held_out_share, held_out_count=args.held_out_count,
        held_out=tuple(args.held_out or ()), allow_leakage=args.allow_leakage,
        max_tokens=min(args.max_length or max_tokens, max_tokens),
        too_long="refuse" if args.refuse_long else "leave_out", targets=args.learn, absorb_system=absorb,
        as_text=args.as_text)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, default="lora",
                        help="lora: adapters; qlora: the same while the base stays as quantised as its file is; dora: "
                             "adapters and the lengths of rows; full: all weights (default: lora)")
    parser.add_argument("--rank", metavar="R", type=chat_options.count, default=16,
                        help="rank of the adapters (default: 16)")
    parser.add_argument("--alpha", metavar="A", type=number(0.0),
                        help="what they are scaled by, times 1/R (default: twice the rank)")
    parser.add_argument("--dropout", metavar="P", type=number(0.0), default=0.0,
                        help="share of an adapter's inputs that a step leaves out (default: 0)")
    parser.add_argument("--targets", metavar="NAMES", default=",".join(MODULES),
                        help="matrices that get adapters, separated by commas (default: "
                             f"{','.join(MODULES)})")
    parser.add_argument("--lr", metavar="RATE", type=number(0.0),
                        help=f"learning rate (default: {_RATE:g} for adapters, {_FULL_RATE:g} for full)")
    parser.add_argument("--min-lr", metavar="SHARE", type=number(0.0), default=0.0,
                        help="where the schedule ends, as a share of the rate (default: 0)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine",
                        help="how the rate falls after warm-up (default: cosine)")
    parser.add_argument("--warmup", metavar="SHARE", type=number(0.0), default=0.03,
                        help="share of the steps in which the rate rises (default: 0.03)")
    parser.add_argument("--weight-decay", metavar="W", type=number(0.0), default=0.0,
                        help="what weights lose a step, times the rate (default: 0)")
    parser.add_argument("--clip", metavar="NORM", type=number(0.0), default=1.0,
                        help="longest gradient; 0: any (default: 1)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw",
                        help="AdamW with moments in float32, or in 8 bits (default: adamw)")
    parser.add_argument("--batch-size", metavar="N", type=chat_options.count, default=32,
                        help="examples of a step (default: 32)")
    parser.add_argument("--epochs", metavar="N", type=number(0.0),
                        help=f"how often all examples are gone through (default: {EPOCHS:g})")
    parser.add_argument("--steps", metavar="N", type=chat_options.count, help="so many steps, in place of --epochs")
    parser.add_argument("--seed", metavar="N", type=seed, default=0,
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
    parser.add_argument("--eval-rows", metavar="N", type=chat_options.count, default=EVAL_ROWS,
                        help=f"held-out rows of an evaluation, at most (default: {EVAL_ROWS})")
    parser.add_argument("--parity-rows", metavar="N", type=_rows, default=PARITY_ROWS,
                        help="held-out rows that are replayed at the end through what is served, at most; 0: none "
                             f"(default: {PARITY_ROWS})")
    parser.add_argument("--save-every", metavar="N", type=chat_options.count, default=SAVE_EVERY,
                        help=f"steps between checkpoints (default: {SAVE_EVERY})")


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options of data: which rows, and what of them is learned."""
    parser.add_argument("--held-out", metavar="FILE", type=Path, action="append",
                        help="rows to evaluate on, in place of a share of DATA; may be given several times")
    parser.add_argument("--held-out-share", metavar="SHARE", type=number(0.0), default=0.1,
                        help="share of the conversations that is held out (default: 0.1)")
    parser.add_argument("--held-out-count", metavar="N", type=chat_options.count,
                        help="so many examples are held out, in place of a share")
    parser.add_argument("--conversation", metavar="FIELD", action="append",
                        help="field that tells conversations apart, such as meta.seed; may be given several times")
    parser.add_argument("--learn", choices=("assistant", "all"), default="assistant",
                        help="what is learned: the assistant's tokens, or all (default: assistant)")
    parser.add_argument("--max-length", metavar="N", type=chat_options.count,
                        help="longest row in tokens; longer ones are left out and reported (default: what the model "
                             "allows)")
    parser.add_argument("--refuse-long", action="store_true", help="longer rows are an error")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, in place of an error")
    parser.add_argument("--allow-leakage", action="store_true",
                        help="train although held-out rows have prompts that are trained on")
    parser.add_argument("--provider", metavar="NAME",
                        help="hosted model's provider that wrote the answers of rows that do not say it")
    parser.add_argument("--rights", metavar="FILE", type=Path,
                        help="rights.toml: which providers allow training on their answers")
    parser.add_argument("--absorb-system", metavar="TEXT", nargs="?", const="",
                        help="train without the rows' system prompts, or with TEXT in their place")
    parser.add_argument("--as-text", action="store_true",
                        help="prompt and completion are one text, without a chat format")
    parser.add_argument("--prompt-column", metavar="NAME", default="prompt", help="of a CSV (default: prompt)")
    parser.add_argument("--completion-column", metavar="NAME", default="completion",
                        help="of a CSV (default: completion)")
    parser.add_argument("--system-column", metavar="NAME", help="of a CSV (default: it has none)")
    parser.add_argument("--conversation-column", metavar="NAME",
                        help="of a CSV: rows with the same one stay on one side of the split (default: it has none)")


def number(least: float) -> Callable[[str], float]:
    """The type of an option that is a number of at least `least`."""
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r}: a number of at least {least:g} is allowed")
        return value

    return read


def seed(text: str) -> int:
    """The type of --seed."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of up to 18 digits is allowed")
    return int(text)


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of up to 9 digits is allowed")
    return int(text)
