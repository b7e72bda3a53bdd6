"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from brise.evidence import figures
from brise.evidence.availability import REFERENCE
from brise.evidence.quality import WORDS
from brise.evidence.report import Report
from brise.evidence.report_page import NAMES, TONES, control_lines, cost_lines, day

_STYLES = (("good", "green"), ("bad", "red"), ("unsure", "yellow"))
WIDTH = 110


def show(report: Report) -> None:
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


def _quality(report: Report) -> Table:
    rung, gap = report.qualities.rung, report.qualities.difference
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


def _cost(report: Report) -> Table:
    rows = [[NAMES[name], figures.usd(None if cost.usd is None else 1000 * cost.usd), figures.usd(cost.hosted_usd),
             figures.usd(cost.power_usd), figures.usd(cost.machine_usd), figures.seconds(cost.busy_s)]
            for name, cost in report.costs.systems.items()]
    return _table("Cost", ["", "1,000 requests", "a request: hosted tokens", "electricity", "machine", "machine busy"],
                  rows)


def _latency(report: Report) -> Table:
    rows = [[NAMES[name], figures.count(found.count), *(figures.seconds(value) for value in (
        found.p50, found.p95, found.p99, found.first_p50))] for name, found in report.waits.items()]
    return _table("Latency", ["", "answers", "p50", "p95", "p99", "first token p50"], rows)


def _reliability(report: Report) -> Table:
    found = report.availability
    return _table("Reliability", ["requests", "answered", "by the hosted model alone", "degraded", "failed", "outages"],
                  [[figures.count(found.requests), figures.percent(found.answered, 3),
                    figures.percent(found.hosted_alone, 3), figures.percent(found.degraded, 3),
                    figures.count(found.failed), figures.count(len(found.outages))]],
                  f"30 minutes of outage in 14 days are {100 * REFERENCE:.2f} %")


def _control(report: Report) -> Table:
    rows = [[one.name, figures.count(one.requests), figures.percent(one.share)]
            for one in report.control.destinations]
    rows.append(["this machine alone", figures.count(round(report.control.stayed * len(report.traffic.exchanges))),
                 figures.percent(report.control.stayed)])
    return _table("Control", ["content of requests went to", "requests", "share"], rows)
