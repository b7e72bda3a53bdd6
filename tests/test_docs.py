"""The reference of commands says what the command line says: commands, options, defaults, examples, and no more."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import commands_page
from brise import settings
from brise.cli import chat_commands, chat_options
from brise.cli.main import build_parser
from tests.docs import pages

TEXT = pages.read(pages.COMMANDS)
SECTIONS = tuple(re.findall(r"^## `(brise[^`]*)`\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
EXAMPLES = tuple(line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
                 for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE))
PARSERS = dict(commands_page.walk(build_parser(), "brise"))


def arguments(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options and positional arguments by the name that the documentation gives them, without --help."""
    return {commands_page.forms(action)[0]: action for action in commands_page.arguments(parser)}


def rows(text: str, heading: str) -> dict[str, str]:
    """The table under `heading`: first word in backticks -> the line."""
    table = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n?)*)", text, re.MULTILINE)
    lines = table[1].splitlines() if table else []
    return {re.match(r"\| `([^`]+)`", line)[1]: line for line in lines}  # type: ignore[index]


def test_every_command_has_its_section_and_no_other_is_there() -> None:
    assert [name for name, _ in SECTIONS] == list(PARSERS)


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_every_option_is_documented_and_every_documented_one_is_there(name: str, text: str) -> None:
    assert list(rows(text, "option")) == list(arguments(PARSERS[name]))


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_defaults_are_documented(name: str, text: str) -> None:
    table = rows(text, "option")
    for option, action in arguments(PARSERS[name]).items():
        match action.default:
            case bool() | None | argparse.SUPPRESS:
                continue
            case list() | tuple():
                shown = ",".join(map(str, action.default))
            case float():
                shown = f"{action.default:g}"
            case _:
                shown = str(action.default)
        if shown:
            assert f"(default: {shown})" in table[option]


def test_every_option_and_command_has_help() -> None:
    for name, parser in PARSERS.items():
        assert parser.description, name
        for option, action in arguments(parser).items():
            assert action.help, f"{name} {option}"


def test_every_command_shows_an_example() -> None:
    leaves = [name for name in PARSERS if not any(other.startswith(f"{name} ") for other in PARSERS)]
    for name in leaves:
        assert any(f"{name} " in f"{example} " for example in EXAMPLES), name
        assert "example" in (PARSERS[name].epilog or ""), name


def test_chat_commands_and_settings_are_documented() -> None:
    chat = pages.read("docs/guides/chat.md")
    assert tuple(rows(chat, "in the chat")) == chat_commands.names()
    for option in chat_options.options():
        assert f"`{option.name}`" in rows(chat, "in the chat")["/set"]


def test_environment_variables_are_documented() -> None:
    source = Path(settings.__file__).read_text(encoding="utf-8")
    assert set(rows(TEXT, "environment variable")) == {
        "OTEL_*", *re.findall(r'"(BRISE_\w+)"', source)}


def test_links_of_help_lead_to_guides() -> None:
    for name, parser in PARSERS.items():
        for text in (parser.description or "", *(action.help or "" for action in parser._actions)):
            for guide, anchor in commands_page.GUIDE.findall(text):
                page = pages.read(f"docs/guides/{guide}.md")
                headings = {heading_id(line) for line in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
                assert not anchor or anchor in headings, f"{name}: {guide}.md{anchor}"


def heading_id(heading: str) -> str:
    """As both GitHub and the site make it."""
    return "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
