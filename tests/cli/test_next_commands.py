"""Commands that brise tells people to run: each is one that its parser takes, with the options that it has."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import brise
from brise.cli import log, tune_show
from brise.cli.main import COMMANDS, build_parser, parse
from brise.report import report, traffic
from brise.traffic.prices import Prices
from brise.tune.options import TuneOptions
from brise.tune.watch import TuneResult
from tests.prove.planted import TASK, Planted

SOURCES = Path(brise.__file__).parent
COMMAND = re.compile(rf"\bbrise ({'|'.join(COMMANDS)})\b((?:(?!\bbrise )[^;`(])*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def told() -> Iterator[tuple[str, str, str]]:
    """Every command in a text of the sources: where it stands, its name, and the rest of its clause."""
    for path in sorted(SOURCES.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if COMMAND.search(source) else ():
            for text in _texts(node):
                for found in COMMAND.finditer(text):
                    yield f"{path.relative_to(SOURCES)}: {found[0]}", found[1], found[2]


def _texts(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.JoinedStr(values):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in values)
        case ast.Constant(str(text)) if "\n\n" not in text:
            yield text


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a command and of its actions."""
    names = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names = names.union(*map(options_of, action.choices.values()))
    return names


def test_every_option_that_a_text_names_is_one_of_its_command() -> None:
    parsers = next(action.choices for action in build_parser()._actions
                   if isinstance(action, argparse._SubParsersAction))
    known = {name: options_of(parser) for name, parser in parsers.items()}
    places = list(told())
    assert len(places) > 100
    wrong = [where for where, command, rest in places for option in OPTION.findall(re.split(", | -- ", rest)[0])
             if option not in known[command]]
    assert wrong == []


def runs(line: str) -> list[str]:
    """The commands of a line, as the parser has read them."""
    return [parse(shlex.split(each)[1:]).command for each in line.split(" && ")]


@pytest.mark.parametrize("end", ["interrupted", "done"])
def test_what_a_training_run_says_to_do_next_runs(end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my run"
    result = TuneResult(folder, "interrupted", None, None, step=3)  # type: ignore[arg-type]
    if end == "interrupted":
        tune_show.TuneTerminal(as_json=False, is_dry=False).show(TuneOptions((Path("a.jsonl"),), "smollm2"), result)
        said = capsys.readouterr().err.splitlines()
        lines = [line.removeprefix("next: ") for line in said if line.startswith("next: ")]
        assert [runs(line) for line in lines] == [["tune"], ["tune"]]
        return
    done = replace(result, end="done", adapter=folder / "adapter")
    serve = tune_show._words(TuneOptions((Path("a.jsonl"),), "smollm2"), done).rpartition("serve:   ")[2]
    assert runs(serve) == ["serve"]
    assert parse(shlex.split(serve)[1:]).adapter == [("my-run", folder / "adapter")]


def test_what_an_export_of_traffic_says_to_do_next_runs() -> None:
    assert runs(log._evaluated(Path("my rows.jsonl"), "exact")) == ["pull", "eval"]


def test_what_a_report_says_to_find_out_runs(tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    planted.requests(60, right=None)
    found = report.make(traffic.read(planted.store, None), Prices(), None, planted.now_s, store="/a store")
    told_commands = [part for one in found.unknowns for part in re.findall(r"brise [^,;]+", one.learn)]
    assert sorted(command for line in told_commands for command in runs(line)) == ["label", "prove"]
    assert all("--store '/a store'" in line and f"--task {TASK}" in line for line in told_commands)
