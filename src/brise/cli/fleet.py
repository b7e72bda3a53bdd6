"""`brise fleet`: the keys, roll-outs and devices of a fleet. Each kind of action is in a file of its own."""

from __future__ import annotations

import argparse

from brise.cli import fleet_keys, fleet_operations
from brise.cli.command_parser import examples


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "fleet", help="keys, roll-outs and devices of a fleet", allow_abbrev=False,
        description="What an operator of many devices does: the keys that sign bundles, roll-outs and their devices. "
                    "docs/guides/fleet.md has the whole.",
        epilog=examples("brise fleet status", "brise fleet roll-out tickets"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fleet_keys.add_action(actions)
    fleet_operations.add_actions(actions)


def run(args: argparse.Namespace) -> int:
    return fleet_keys.run(args) if args.action == "keys" else fleet_operations.run(args)
