"""The parsers of all commands: help that keeps its paragraphs, and examples one a line."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

MAX_USAGE_LINES = 6  # of a command's usage before an error; a longer one hides what is wrong


class CommandParser(argparse.ArgumentParser):
    """A parser of one command. Options are never abbreviated, so that a new one changes no script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Paragraphs, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Ends with status 2: a short usage, what is wrong, an example, and where the help is."""
        usage = self.format_usage()
        if usage.count("\n") > MAX_USAGE_LINES:
            usage = f"usage: {self.prog} [OPTIONS] ...\n"
        example = next((line for line in (self.epilog or "").splitlines() if line.startswith("  ")), "").strip()
        hint = f"{self.prog} --help" if not example or " " not in self.prog else (
            f"for example: {example}   ({self.prog} --help says more)")
        self.exit(2, f"{usage}{self.prog}: error: {message}\nhint: {hint}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Names the nearest of the actions, in the place of argparse's list of all."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise argparse.ArgumentError(None, unknown_word(f"{self.prog} has no", "action", value, action.choices))
        super()._check_value(action, value)


def unknown_word(start: str, kind: str, word: str, known: Iterable[str]) -> str:
    """The error for a word that is not known: with the nearest one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, 1)
    return f"{start} {kind} {word[:64]!r}; " + (f"did you mean {near[0]!r}?" if near else
                                                f"there are {', '.join(names)}")


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
