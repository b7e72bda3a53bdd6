"""`brise tune`: an adapter from examples, on this machine, in a stated memory budget."""

from __future__ import annotations

import argparse

from brise.cli import tune_options
from brise.errors import MissingExtraError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "tune", help="train a model on your examples", allow_abbrev=False,
        description="Train a model on examples: check the data, say what it takes, train an adapter inside a memory "
                    "budget, and prove that what is served is what was trained. A run that was cut off goes on with "
                    "--resume.",
        epilog="example: brise tune tickets.jsonl --model smollm2 --memory 4GB")
    tune_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    try:
        # Seconds and hundreds of megabytes: only who trains pays them.
        from brise.cli import tune_run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "tune", "brise tune") from error
    return tune_run.run(args)
