"""docs/reference/commands.md says what the command line says: commands, options, defaults, examples, and no more."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from brise import settings
from brise.cli import chat_commands, chat_options
from brise.cli.main import build_parser, main, parse
from brise.traffic.stores import open_store
from tests.checkpoint import make_folder
from tests.checkpoint.make_gguf import write_tiny
from tests.traffic.records import exchange

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
SECTIONS = tuple(re.findall(r"^## `(brise[^`]*)`\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
EXAMPLES = tuple(line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
                 for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE))
SHORTER: Mapping[str, Sequence[str]] = {"chat": ("--max-tokens", "4"), "tune": ("--steps", "2")}


def walk(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser and those of its sub-commands."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from walk(child, f"{name} {word}")


PARSERS = dict(walk(build_parser(), "brise"))


def arguments(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options and positional arguments by the name that the documentation gives them, without --help."""
    return {str(action.option_strings[-1] if action.option_strings else action.metavar): action
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)}


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
    chat = dict(SECTIONS)["brise chat"]
    assert tuple(rows(chat, "in the chat")) == chat_commands.names()
    for option in chat_options.options():
        assert f"`{option.name}`" in rows(chat, "in the chat")["/set"]


def test_environment_variables_are_documented() -> None:
    source = Path(settings.__file__).read_text(encoding="utf-8")
    assert set(rows(TEXT, "environment variable")) == set(re.findall(r'"(BRISE_\w+)"', source))


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_valid(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are parsed; those that need no network and no terminal run, with a tiny model for the real one."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(example.rpartition("| brise ")[2].removeprefix("brise "))
    if words == ["--version"]:
        return
    parse(words)
    is_parsed_only = example in ("brise chat smollm2", "brise pull smollm2") or "hf:" in example or "--image" in example
    if words[0] in ("report", "demo", "cascade", "audit"):  # they need captured traffic
        return
    if is_parsed_only or words[0] in ("serve", "bench", "parity", "prove", "label", "eval"):
        return
    (tmp_path / "tickets.jsonl").write_text("".join(
        json.dumps({"prompt": f"ticket {number}", "completion": "yes" if number % 2 else "no"}) + "\n"
        for number in range(20)))
    if words[0] == "log":
        write_traffic(tmp_path, tmp_path / "home")
    write_tiny(tmp_path / "mine.gguf", "llama")
    make_folder.write_hf(tmp_path / "mine", make_folder.tiny("llama_tied"))
    assert main(["pull", "mine.gguf", "--name", "smollm2"]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    assert main([*words, *SHORTER.get(words[0], ())]) == 0


def write_traffic(folder: Path, home: Path) -> None:
    """A captured exchange by the ID that the examples name, and a file to import."""
    (folder / "traces.jsonl").write_text(json.dumps({"messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}) + "\n")
    with closing(open_store(None, home)) as store:
        store.add([exchange("019ac2f4d1a0c0ffee00000000000001", task="triage", subject="anna")])
