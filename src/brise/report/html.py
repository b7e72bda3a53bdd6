"""Makes an HTML page of a document, in one file: no scripts, nothing fetched, light and dark, for screens and paper.

Everything that goes into a page is escaped by markupsafe, unless it is Markup, which only this file and charts.py make.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup

from brise.files.atomic import output_errors, private_folder, staged_file
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
    Section,
    sign,
)
from brise.text.json_text import mended_text

# A browser that reads this fetches nothing and runs nothing, whatever stands in the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(document: Document, refresh_s: int | None = None) -> str:
    """A whole page, which a browser loads again every `refresh_s` seconds."""
    again = Markup('<meta http-equiv="refresh" content="{}">').format(refresh_s) if refresh_s is not None else ""
    return Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="generator" content="brise">{again}<title>{title}</title><style>{style}</style></head>\n'
        '<body><main><header><h1>{title}</h1><p class="lead">{lead}</p></header>\n{top}\n{body}\n'
        '<footer>{foot}</footer></main></body></html>\n').format(
            policy=_POLICY, again=again, title=document.title, style=Markup(components()), lead=document.lead,
            top=Markup("\n").join(map(part, document.top)), body=Markup("").join(map(_section, document.sections)),
            foot=document.foot)


def components() -> str:
    """The style sheet of the parts of a document, which the page in the browser uses, too."""
    return (Path(__file__).parent / "components.css").read_text(encoding="utf-8")


def part(of: Part) -> Markup:
    """One part of a document."""
    match of:
        case Conclusion():
            return _conclusion(of)
        case KeyFigures():
            return _key_figures(of)
        case Paragraph():
            return Markup("<p>{}</p>").format(of.text)
        case Note():
            return Markup('<p class="note">{}</p>').format(of.text)
        case Bullets():
            return Markup("<ul>{}</ul>").format(_all(Markup("<li>{}</li>").format(item) for item in of.items))
        case ReportTable():
            return _table(of)
        case Figure():
            return _figure(of)
        case FigureRow():
            return Markup('<div class="charts">{}</div>').format(_all(map(_figure, of.figures)))


def write(path: Path, html: str) -> None:
    """Writes a page in place of the one before: a reader sees the old one or the new one."""
    with output_errors(path):
        private_folder(path.parent)
    body = mended_text(html).encode()
    with staged_file(path, len(body), mode=0o600, replaces=True) as file:
        file.write(body)


def _all(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _section(section: Section) -> Markup:
    return Markup("<section><h2>{}</h2>{}</section>").format(section.title, Markup("\n").join(map(part, section.parts)))


def _conclusion(found: Conclusion) -> Markup:
    lines = _all(Markup("<p>{}</p>").format(reason) for reason in found.reasons)
    return Markup('<div class="verdict {}"><strong>{} {}</strong>{}</div>').format(
        found.status, sign(found.status), found.headline, lines)


def _key_figures(found: KeyFigures) -> Markup:
    cells = _all(
        Markup("<div><dt>{}</dt><dd>{}{}</dd></div>").format(
            what, value, Markup("<small>{}</small>").format(about) if about else "")
        for what, value, about in found.items)
    return Markup('<dl class="numbers">{}</dl>').format(cells)


def _table(table: ReportTable) -> Markup:
    right = frozenset(table.numeric)

    def cells(texts: Sequence[Cell], *, is_head: bool) -> Markup:
        out = Markup("")
        for index, text in enumerate(texts):
            tag = Markup("td" if index and not is_head else "th")
            scope = Markup(' scope="col"' if is_head else ' scope="row"' if index == 0 else "")
            out += Markup("<{0}{1}{2}>{3}</{0}>").format(
                tag, scope, Markup(' class="n"' if index in right else ""), _cell(text))
        return Markup("<tr>{}</tr>").format(out)

    head = cells(table.columns, is_head=True)
    body = _all(cells(row, is_head=False) for row in table.rows)
    about = Markup("<caption>{}</caption>").format(table.caption) if table.caption else ""
    return Markup('<div class="scroll"><table>{}<thead>{}</thead><tbody>{}</tbody></table></div>').format(
        about, head, body)


def _cell(cell: Cell) -> str | Markup:
    match cell:
        case Mark():
            return Markup('<span class="mark {}">{} {}</span>').format(cell.status, sign(cell.status), cell.text)
        case Code():
            return Markup("<code>{}</code>").format(cell.text) if cell.text else ""
        case _:
            return cell


def _figure(figure: Figure) -> Markup:
    return Markup("<figure><h3>{}</h3>{}{}</figure>").format(
        figure.title, figure.chart.svg(),
        Markup("<figcaption>{}</figcaption>").format(figure.caption) if figure.caption else "")
