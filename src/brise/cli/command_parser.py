"""The parsers of all commands: help that keeps its paragraphs, and examples one a line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A parser of one command. Options are never abbreviated, so that a new one changes no script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Paragraphs, "allow_abbrev": False, **options})


class Paragraphs(argparse.HelpFormatter):
    """Wraps each paragraph of a text for itself, and leaves indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width, initial_indent=indent)
                         for line in text.splitlines())


def examples(*lines: str) -> str:
    """The end of a command's help: what one types, as the reference and its tests read it again."""
    return "\n".join(("examples:" if len(lines) > 1 else "example:", *(f"  {line}" for line in lines)))


def parsed(add_parser: Callable[[argparse._SubParsersAction[argparse.ArgumentParser]], None],
           *words: str) -> argparse.Namespace:
    """What a command with these words means, with all its defaults."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(words)
