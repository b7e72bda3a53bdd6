"""`brise audit` says whether the ledger is whole, who answers what, and what audits have found."""

from __future__ import annotations

import argparse
import json

from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.fleet.audited_rollouts import audited, audited_json
from brise.report import console, ledger
from brise.report.ledger import AuditOptions, LedgerAudit


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "audit", help="check the ledger, and show what audits have found", allow_abbrev=False,
        description="Check that no line of the ledger was changed or taken out, compute the state of all switches from "
                    "it, and show the audited quality with its interval, the evidence of harm, and what happened when. "
                    "Exit status: 0 the ledger is whole, 1 it is broken; the first broken line is named, and only what "
                    "stands before it is shown.",
        epilog=examples("brise audit"))
    parser.add_argument("task", metavar="TASK", nargs="?", help="one workflow (default: all)")
    parser.add_argument("--expect", metavar="DIGEST",
                        help="the digest of a line that you noted earlier, or its first 8 digits or more: it must "
                             "still be there, so that lines cut off at the end are seen, too")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")


def run(args: argparse.Namespace) -> int:
    found = ledger.audit(AuditOptions(args.task, args.expect, args.store))
    if args.json:
        terminal.result(json.dumps({**found.to_json(), "rollouts": audited_json(found.whole)}, indent=2))
    else:
        _show(found)
    if found.broken is not None:
        terminal.note(f"brise: error: the ledger is broken at line {found.broken.number}: {found.broken.reason}\n"
                      "hint: nothing from that line on can be relied on; compare with a backup")
    return 0 if found.broken is None else 1


def _show(found: LedgerAudit) -> None:
    state = "whole" if found.broken is None else f"broken at line {found.broken.number}"
    last = f", the last digest is {found.lines[-1].digest[:16]}" if found.lines else ""
    terminal.result(f"ledger: {len(found.lines)} lines, {state}{last}")
    if found.tenures:
        console.show_parts(ledger.tenures_shown(found.tenures))
    if found.events:
        console.show_parts(ledger.events_shown(found.events))
    if found.against:
        console.show_parts(ledger.against_shown(found.against))
    if rollouts := audited(found.whole):
        console.show_parts(rollouts)
    if not found.events and not rollouts and found.broken is None:
        terminal.note("no task was ever switched" if found.task is None else f"{found.task!r} was never switched")
