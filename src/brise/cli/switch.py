"""`brise switch` puts a small model in the large one's place, step by step, and back."""

from __future__ import annotations

import argparse
import json
import time

from brise.cli import number_types, pair_options, terminal
from brise.cli.command_parser import examples
from brise.cli.number_types import Within
from brise.prove import cutover
from brise.prove.cutover import SwitchOptions
from brise.report import console, ledger
from brise.switch import state as switch

UP_TO_ALL = Within(0, 100, "over 0, up to 100", above=True)
SHARES = tuple(round(100 * share) for share in switch.SHARES)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "switch", help="put a proven small model in the large one's place, and back", allow_abbrev=False,
        description="Let a small model answer a task in the place of the large one: by a certificate of `brise prove`, "
                    "in steps of 1, 10, 50 and 100 % of conversations, with audits and an alarm that switches back. "
                    "Running gateways follow at once. With TASK alone, or without anything: show how tasks are "
                    "switched. docs/guides/switch.md describes all of it.",
        epilog=examples("brise switch calls --share 1",
                        "brise switch calls --small-model smollm2 --force --reason 'a trial' --share 1"))
    parser.add_argument("task", metavar="TASK", nargs="?", help="the workflow: what requests name in x-brise-task, "
                                                                "else the model that they ask for (default: show all)")
    parser.add_argument("--small-model", "--candidate", metavar="MODEL",
                        help="the small model or adapter, as `brise serve` names it (default: the certificate's)")
    parser.add_argument("--certificate", metavar="FILE",
                        help="what `brise prove` wrote (default: auto, the newest in the ledger for this task and "
                             "small model)")
    parser.add_argument("--share", metavar="PERCENT", type=int, choices=SHARES,
                        help="of conversations: 1, 10, 50 or 100; a larger one than before only if audits are fine "
                             "(default: 1 to begin with)")
    parser.add_argument("--auto", action="store_true", help="the gateway takes the next steps by itself")
    parser.add_argument("--audit", metavar="PERCENT", type=UP_TO_ALL, default=100 * switch.AUDIT,
                        help="of kept answers that are compared with the large model's, more at small shares "
                             f"(default: {100 * switch.AUDIT:g})")
    parser.add_argument("--tolerance", metavar="POINTS", type=number_types.percent,
                        help="how far audits may fall before the alarm counts it as harm (default: what the rule or "
                             f"the certificate allows; without either {100 * cutover.FORCED_TOLERANCE:g})")
    parser.add_argument("--no-threshold", action="store_true",
                        help="keep all answers that are valid, also if `brise cascade` certified a threshold")
    parser.add_argument("--trust", metavar="KEY", type=pair_options.public_key, action="append", default=[],
                        help="public key of another machine whose certificates count: 64 hexadecimal digits, a file, "
                             "or NAME of NAME.pub in BRISE_HOME/gateway/keys; may be repeated")
    parser.add_argument("--force", action="store_true",
                        help="without a certificate, or against the audits; with --reason")
    parser.add_argument("--reason", metavar="TEXT", help="why; it stands in the ledger, with your name")
    parser.add_argument("--back", action="store_true", help="the large model answers again, from the next request on")
    parser.add_argument("--status", action="store_true", help="show how tasks are switched, and change nothing")
    parser.add_argument("--json", action="store_true", help="print the state as JSON")
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")


def run(args: argparse.Namespace) -> int:
    result = cutover.run(SwitchOptions(
        args.task, args.small_model, args.certificate, None if args.share is None else args.share / 100, args.auto,
        args.audit / 100, None if args.tolerance is None else args.tolerance / 100, not args.no_threshold,
        tuple(args.trust), args.force, args.reason, args.back, args.status, args.store))
    for note in result.notes:
        terminal.note(note)
    if args.json:
        terminal.result(json.dumps([ledger.state_json(each, result.against.get(each.task, ()))
                                    for each in result.states], indent=2))
    elif result.states:
        console.show_parts(ledger.states_shown(result.states, time.time(), result.against))
    else:
        console.show_parts(ledger.against_shown(result.against))
        terminal.note("no task is switched" if args.task is None else f"the task {args.task!r} is not switched")
    return 0
