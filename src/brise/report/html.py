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
# Series colours: Okabe and Ito's, which people with colour blindness tell apart, darkened or lightened to 4.5:1 and
# more against the background.
STYLE = """
:root { --paper:#ffffff; --ink:#1c2127; --soft:#5b6570; --line:#d8dde3; --wash:#f4f6f8;
  --good:#0b6e4f; --bad:#b3261e; --unsure:#8a5a00;
  --c1:#0060a8; --c2:#b34700; --c3:#00795c; --c4:#9a3f79; --c5:#6b5d00; }
@media (prefers-color-scheme: dark) { :root { --paper:#14181d; --ink:#e8ebee; --soft:#a5afba; --line:#39424c;
  --wash:#1d232a; --good:#5fd3a8; --bad:#ff8f86; --unsure:#f0b95b;
  --c1:#6cb8f2; --c2:#f59a5c; --c3:#4fcfaa; --c4:#e29ac8; --c5:#d9c95a; } }
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 46rem; } ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
.lead, .note, figcaption, caption, footer { color: var(--soft); }
.note, figcaption, caption, footer { font-size: .875rem; }
.verdict { border: 1px solid var(--line); border-left: .45rem solid var(--tone); border-radius: .4rem;
  padding: .8rem 1rem; margin: 1.2rem 0; background: var(--wash); }
.verdict strong { display: block; font-size: 1.15rem; line-height: 1.35; color: var(--tone); }
.verdict p { margin: .3rem 0 0; }
.good { --tone: var(--good); } .bad { --tone: var(--bad); } .unsure { --tone: var(--unsure); }
.mark { color: var(--tone); font-weight: 600; white-space: nowrap; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.numbers div { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; break-inside: avoid; }
.numbers dt { font-size: .8125rem; color: var(--soft); } .numbers dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
.numbers small { display: block; font-size: .8125rem; font-weight: 400; color: var(--soft); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; min-width: 60%; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; } tbody th { font-weight: 600; }
th.n, td.n { text-align: right; white-space: nowrap; }
figure { margin: .8rem 0; break-inside: avoid; } figure h3 { margin: 0 0 .4rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .4rem 1.6rem;
  align-items: start; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
svg .soft { fill: var(--soft); } svg .strong { font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .reference { stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 6 4; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 6px; stroke-linejoin: round; }
svg .s1 { --c: var(--c1); } svg .s2 { --c: var(--c2); } svg .s3 { --c: var(--c3); } svg .s4 { --c: var(--c4); }
svg .s5 { --c: var(--c5); }
svg .curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .solid { fill: var(--c); } svg .rule { stroke: var(--c); stroke-width: 2.5; }
svg .open { fill: var(--paper); stroke: var(--c); stroke-width: 2; }
code { font-family: ui-monospace, "Cascadia Code", Menlo, Consolas, monospace; font-size: .92em;
  overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media print { :root { --paper:#fff; --ink:#000; --soft:#444; --line:#bbb; --wash:#fff; --good:#0b6e4f; --bad:#b3261e;
  --unsure:#8a5a00; --c1:#0060a8; --c2:#b34700; --c3:#00795c; --c4:#9a3f79; --c5:#6b5d00; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } }
"""


def page(document: Document) -> str:
    """A whole page."""
    return Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="generator" content="brise"><title>{title}</title><style>{style}</style></head>\n'
        '<body><main><header><h1>{title}</h1><p class="lead">{lead}</p></header>\n{top}\n{body}\n'
        '<footer>{foot}</footer></main></body></html>\n').format(
            policy=_POLICY, title=document.title, style=Markup(STYLE), lead=document.lead,
            top=Markup("\n").join(map(part, document.top)), body=Markup("").join(map(_section, document.sections)),
            foot=document.foot)


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
