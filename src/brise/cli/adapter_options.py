"""Options of commands that write a model with an adapter in it, and that model."""

from __future__ import annotations

import argparse
from pathlib import Path

from brise.checkpoint.adapters.lineage import Lineage, check_base, read_lineage
from brise.checkpoint.adapters.merge import merge
from brise.checkpoint.adapters.peft import AdapterFile, read_adapter
from brise.checkpoint.convert_source import Original
from brise.errors import OutputError
from brise.files.digests import Located
from brise.models.config import Config


def add_arguments(parser: argparse.ArgumentParser, meaning: str) -> None:
    """--adapter and --any-base; `meaning` is the help of the first."""
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, help=meaning)
    parser.add_argument("--any-base", action="store_true",
                        help="take the adapter although its lineage names another model")


def with_adapter(args: argparse.Namespace, original: Original, located: Located) -> Original:
    """The model with --adapter merged into it, if one is given."""
    if args.adapter is None:
        if args.any_base:
            raise OutputError("--any-base needs --adapter FOLDER")
        return original
    adapter, lineage = read(args, original.config, located)
    return merge(original, adapter.low_ranks, lineage)


def read(args: argparse.Namespace, config: Config, located: Located) -> tuple[AdapterFile, Lineage | None]:
    """--adapter and its lineage; UnsupportedError if that names another model and --any-base is not given."""
    adapter, lineage = read_adapter(args.adapter, config), read_lineage(args.adapter)
    check_base(lineage, located, any_base=args.any_base)
    return adapter, lineage
