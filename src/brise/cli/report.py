"""`brise report` says what a task's models cost and are worth, what is not known, and what to do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brise.cli import number_types, terminal
from brise.cli.command_parser import examples
from brise.report import console, html, report
from brise.report.report import ReportOptions
from brise.report.summary import summarize
from brise.report.switch_document import switch_document
from brise.traffic import prices


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "report", help="say what a task's models cost and are worth, and what to do", allow_abbrev=False,
        description="Say of a task, from the captured traffic, what its answers are worth, what they cost, how long "
                    "they take, how often there was none, and where data went: for the large model, the small one, "
                    "both together, and a classical baseline. Then what is not known, and a recommendation, which may "
                    "be to stay on the large model. docs/guides/report.md defines each figure and the rules of the "
                    "recommendation, and describes prices.toml and the JSON.",
        epilog=examples("brise report --task tickets --html report.html",
                        "brise report --task tickets --model smollm2 --adapter tickets-smollm2/adapter --days 14 "
                        "--json"))
    parser.add_argument("--task", metavar="TASK", help="which task (default: the only one that the store has)")
    parser.add_argument("--store", metavar="PLACE", help="the store: a path, or postgresql://... (default: "
                                                         "BRISE_HOME/gateway/traffic.sqlite)")
    parser.add_argument("--prices", metavar="FILE", type=Path,
                        help=f"what tokens and the machine cost (default: BRISE_HOME/gateway/{prices.FILE}, if it is "
                             "there)")
    parser.add_argument("--model", metavar="MODEL", help="the small model, for its licence and origin")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, help="its adapter, for what it was trained on")
    parser.add_argument("--days", metavar="N", type=number_types.days, help="only the last N days (default: all)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the report as a page, too")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    made = report.run(ReportOptions(args.task, args.store, args.prices, args.model, args.adapter, args.days))
    if args.html is not None:
        html.write(args.html, html.page(switch_document(made)))
    if args.json:
        summary = summarize(made).to_json()
        terminal.result(json.dumps({**report.to_json(made), "summary": summary}, indent=1, allow_nan=False))
    else:
        console.show(switch_document(made))
    if args.html is not None:
        terminal.note(f"page: {args.html}")
    return 0
