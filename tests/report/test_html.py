"""Pages: escaped, closed, self-contained."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup

from brise.errors import OutputError
from brise.report import html as page
from tests.report.html import seen, words

EVIL = "<script>alert('x')</script>&\"quotes\""


def evil_page() -> str:
    parts = [page.table([EVIL], [[EVIL]], caption=EVIL), page.bullets([EVIL]), page.details(EVIL, EVIL),
             page.paragraph(EVIL), page.note(EVIL), page.heading(EVIL), page.figure(EVIL, Markup("<svg></svg>"), EVIL)]
    return page.page(EVIL, EVIL, [page.Section(EVIL, parts)], foot=EVIL,
                     top=[page.verdict("bad", EVIL, EVIL), page.numbers([(EVIL, EVIL, EVIL)])])


def test_what_users_and_models_wrote_stays_text() -> None:
    found = seen(evil_page())
    assert not [tag for tag, _ in found.elements if tag == "script"]
    assert " ".join(found.text).count("alert('x')") == 21


def test_nothing_is_fetched_or_run() -> None:
    elements = seen(evil_page()).elements
    assert not [tag for tag, _ in elements if tag in ("script", "link", "img", "iframe", "object")]
    assert not [attributes for _, attributes in elements if {"src", "href", "onload", "onclick"} & attributes.keys()]
    assert "url(" not in page.STYLE and "@import" not in page.STYLE


def test_a_status_has_a_sign_beside_its_colour() -> None:
    signs = {words(str(page.mark(status, "it")))[0] for status in ("good", "bad", "unsure")}  # type: ignore[arg-type]
    assert len(signs) == 3


def test_the_first_column_names_the_row() -> None:
    html = page.table(["who", "cost"], [["small", "$1"]], numeric=[1])
    scopes = [(tag, attributes.get("scope"), attributes.get("class")) for tag, attributes in seen(html).elements
              if tag in ("th", "td")]
    assert scopes == [("th", "col", None), ("th", "col", "n"), ("th", "row", None), ("td", None, "n")]


def test_a_page_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    page.write(path, "one")
    page.write(path, "two")
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="report.html"):
        page.write(tmp_path / "file" / "report.html", "one")
