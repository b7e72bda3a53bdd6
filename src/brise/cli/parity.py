"""`brise parity`: whether the model that is served says what the model that was trained says."""

from __future__ import annotations

import argparse
from pathlib import Path

from brise.cli import chat_options, number_types, tune_options
from brise.errors import MissingExtraError
from brise.tune.parity.parity import Tolerance

ROWS = 50


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    limits = Tolerance()
    parser = subparsers.add_parser(
        "parity", help="compare what is served with what was trained", allow_abbrev=False,
        description="Replay held-out rows through the trainer's model and through the one that is served: the same "
                    "tokens, the same predictions, within a tolerance. Over it, the exit status is 1 and the layer "
                    "where they part is named. Give the options of the data as to brise tune, and the same rows are "
                    "held out.",
        epilog="example: brise parity smollm2 --adapter tickets-smollm2/adapter --data tickets.jsonl")
    parser.add_argument("model", metavar="MODEL",
                        help="the base: a name that `brise models` lists, a .gguf file, or a folder")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, required=True,
                        help="the adapter that was trained, in PEFT's layout")
    parser.add_argument("--any-base", action="store_true",
                        help="take the adapter although its lineage names another model")
    parser.add_argument("--data", metavar="DATA", type=Path, action="append", required=True,
                        help="files or folders of examples, as for brise tune; may be given several times")
    parser.add_argument("--served", metavar="MODEL",
                        help="a model that the adapter was merged into (brise export --merge), in place of the base "
                             "with the adapter")
    parser.add_argument("--rows", metavar="N", type=chat_options.count, default=ROWS,
                        help=f"held-out rows to replay, at most (default: {ROWS})")
    parser.add_argument("--max-mean-kl", metavar="NATS", type=tune_options.number(0.0), default=limits.max_mean_kl,
                        help=f"largest mean KL divergence a token (default: {limits.max_mean_kl:g})")
    parser.add_argument("--min-agreement", metavar="SHARE", type=number_types.share,
                        default=limits.min_agreement,
                        help="least share of the tokens of which both find the same the likeliest (default: "
                             f"{limits.min_agreement:g})")
    parser.add_argument("--max-times-base", metavar="TIMES", type=tune_options.number(0.0),
                        default=limits.max_times_base,
                        help="largest mean KL as a multiple of what the base alone has; not asked of --served "
                             f"(default: {limits.max_times_base:g})")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--json", action="store_true", help="print the report as a JSON object")
    parser.add_argument("--seed", metavar="N", type=tune_options.seed, default=0,
                        help="of the split: the run's (default: 0)")
    tune_options.add_data(parser)


def run(args: argparse.Namespace) -> int:
    try:
        # Seconds and hundreds of megabytes: only who compares pays them.
        from brise.cli import parity_run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "tune", "brise parity") from error
    return parity_run.run(args)
