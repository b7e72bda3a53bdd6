"""Options of `brise serve` for virtual keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import get_args

from brise.cli import terminal
from brise.cli.number_types import Within
from brise.errors import UnsupportedError
from brise.serve.key_guard import KeyOptions
from brise.serve.open_gateway import UpstreamServer
from brise.serve.open_keys import KeyMode, VirtualKeyOptions

GRACE = Within(0, 86400, "a number of seconds from 0 to 86400")
USD = Within(0, 1e6, "a number of USD from 0 to 1000000")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--virtual-keys and what belongs to it."""
    parser.add_argument("--virtual-keys", choices=get_args(KeyMode),
                        help="the keys of `brise keys`, each with its own budget, limits and models; auto: requests "
                             "need a key as soon as the store has one; on: always; off: the store's keys are not read "
                             "(default: auto with --upstream or --store, otherwise off)")
    parser.add_argument("--keys-grace", metavar="S", type=GRACE, default=KeyOptions().grace_s,
                        help="seconds for which virtual keys go on while the store fails, within what was left of "
                             f"their limits; then requests get status 503 (default: {KeyOptions().grace_s:g})")
    parser.add_argument("--unknown-cost", metavar="USD", type=USD,
                        help="what a request counts in a key's budget if its cost is not known (default: its tokens "
                             "at the highest price in --prices)")


def note_keyless(upstreams: Mapping[str, UpstreamServer]) -> None:
    """Says which upstreams get no key: virtual keys are nobody else's business."""
    for server in upstreams.values():
        if server.settings.key is None:
            terminal.note(f"virtual keys do not go upstream: {server.settings.url} gets no key "
                          "(--upstream-key-env names one)")


def options_of(args: argparse.Namespace) -> VirtualKeyOptions:
    """The virtual keys that the command line asks for."""
    has_store = args.upstream is not None or args.store is not None
    if args.virtual_keys == "off" and args.store is not None and args.upstream is None:
        raise UnsupportedError("--store without --upstream is for virtual keys, and --virtual-keys is off",
                               hint="leave one of them out")
    mode: KeyMode = args.virtual_keys or ("auto" if has_store else "off")
    return VirtualKeyOptions(mode, args.store, args.prices, args.keys_grace, args.unknown_cost)
