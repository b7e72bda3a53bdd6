"""Documents of reports as JSON, for the page to show: the same parts as in the terminal and in HTML files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

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
    sign,
)

SVG = "{http://www.w3.org/2000/svg}"


def to_json(document: Document) -> dict[str, Any]:
    """A document with its sections."""
    return {"title": document.title, "lead": document.lead, "top": parts_json(document.top), "sections": [
        {"title": section.title, "parts": parts_json(section.parts)} for section in document.sections]}


def parts_json(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts in their order; `kind` says which."""
    return [_part(part) for part in parts]


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Conclusion():
            return {"kind": "conclusion", "status": part.status, "sign": sign(part.status),
                    "headline": part.headline, "reasons": list(part.reasons)}
        case KeyFigures():
            return {"kind": "figures", "items": [list(item) for item in part.items]}
        case Paragraph():
            return {"kind": "paragraph", "text": part.text}
        case Note():
            return {"kind": "note", "text": part.text}
        case Bullets():
            return {"kind": "bullets", "items": list(part.items)}
        case ReportTable():
            return {"kind": "table", "columns": list(part.columns), "numeric": sorted(set(part.numeric)),
                    "caption": part.caption, "rows": [[_cell(cell) for cell in row] for row in part.rows]}
        case Figure():
            return {"kind": "figure", "title": part.title, "caption": part.caption, "chart": _chart(part)}
        case FigureRow():
            return {"kind": "row", "parts": parts_json(part.figures)}


def _cell(cell: Cell) -> str | dict[str, str]:
    match cell:
        case Mark():
            return {"status": cell.status, "sign": sign(cell.status), "text": cell.text}
        case Code():
            return {"code": cell.text}
        case _:
            return cell


def _chart(figure: Figure) -> list[Any]:
    """The chart's SVG as [tag, attributes, children]: the page makes elements of it, and parses no text."""
    return _element(ElementTree.fromstring(str(figure.chart.svg())))


def _element(element: ElementTree.Element) -> list[Any]:
    children: list[Any] = [element.text] if element.text else []
    for child in element:
        children.append(_element(child))
        if child.tail:
            children.append(child.tail)
    return [element.tag.removeprefix(SVG), dict(element.attrib), children]
