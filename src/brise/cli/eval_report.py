"""The report of `brise eval` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MOST_FIELDS = 10
# Figures that are no shares of 1: shown as they are.
PLAIN = frozenset({"perplexity", "nll_per_answer", "tokens_per_answer"})


def show(report: Mapping[str, Any]) -> None:
    """Figures with intervals, beside another system's where there is one; then what one must know to read them."""
    console, against = Console(width=110, highlight=False), report["against"]
    console.print(Text(f"{report['system']}: {report['examples']} examples, {report['conversations']} conversations",
                       style="bold"))
    table = Table()
    table.add_column("figure")
    table.add_column("estimate", justify="right")
    table.add_column("95 % interval", justify="right")
    if against is not None:
        table.add_column(Text(f"{against['system']}"), justify="right")
        table.add_column("difference", justify="right")
        table.add_column("95 % interval", justify="right")
    for name, figure in report["figures"].items():
        table.add_row(name, *_cells(name, figure), *_difference(name, against))
    console.print(table)
    if report["fields"]:
        console.print(_fields(report["fields"]))
    for line in _notes(report, against):
        console.print(Text(line), soft_wrap=True)


def _fields(fields: Sequence[Mapping[str, Any]]) -> Table:
    """The fields that references have most often."""
    table = Table()
    table.add_column(Text(f"field, {min(len(fields), MOST_FIELDS)} of {len(fields)}"))
    for name in ("in references", "in answers", "right", "F1"):
        table.add_column(name, justify="right")
    for field in fields[:MOST_FIELDS]:
        table.add_row(Text(field["name"]), str(field["wanted"]), str(field["given"]), str(field["right"]),
                      _value("f1", field["f1"]))
    return table


def _difference(name: str, against: Mapping[str, Any] | None) -> tuple[str, ...]:
    if against is None:
        return ()
    found = against["figures"].get(name)
    if found is None:
        return "", "", ""
    return (_value(name, found["other"]), *_cells(name, found["difference"], signed=True))


def _cells(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> tuple[str, str]:
    low, high = figure["low"], figure["high"]
    interval = figure["interval"] if low is None else f"{_value(name, low, signed)} to {_value(name, high, signed)}"
    return _value(name, figure["estimate"], signed), interval


def _value(name: str, value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if name in PLAIN:
        return f"{value:{sign}.3f}"
    return f"{100 * value:{sign}.1f} %" if -1 <= value <= 1 else f"{value:{sign}.4g}"


def _notes(report: Mapping[str, Any], against: Mapping[str, Any] | None) -> list[str]:
    figures = [*report["figures"].values()]
    if against is not None:
        figures += [figure["difference"] for figure in against["figures"].values()]
    methods = sorted({figure["interval"] for figure in figures if figure["low"] is not None})
    lines = [f"score: {report['score']} ({report['chosen']}): {report['definition']}", f"labels: {report['labels']}",
             f"intervals: {'; '.join(methods) or 'none'}"]
    if against is not None:
        lines.append(f"compared on {against['examples']} examples that both answered")
    if report["errors"]["number"]:
        counted = "are left out" if report["score"] == "perplexity" else "count as wrong"
        lines.append(f"{report['errors']['number']} examples got no answer and {counted}:")
        lines += [f"  {item['times']} x {item['reason']}" for item in report["errors"]["reasons"]]
    if report["cut"]:
        lines.append(f"{report['cut']} answers were cut by --max-tokens")
    if report["confusions"]:
        lines.append("most frequent mistakes (reference: answer):")
        lines += [f"  {item['times']} x {item['reference']}: {item['answer']!r}" for item in report["confusions"]]
    if report["kept"]:
        lines.append(f"{report['kept']} answers are from an earlier run")
    if report["asked"]:
        lines.append(f"time: {report['seconds']:.1f} s for {report['asked']} answers")
    return lines
