"""A report as a document: a verdict, sections, tables, charts and notes. Pages and terminals show the same one.

`html.py` makes a page of it, `console.py` shows it in a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from brise.report.charts import Chart

Status = Literal["good", "bad", "unsure"]
# A sign beside the colour, for those who do not see it.
_SIGNS: Mapping[Status, str] = MappingProxyType({"good": "\u2713", "bad": "\u2717", "unsure": "?"})


@dataclass(frozen=True)
class Mark:
    """A word with a status, for a table's cell."""

    status: Status
    text: str


@dataclass(frozen=True)
class Code:
    """A command or a name."""

    text: str


Cell = str | Mark | Code


@dataclass(frozen=True)
class Conclusion:
    """The conclusion of the report, and its reasons."""

    status: Status
    headline: str
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class KeyFigures:
    """Figures that stand out: name, value and a word about it."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Note:
    """Small print."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class ReportTable:
    """A table whose first column names the row. Columns in `numeric` are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Iterable[int] = ()
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with its title above and what it says below."""

    title: str
    chart: Chart
    caption: str = ""


@dataclass(frozen=True)
class FigureRow:
    """Figures side by side where there is room."""

    figures: Sequence[Figure]


Part = Conclusion | KeyFigures | Paragraph | Note | Bullets | ReportTable | Figure | FigureRow


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Document:
    """A whole report. `top` comes before the first heading: it is for a reader in a hurry."""

    title: str
    lead: str
    sections: Sequence[Section] = ()
    top: Sequence[Part] = ()
    foot: str = ""


def sign(status: Status) -> str:
    """The sign of a status."""
    return _SIGNS[status]
