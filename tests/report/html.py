"""Reading a page as a browser would: what is fetched, what is run, what stands where."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

# Elements without an end, as HTML says.
VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})


@dataclass
class Seen(HTMLParser):
    """All elements of a page, and whether they close in order."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(data)


def seen(html: str) -> Seen:
    """The page, read; an element that does not close is a failure."""
    reader = Seen()
    reader.feed(html)
    reader.close()
    assert not reader._open, f"these stay open: {reader._open}"
    return reader


def words(html: str) -> str:
    """What a reader sees, blanks squeezed."""
    return " ".join(" ".join(seen(html).text).split())
