"""Pages: escaped, closed, self-contained."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from brise.errors import OutputError
from brise.report import html
from brise.report.charts import Axis, BarChart, ChartBar
from brise.report.document import (
    Bullets,
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
    Section,
    Status,
)
from tests.report.html import seen, words

EVIL = "<script>alert('x')</script>&\"quotes\""


def evil_page() -> str:
    """Every part of a document, with it in every place."""
    figure = Figure(EVIL, BarChart(EVIL, EVIL, [ChartBar(EVIL, 1.0, EVIL)], Axis(EVIL)), EVIL)
    parts: list[Part] = [
        ReportTable([EVIL], [[EVIL], [Mark("bad", EVIL)], [Code(EVIL)]], caption=EVIL), Bullets([EVIL]),
        Paragraph(EVIL), Note(EVIL), figure, FigureRow([figure])]
    top: list[Part] = [Conclusion("bad", EVIL, [EVIL]), KeyFigures([(EVIL, EVIL, EVIL)])]
    return html.page(Document(EVIL, EVIL, [Section(EVIL, parts)], top, EVIL))


def test_what_users_and_models_wrote_stays_text() -> None:
    found = seen(evil_page())
    assert not [tag for tag, _ in found.elements if tag == "script"]
    assert " ".join(found.text).count("alert('x')") == 4 + 5 + 1 + 3 + 2 * 7 + 5


def test_nothing_is_fetched_or_run() -> None:
    elements = seen(evil_page()).elements
    assert not [tag for tag, _ in elements if tag in ("script", "link", "img", "iframe", "object")]
    assert not [attributes for _, attributes in elements if {"src", "href", "onload", "onclick"} & attributes.keys()]
    assert "url(" not in html.components() and "@import" not in html.components()


def test_a_status_has_a_sign_beside_its_colour() -> None:
    marks = [html.part(ReportTable(["what"], [[Mark(status, "it")]])) for status in get_args(Status)]
    assert len({words(mark).split()[1] for mark in marks}) == 3


def test_the_first_column_names_the_row() -> None:
    table = html.part(ReportTable(["who", "cost"], [["small", "$1"]], numeric=[1]))
    scopes = [(tag, attributes.get("scope"), attributes.get("class")) for tag, attributes in seen(table).elements
              if tag in ("th", "td")]
    assert scopes == [("th", "col", None), ("th", "col", "n"), ("th", "row", None), ("td", None, "n")]


def test_a_page_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    html.write(path, "one")
    html.write(path, "two")
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="report.html"):
        html.write(tmp_path / "file" / "report.html", "one")
