"""Hooks of mkdocs: pages that lie outside docs/, links between them, and no resource of another host.

The Markdown files of the repository are written to be read where they lie, and a link in them is a path from one file
to another. The site moves some files, so links are rewritten to where their targets are on the site. A link to a file
that is not on the site (a source, a script) keeps its text only.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import commands_page  # beside this file

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
HOME = "README.md"
OUTSIDE = (HOME, "ARCHITECTURE.md", "STYLE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "bench/README.md",
           "examples/README.md")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - the tests import this file without mkdocs
    for name in OUTSIDE:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, site_path(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the commands into their page, and rewrites the links of every page, outside code blocks."""
    if commands_page.MARKER in markdown:
        markdown = commands_page.expand(markdown)
    def replace(match: re.Match[str]) -> str:
        return moved(match, page.file.src_uri, lambda path: files.get_file_from_path(path) is not None)
    pieces = FENCE.split(markdown)
    return "".join(piece if piece.startswith("```") else LINK.sub(replace, piece) for piece in pieces)


def on_post_build(config: MkDocsConfig) -> None:
    """Fails if a page would load anything from another host."""
    from mkdocs.exceptions import PluginError  # noqa: PLC0415
    wrong = foreign_resources(Path(config.site_dir))
    if wrong:
        raise PluginError("the site loads from other hosts:\n" + "\n".join(wrong))


def site_path(name: str) -> str:
    """Where a file of the repository is on the site: docs/guides/tune.md is guides/tune.md."""
    if name == HOME:
        return "index.md"
    return name.removeprefix("docs/")


def repository_path(src_uri: str) -> str:
    """Where a page of the site lies in the repository: the other way round."""
    outside = {site_path(name): name for name in OUTSIDE}
    return outside.get(src_uri, f"docs/{src_uri}")


def moved(match: re.Match[str], src_uri: str, is_on_site: Callable[[str], bool]) -> str:
    """A Markdown link, with the target where the site has it; the text alone if the site does not have it."""
    bang, text, target = match.groups()
    path, hash_, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return match[0]
    absolute = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(src_uri)), path))
    if not (ROOT / absolute).exists() and not is_on_site(site_path(absolute)):
        return match[0]  # a mistake: mkdocs reports it
    if not is_on_site(site_path(absolute)):
        return text
    return f"{bang}[{text}]({posixpath.relpath(site_path(absolute), posixpath.dirname(src_uri) or '.')}{hash_}{anchor})"


class _Resources(HTMLParser):
    """Collects what a page loads by itself: not the links that a reader may follow."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        names = {"link": ("href",), "a": (), "form": ("action",)}.get(tag, ("src", "srcset", "data", "poster"))
        if tag == "link" and given.get("rel") in ("canonical", "prev", "next"):
            names = ()
        self.urls += [value for name in names if (value := given.get(name))]


def foreign_resources(site: Path) -> list[str]:
    """`page: url` for everything in HTML and CSS that would be loaded from another host."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            parser = _Resources()
            parser.feed(path.read_text(encoding="utf-8"))
            urls = parser.urls
        elif path.suffix == ".css":
            text = path.read_text(encoding="utf-8")
            urls = re.findall(r"url\(['\"]?([^)'\"]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)
        else:
            continue
        found += [f"{path.relative_to(site)}: {url}" for url in urls if re.match(r"(?:[a-z]+:)?//", url)]
    return found
