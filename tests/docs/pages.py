"""The code blocks of README and docs, and what the comments between them ask for.

Three comments, which no reader sees, say what a block needs:

    <!-- given: examples tickets.jsonl -->   the folder has a stand-in: its kind, then the names (see stand_ins.py)
    <!-- file: scorer.py -->                 the next block is not run, but written to this file
    <!-- new folder -->                      what follows starts anew, in another folder

A page without `new folder` is one story: its blocks run in one folder, from top to bottom.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import commands_page

ROOT = Path(__file__).parents[2]
COMMANDS = "docs/reference/commands.md"
LANGUAGES = ("console", "python", "toml", "json", "text")
PAGES = tuple(str(path.relative_to(ROOT)) for path in (
    *sorted(ROOT.glob("*.md")), *(ROOT / name / "README.md" for name in ("bench", "examples")),
    *sorted((ROOT / "docs").rglob("*.md"))))
_PIECE = re.compile(r"^(?:<!-- (?P<word>given:|file:|new folder)(?P<rest>.*?) ?-->$"
                    r"|(?P<indent> *)```(?P<language>.*)\n(?P<code>(?:.*\n)*?)(?P=indent)```$)", re.MULTILINE)


def read(page: str) -> str:
    """The Markdown of a page; of the reference of commands, with the commands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return commands_page.expand(text) if page == COMMANDS else text


@dataclass(frozen=True)
class Block:
    """A fenced block. With a `file`, its text is to be written there."""

    place: str  # docs/guides/tune.md:12
    language: str
    text: str
    file: str | None = None


@dataclass(frozen=True)
class Given:
    """Stand-ins of one kind."""

    place: str
    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class NewFolder:
    """The end of a story."""

    place: str


Step = Block | Given | NewFolder


def steps(page: str, text: str) -> Iterator[Step]:
    """Blocks and comments in their order."""
    file: str | None = None
    for found in _PIECE.finditer(text):
        place = f"{page}:{text.count(chr(10), 0, found.start()) + 1}"
        match found["word"]:
            case "given:":
                kind, *names = found["rest"].split()
                yield Given(place, kind, tuple(names))
            case "new folder":
                yield NewFolder(place)
            case "file:":
                file = found["rest"].strip()
            case _:
                yield Block(place, found["language"], found["code"], file)
                file = None


def commands(block: Block) -> Iterator[str]:
    """Lines after `$ `, with the lines that a backslash joins to them; all other lines are output."""
    lines = iter(block.text.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            continue
        text = line.removeprefix("$ ")
        while text.endswith("\\"):
            text = text.removesuffix("\\").rstrip() + " " + next(lines).strip()
        yield text
