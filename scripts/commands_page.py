"""The reference of all commands, as Markdown, from the parsers themselves.

docs/reference/commands.md has what comes before, and a line `<!-- commands -->` in the place of the rest. Its comments
`<!-- for brise tune: examples tickets.jsonl -->` say what the examples of a command need when a test runs them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from brise.cli.main import build_parser

MARKER = "<!-- commands -->"
NEEDS = re.compile(r"^<!-- for (brise[\w ]*): (.*) -->\n", re.MULTILINE)
GUIDE = re.compile(r"docs/guides/(\w+)\.md(#[\w-]+)?")


def expand(text: str) -> str:
    """The page with the commands in the place of its marker."""
    needs = NEEDS.findall(text)
    sections = "\n".join(section(name, parser, [what for command, what in needs if _is_part(name, command)])
                         for name, parser in walk(build_parser(), "brise"))
    return NEEDS.sub("", text).replace(MARKER, sections)


def walk(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser and those of its sub-commands, by what is typed."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from walk(child, f"{name} {word}")


def section(name: str, parser: argparse.ArgumentParser, needs: list[str]) -> str:
    """One command: what it does, examples, and a table of its options."""
    lines = [f"## `{name}`", "", prose(parser.description or ""), "", "<!-- new folder -->",
             *(f"<!-- given: {what} -->" for what in needs), "", "```console",
             *(f"$ {line}" for line in examples(parser)), "```", ""]
    rows = [f"| {' '.join(f'`{form}`' for form in forms(action))}{value(action)} | {cell(action.help or '')} |"
            for action in arguments(parser)]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options and positional arguments, without --help."""
    return [action for action in parser._actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)]


def forms(action: argparse.Action) -> tuple[str, ...]:
    """How an argument is written: all forms of an option, or the name of a positional argument."""
    return tuple(action.option_strings) or (str(action.metavar),)


def value(action: argparse.Action) -> str:
    """What follows an option: the name of its value, or the values that it may have."""
    if not action.option_strings or action.nargs == 0:
        return ""
    if action.metavar is None and action.choices is not None:
        return " " + "\\|".join(map(str, action.choices))
    return " " + _escaped(str(action.metavar or action.dest.upper()))


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The indented lines at the end of a command's help."""
    return [line.strip() for line in (parser.epilog or "").splitlines() if line.startswith("  ")]


def prose(text: str) -> str:
    """A description as paragraphs, with links to the guides."""
    return "\n\n".join(_linked(_escaped(line)) for line in text.splitlines())


def cell(text: str) -> str:
    """The help of an option in a table."""
    return _linked(_escaped(text.replace("%%", "%")))


def _linked(text: str) -> str:
    return GUIDE.sub(lambda found: f"[{found[1]}](../guides/{found[1]}.md{found[2] or ''})", text)


def _escaped(text: str) -> str:
    """Text in which Markdown sees nothing but its code spans; a bar would end the cell of a table even there."""
    return "`".join(re.sub(r"[|<\[]", r"\\\g<0>", part) if at % 2 == 0 else part.replace("|", "\\|")
                    for at, part in enumerate(text.split("`")))


def _is_part(name: str, command: str) -> bool:
    return name == command or name.startswith(f"{command} ")
