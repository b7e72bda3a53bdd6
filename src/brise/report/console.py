"""Shows a document in a terminal: the same words, tables and figures as its page, charts as rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from brise.report.document import (
    Bullets,
    Cell,
    Code,
    Conclusion,
    Document,
    Figure,
    FigureRow,
    KeyFigures,
    Mark,
    Note,
    Paragraph,
    Part,
    ReportTable,
    Status,
    sign,
)

WIDTH = 110
_STYLES: Mapping[Status, str] = MappingProxyType({"good": "green", "bad": "red", "unsure": "yellow"})


def show(document: Document) -> None:
    """The title and what a reader in a hurry needs, then one section after the other."""
    console = Console(width=WIDTH, highlight=False)
    console.print(Text(document.title, style="bold"))
    console.print(Text(document.lead), soft_wrap=True)
    _print(console, document.top)
    for section in document.sections:
        console.print(Text(f"\n{section.title}", style="bold"))
        _print(console, section.parts)


def show_parts(parts: Iterable[Part]) -> None:
    """Parts without a document around them."""
    _print(Console(width=WIDTH, highlight=False), parts)


def _print(console: Console, parts: Iterable[Part]) -> None:
    for part in parts:
        for shown in _shown(part):
            console.print(shown, soft_wrap=isinstance(shown, Text))


def _shown(part: Part) -> Sequence[RenderableType]:
    """What rich prints for a part."""
    match part:
        case Conclusion():
            return [_conclusion(part)]
        case KeyFigures():
            return [Text(f"{what}: {value}" + (f" {about}" if about else "")) for what, value, about in part.items]
        case Paragraph() | Note():
            return [Text(part.text)]
        case Bullets():
            return [Text(f"- {item}") for item in part.items]
        case ReportTable():
            return [_table(part)] if part.rows else []
        case Figure():
            return _figure(part)
        case FigureRow():
            return [shown for figure in part.figures for shown in _figure(figure)]


def _conclusion(found: Conclusion) -> Panel:
    style = _STYLES[found.status]
    return Panel(Text("\n".join(found.reasons)), title=Text(found.headline, style=f"bold {style}"), border_style=style,
                 title_align="left")


def _table(found: ReportTable) -> Table:
    right = frozenset(found.numeric)
    table = Table(show_header=any(found.columns), caption=Text(found.caption) if found.caption else None,
                  caption_justify="left")
    for number, name in enumerate(found.columns):
        table.add_column(Text(name), justify="right" if number in right else "left")
    for row in found.rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(cell: Cell) -> Text:
    match cell:
        case Mark():
            return Text(f"{sign(cell.status)} {cell.text}", style=_STYLES[cell.status])
        case Code():
            return Text(cell.text)
        case _:
            return Text(cell)


def _figure(figure: Figure) -> list[Text]:
    """A chart as rows of text; nothing if its values are in a table beside it."""
    rows = figure.chart.text()
    width = max((len(name) for name, _ in rows), default=0)
    title = [Text(figure.title, style="italic")] if rows else []
    return title + [Text(f"  {name:<{width}}  {text}") for name, text in rows]
