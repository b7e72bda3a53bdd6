"""`brise report`: quality, cost, latency, reliability and control of a task, what is not known, and what to do."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from brise import settings
from brise.cli import number_types, terminal
from brise.errors import UnsupportedError
from brise.hub.store import ModelStore, locate
from brise.report import figures, html, report, report_page, traffic
from brise.report.availability import REFERENCE
from brise.report.control import Model, model_of
from brise.report.quality import WORDS
from brise.report.report import SwitchReport
from brise.report.report_page import NAMES, TONES, control_lines, cost_lines, day
from brise.traffic import prices
from brise.traffic.prices import Prices, read_prices
from brise.traffic.stores import open_store


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
        html.write(args.html, report_page.html(made))
    if args.json:
        terminal.result(json.dumps(report.to_json(made), indent=1, allow_nan=False))
    else:
        show(made)
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
    return model_of(locate(args.model, ModelStore(home)), args.adapter)


_STYLES = (("good", "green"), ("bad", "red"), ("unsure", "yellow"))
WIDTH = 110


def show(report: SwitchReport) -> None:
    """The recommendation first, then what it stands on, then what is not known."""
    console = Console(width=WIDTH, highlight=False)
    traffic, advice = report.traffic, report.advice
    style = dict(_STYLES)[TONES[advice.choice]]
    lines = [*advice.reasons, *([f"next: {advice.next}"] if advice.next else [])]
    console.print(Panel(Text("\n".join(lines)), title=Text(advice.headline, style=f"bold {style}"), border_style=style,
                        title_align="left"))
    console.print(Text(f"{traffic.task}: {figures.count(len(traffic.exchanges))} requests in "
                       f"{figures.count(traffic.conversations)} conversations from {day(traffic.exchanges[0].at_s)}, "
                       f"over {figures.seconds(traffic.seconds)}"), soft_wrap=True)
    for table in (_quality(report), _cost(report), _latency(report), _reliability(report), _control(report)):
        console.print(table)
    for line in [*cost_lines(report), *control_lines(report)]:
        console.print(Text(line))
    console.print(Text("\nWhat this report does not know", style="bold"))
    for one in report.unknowns:
        console.print(Text(f"- {one.what}" + (f"  ({one.learn})" if one.learn else "")))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", caption=Text(caption) if caption else None,
                  caption_justify="left")
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _quality(report: SwitchReport) -> Table:
    rung, gap = report.qualities.label_source, report.qualities.difference
    rows = [[NAMES[name], figures.percent(found.estimate), figures.interval(found.low, found.high),
             figures.count(found.rows), figures.count(found.conversations)]
            for name, found in report.qualities.systems.items()]
    if report.classical is not None:
        one = report.classical
        rows.append([one["name"], figures.percent(one["estimate"]), figures.interval(one["low"], one["high"]),
                     figures.count(one["rows"]), ""])
    if gap is not None:
        rows.append(["small less hosted, same requests", figures.points(gap.estimate),
                     figures.interval(gap.low, gap.high), figures.count(gap.rows), figures.count(gap.conversations)])
    return _table("Quality", ["", "right answers", "95 % interval", "answers", "conversations"], rows,
                  f"label source: {WORDS[rung]}" if rung else "label source: none")


def _cost(report: SwitchReport) -> Table:
    rows = [[NAMES[name], figures.usd(None if cost.usd is None else 1000 * cost.usd), figures.usd(cost.hosted_usd),
             figures.usd(cost.power_usd), figures.usd(cost.machine_usd), figures.seconds(cost.busy_s)]
            for name, cost in report.costs.systems.items()]
    return _table("Cost", ["", "1,000 requests", "a request: hosted tokens", "electricity", "machine", "machine busy"],
                  rows)


def _latency(report: SwitchReport) -> Table:
    rows = [[NAMES[name], figures.count(found.count), *(figures.seconds(value) for value in (
        found.p50, found.p95, found.p99, found.first_p50))] for name, found in report.waits.items()]
    return _table("Latency", ["", "answers", "p50", "p95", "p99", "first token p50"], rows)


def _reliability(report: SwitchReport) -> Table:
    found = report.availability
    return _table("Reliability", ["requests", "answered", "by the hosted model alone", "degraded", "failed", "outages"],
                  [[figures.count(found.requests), figures.percent(found.answered, 3),
                    figures.percent(found.hosted_alone, 3), figures.percent(found.degraded, 3),
                    figures.count(found.failed), figures.count(len(found.outages))]],
                  f"30 minutes of outage in 14 days are {100 * REFERENCE:.2f} %")


def _control(report: SwitchReport) -> Table:
    rows = [[one.name, figures.count(one.requests), figures.percent(one.share)]
            for one in report.control.destinations]
    rows.append(["this machine alone", figures.count(round(report.control.stayed * len(report.traffic.exchanges))),
                 figures.percent(report.control.stayed)])
    return _table("Control", ["content of requests went to", "requests", "share"], rows)
