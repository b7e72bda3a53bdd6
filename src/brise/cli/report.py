"""`brise report`: quality, cost, latency, reliability and control of a task, what is not known, and what to do."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

from brise import settings
from brise.checkpoint.store import Store, locate
from brise.cli import number_types, report_tables, terminal
from brise.errors import UnsupportedError
from brise.evidence import page, report, report_page, traffic
from brise.evidence.control import Model, model_of
from brise.gateway import prices
from brise.gateway.prices import Prices, read_prices
from brise.gateway.stores import open_store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "report", help="say what a task's models cost and are worth, and what to do", allow_abbrev=False,
        description="From the captured traffic: quality, cost, latency, reliability and control of the hosted model, "
                    "the small one, and both together; what is not known; and a recommendation, which may be to stay "
                    "on the large model.",
        epilog="example: brise report --task tickets --html report.html")
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
    home, now_s = settings.read().home, time.time()
    rates = _prices(args.prices, home)
    model = _model(args, home)
    with closing(open_store(args.store, home, must_exist=True)) as store:
        found = traffic.read(store, args.task, None if args.days is None else now_s - args.days * 86400)
    made = report.make(found, rates, model, now_s)
    if args.html is not None:
        page.write(args.html, report_page.html(made))
    if args.json:
        terminal.result(json.dumps(report.to_json(made), indent=1, allow_nan=False))
    else:
        report_tables.show(made)
    if args.html is not None:
        terminal.note(f"page: {args.html}")
    return 0


def _prices(path: Path | None, home: Path) -> Prices:
    if path is not None:
        return read_prices(path)
    usual = prices.default_place(home)
    return read_prices(usual) if usual.exists() else Prices()


def _model(args: argparse.Namespace, home: Path) -> Model | None:
    if args.model is None:
        if args.adapter is not None:
            raise UnsupportedError("--adapter is given without the model that it is for", hint="--model MODEL")
        return None
    return model_of(locate(args.model, Store(home)), args.adapter)
