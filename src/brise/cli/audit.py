"""`brise audit`: is the ledger whole, who answers what, and what have audits found."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from brise import settings
from brise.cli import ledger_report, terminal
from brise.switch import history
from brise.switch.history import SwitchHistory, Tenure
from brise.traffic.ledger import LedgerBreak, check_chain
from brise.traffic.records import LedgerEntry
from brise.traffic.stores import open_store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "audit", help="check the ledger, and show what audits have found", allow_abbrev=False,
        description="Check that no line of the ledger was changed or taken out, compute the state of all switches from "
                    "it, and show the audited quality, the evidence of harm, and what happened when. Exit status: 0 "
                    "the ledger is whole, 1 it is broken.",
        epilog="example: brise audit")
    parser.add_argument("task", metavar="TASK", nargs="?", help="one workflow (default: all)")
    parser.add_argument("--expect", metavar="DIGEST",
                        help="the digest of a line that you noted earlier: it must still be there, so that lines cut "
                             "off at the end are seen, too")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")


def run(args: argparse.Namespace) -> int:
    with closing(open_store(args.store, settings.read().home, must_exist=True)) as store:
        entries = list(store.ledger())
    broken = check_chain(entries) or _missing(entries, args.expect)
    whole = entries if broken is None else entries[:broken.number - 1]
    found = history.replay(whole)
    tenures = [tenure for tenure in found.tenures if args.task in (None, tenure.state.task)]
    if args.json:
        terminal.result(json.dumps(_document(args, entries, broken, found, tenures), indent=2))
    else:
        _show(args, entries, broken, found, tenures)
    if broken is not None:
        terminal.note(f"brise: error: the ledger is broken at line {broken.number}: {broken.reason}\n"
                      "hint: nothing from that line on can be relied on; compare with a backup")
    return 0 if broken is None else 1


def _missing(entries: Sequence[LedgerEntry], expected: str | None) -> LedgerBreak | None:
    if expected is None or any(entry.digest.startswith(expected.lower()) for entry in entries if len(expected) >= 8):
        return None
    return LedgerBreak(len(entries) + 1,
                       f"no line has the digest {expected} (at least 8 digits of it): lines were cut off "
                                    "at the end")


def _document(args: argparse.Namespace, entries: Sequence[LedgerEntry], broken: LedgerBreak | None,
              found: SwitchHistory,
              tenures: Sequence[Tenure]) -> dict[str, Any]:
    return {"lines": len(entries), "last_digest": entries[-1].digest if entries else None,
            "is_whole": broken is None, "broken": None if broken is None else asdict(broken),
            "tasks": [{**ledger_report.state(state), "switches": [
                history.document(tenure) for tenure in tenures if tenure.state.task == name]}
                for name, state in found.switches.tasks.items() if args.task in (None, name)],
            "events": [asdict(event) for event in found.events if args.task in (None, event.task)]}


def _show(args: argparse.Namespace, entries: Sequence[LedgerEntry], broken: LedgerBreak | None, found: SwitchHistory,
          tenures: Sequence[Tenure]) -> None:
    state = "whole" if broken is None else f"broken at line {broken.number}"
    last = f", the last digest is {entries[-1].digest[:16]}" if entries else ""
    terminal.result(f"ledger: {len(entries)} lines, {state}{last}")
    if tenures:
        ledger_report.show_tenures(tenures)
    events = [asdict(event) for event in found.events if args.task in (None, event.task)]
    if events:
        ledger_report.show_events(events)
    elif broken is None:
        terminal.note("no task was ever switched" if args.task is None else f"{args.task!r} was never switched")
