"""The report of `brise prove` as tables, and the plan before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.prove import document

WIDTH = 110
STYLES: Mapping[str, str] = {"promote": "bold green", "not good enough": "bold red", "undecided": "bold yellow"}
WORDS: Mapping[str, str] = {"promote": "PROMOTE: the small model may take over",
                            "not good enough": "NOT GOOD ENOUGH: stay on the large model",
                            "undecided": "UNDECIDED: not enough evidence yet, for or against"}
TICKS = "▁▂▃▄▅▆▇█"


def show(found: Mapping[str, Any]) -> None:
    """Verdict first, then the numbers that it stands on."""
    console = Console(width=WIDTH, highlight=False)
    console.print(Text(f"{found['task']}: {found['student']} for {', '.join(found['teachers']) or 'the large model'}",
                       style="bold"))
    console.print(Text(document.plan_words(found)), soft_wrap=True)
    if found["verdict"] is None:
        return
    console.print(Text(WORDS[found["verdict"]], style=STYLES[found["verdict"]]))
    console.print(Text(found["reason"]))
    console.print(_gate(found))
    console.print(_quality(found))
    for table in (_guards(found["guards"]), _slices(found["slices"]), _baselines(found["baselines"])):
        if table.row_count:
            console.print(table)
    for line in _notes(found):
        console.print(Text(line), soft_wrap=True)


def _gate(found: Mapping[str, Any]) -> Text:
    gate = found["gate"]
    return Text(f"evidence K after {gate['units']:,} units: {_number(gate['evidence'])}, most {_number(gate['most'])} "
                f"(promotes at {gate['level']:.1f}); against: {_number(gate['against'])} (ends it at "
                f"{found['terms']['futility']:g})\n{spark(gate['path'])}")


def spark(path: Sequence[float], width: int = 80) -> str:
    """The path on a logarithmic scale from 0.01 to 100, as blocks."""
    chosen = [path[at * len(path) // min(width, len(path))] for at in range(min(width, len(path)))]
    return "".join(TICKS[min(int(len(TICKS) * _height(value)), len(TICKS) - 1)] for value in chosen)


def _height(value: float) -> float:
    return min(max((math.log10(max(value, 1e-9)) + 2) / 4, 0.0), 1.0)


def _quality(found: Mapping[str, Any]) -> Table:
    table = _table("quality", right=("estimate", "95 % interval", "how"))
    for name in ("small", "large", "difference"):
        score = found["scores"][name]
        sign = "+" if name == "difference" else ""
        table.add_row(name, _percent(score["estimate"], sign), _interval(score, sign),
                      score["interval"] if score["low"] is not None else "")
    return table


def _guards(guards: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("also", "claim", right=("small", "large", "evidence", "verdict"))
    for guard in guards:
        show = _percent if guard["name"] in ("valid answers", "refusals") else _plain
        table.add_row(guard["name"], guard["claim"], show(guard["small"]), show(guard["large"]),
                      f"{_number(guard['evidence'])} of {guard['level']:.1f}", document.SHOWN[guard["verdict"]])
    return table


def _slices(slices: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("slice", right=("units", "difference", "evidence", "proven"))
    for one in slices:
        table.add_row(Text(one["name"]), f"{one['units']:,}", _percent(one["mean"], "+"), _number(one["evidence"]),
                      "yes" if one["is_proven"] else "no: escalates")
    return table


def _baselines(baselines: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("beside", "figure", right=("estimate", "95 % interval", "verdict"))
    for one in baselines:
        table.add_row(one["name"], one["what"], _percent(one["estimate"]), _interval(one), one["verdict"] or "")
    return table


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(*left)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _notes(found: Mapping[str, Any]) -> list[str]:
    window = found["window"]
    lines = [f"labels: {found['labels']['source']}", f"score: {found['labels']['definition']}",
             f"promise: {document.promise_words(found)}"]
    if window["since_s"] is not None:
        lines.append(f"window: {document.time_words(window['since_s'])} to {document.time_words(window['until_s'])}; "
                     f"a unit is a {window['unit']}")
    lines += [f"left out: {item['pairs']:,} pairs, {item['why']}" for item in found["left_out"]]
    lines += [f"change: {change['what']}, at {change['place']}" for change in found["changes"]]
    if found["certificate"]:
        lines.append(f"certificate: {found['certificate']}")
    return lines + list(found["notes"])


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f} %"


def _interval(score: Mapping[str, Any], sign: str = "") -> str:
    if score["low"] is None:
        return str(score.get("interval", "-"))
    return f"{_percent(score['low'], sign)} to {_percent(score['high'], sign)}"
