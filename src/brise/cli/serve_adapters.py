"""Options for adapters, which `brise serve` and other commands with an engine share, are declared and checked here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from brise.cli import chat_options, memory_options
from brise.engine.adapters import AdapterExistsError, check_name
from brise.errors import UnsupportedError
from brise.hub.locate import path_of
from brise.memory.opening import MAX_ADAPTERS, MAX_RANK, AdapterRoom, adapter_room


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--adapter, --any-base, and those of `add_room_arguments`."""
    parser.add_argument("--adapter", metavar="NAME=FOLDER", type=_named, action="append", default=[],
                        help="an adapter, as `brise tune` and PEFT write them, that requests choose by this name as "
                             "their model; may be given several times. For one model")
    parser.add_argument("--ngrams", metavar="FILE", type=path_of,
                        help="a table of n-grams, as `brise log ngrams` and `brise tune` write them, from which "
                             "answers of the model without an adapter are drafted; an adapter has its own in its "
                             "folder. For one model")
    parser.add_argument("--any-base", action="store_true",
                        help="take adapters although their lineage names another model")
    add_room_arguments(parser)


def add_room_arguments(parser: argparse.ArgumentParser) -> None:
    """--max-adapters, --adapter-rank and --adapter-memory."""
    parser.add_argument("--max-adapters", metavar="N", type=_slots, default=MAX_ADAPTERS,
                        help="adapters in memory at one time; the one unused for longest makes room, and is read again "
                             f"when it is asked for (default: {MAX_ADAPTERS})")
    parser.add_argument("--adapter-rank", metavar="R", type=chat_options.count, default=MAX_RANK,
                        help=f"largest rank of an adapter (default: {MAX_RANK})")
    parser.add_argument("--adapter-memory", metavar="SIZE", type=memory_options.size,
                        help="memory for adapters, what loading one takes included (default of `brise serve`: no "
                             "bound; under --memory what the given ones need)")


def check(args: argparse.Namespace, models: Sequence[str]) -> AdapterRoom:
    """The memory for adapters. Names and folders are checked before a model is loaded."""
    if args.adapter and len(models) > 1:
        raise UnsupportedError(f"--adapter is for one model, and there are {len(models)}",
                               hint="POST /v1/adapters has a field 'model'")
    if args.ngrams is not None and len(models) != 1:
        raise UnsupportedError(f"--ngrams is for one model, and there are {len(models)}")
    if args.ngrams is not None and not args.ngrams.is_file():
        raise UnsupportedError(f"there is no table of n-grams {str(args.ngrams)!r}", hint="brise log ngrams makes one")
    if args.ngrams is not None and args.speculate == "off":
        raise UnsupportedError("--ngrams FILE drafts answers, and --speculate off forbids it", hint="give one of them")
    names = set(models)
    for name, _ in args.adapter:
        check_name(name)
        if name in names:
            raise AdapterExistsError(name)
        names.add(name)
    return room(args, [path for _, path in args.adapter])


def room(args: argparse.Namespace, paths: Sequence[Path]) -> AdapterRoom:
    """The memory that the options ask for; under --memory without --adapter-memory, what these adapters need."""
    room = adapter_room(paths, memory=args.memory, adapter_memory=args.adapter_memory, slots=args.max_adapters,
                        rank=args.adapter_rank)
    if args.adapter and not room.slots:
        raise UnsupportedError("--max-adapters is 0, and adapters are given")
    return room


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=FOLDER")
    return name, path_of(path)


def _slots(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of adapters from 0 to 1000 is allowed")
    return int(text)
