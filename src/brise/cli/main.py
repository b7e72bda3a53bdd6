"""The command `brise`. Each subcommand is a file of this package, imported only when it is run."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn, Protocol, cast

from brise import __version__, settings
from brise.cli import terminal
from brise.cli.command_parser import CommandParser, examples, unknown_word
from brise.errors import BriseError

COMMANDS: Mapping[str, str] = {
    "pull": "get a model into the local store",
    "models": "list, search, show and remove models",
    "plan": "say what a model takes in memory",
    "chat": "talk to a model in the terminal",
    "serve": "serve models over the OpenAI HTTP API",
    "keys": "make keys with budgets and limits for a gateway's clients",
    "deploy": "print files that run several servers",
    "servers": "list the servers that share a store",
    "ship": "sign a proven model, with what proves it, for many devices",
    "fleet": "keys, roll-outs and devices of a fleet",
    "hub": "run the hub of a fleet of devices",
    "node": "run a device of a fleet, with updates that are tried first",
    "quantize": "write a model in fewer bits",
    "export": "write a model for other programs",
    "tune": "train a model on your examples",
    "parity": "compare what is served with what was trained",
    "prove": "test whether the small model may take over",
    "label": "say which of two answers is good",
    "cascade": "certify which answers of a small model may be kept",
    "triage": "label rows with a guarantee, and leave the rest to a person",
    "switch": "put a proven small model in the large one's place, and back",
    "audit": "check the ledger, and show what audits have found",
    "eval": "measure a model's answers on your data",
    "log": "look at captured traffic, label, export and forget it",
    "bench": "measure a model on this machine",
    "act": "train, fly and measure models that move robots",
    "report": "say what a task's models cost and are worth, and what to do",
    "doctor": "examine this machine, and prove that nothing leaves it",
    "demo": "see all of it work on this machine, in minutes",
}
FIRST_STEPS = (
    "Earn the switch from a large hosted model to a small one that you own: run small models in a stated memory limit, "
    "tune them on your examples, and put a gateway before the hosted model that learns when a small one may take over."
    """

first steps:
  brise pull smollm2       get a small model (98 MB, Apache-2.0)
  brise chat smollm2       talk to it
  brise serve smollm2      serve it: OpenAI's API on http://127.0.0.1:8080/v1

`brise help COMMAND` says more of a command, and `brise demo` shows all of them at work.""")
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
BROKEN_PIPE = 141  # 128 + SIGPIPE
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # as when stdout is a file on a full disk


class Command(Protocol):
    """What the file of a subcommand defines."""

    def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: locales cannot encode everything
    settings.share_cores()
    if words[:1] in (["chat"], ["serve"]):
        settings.one_blas_thread()
    try:
        args = parse(words)  # exits here on --help, --version and wrong usage
        status = _load(args.command).run(args)
        sys.stdout.flush()
        return status
    except BriseError as error:
        terminal.note(f"brise: error: {error}")
        return 1
    except KeyboardInterrupt:
        terminal.note("")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout is gone (`brise models | head -1`)
        _drop_stdout()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        _drop_stdout()
        terminal.note(f"brise: error: {error.strerror}")
        return 1


def _drop_stdout() -> None:
    """Replaces stdout: at exit Python would try again to write what is left, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads the command line. The words of a question may stand before, between and after options.

    argparse alone returns words after an option as unknown. After `--`, everything is a word.
    """
    words = _asked_for_help(words)
    parser = build_parser([name for name in words[:1] if name in COMMANDS])
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        parser.error(unknown_word("there is no", "command", words[0], COMMANDS))
    args, rest = parser.parse_known_args(words)
    at = rest.index("--") if "--" in rest else len(rest)
    free, literal = rest[:at], rest[at + 1:]
    unknown = rest if "words" not in args else [word for word in free if word.startswith("-") and word != "-"]
    if unknown:
        _refuse(parser, words, unknown)
    if rest:
        args.words = [*args.words, *free, *literal]
    return args


def _asked_for_help(words: Sequence[str]) -> Sequence[str]:
    """`brise`, `brise help [COMMAND [ACTION]]`, `brise COMMAND help` and `brise version` in argparse's words."""
    match list(words):
        case [] | ["help"]:
            return ["--help"]
        case ["version"]:
            return ["--version"]
        case ["help", *names]:
            return [*(name for name in names if not name.startswith("-")), "--help"]
        case [*names, "help"] if _are_actions(names) and not os.path.exists("help"):
            return [*names, "--help"]
    return words


def _are_actions(names: Sequence[str]) -> bool:
    """Whether these words are a command, or a command and its action. A question may end with any word."""
    if len(names) != 2 or names[0] not in COMMANDS:
        return len(names) == 1 and names[0] in COMMANDS
    parser = build_parser(names[:1])
    return _parser_of(parser, names) is not _parser_of(parser, names[:1])


def _refuse(parser: argparse.ArgumentParser, words: Sequence[str], unknown: Sequence[str]) -> NoReturn:
    """Ends with an error that names what is not known, and the nearest option."""
    own = _parser_of(parser, words)
    name = next((word.partition("=")[0] for word in unknown if word.startswith("--")), None)
    if name is None:
        own.error(f"unrecognized arguments: {' '.join(unknown)}")
    near = difflib.get_close_matches(name, own._option_string_actions, 1)
    own.error(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _parser_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command and action that the words begin with."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            return _parser_of(action.choices[words[0]], words[1:])
    return parser


def build_parser(wanted: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser with the options of the `wanted` commands, and only the summaries of the others."""
    parser = CommandParser(
        prog="brise", description=FIRST_STEPS,
        epilog=examples("brise --version", "brise plan smollm2 && brise chat smollm2"))
    parser.add_argument("--version", action="version", version=f"brise {__version__}", help="print the version")
    subparsers = cast("argparse._SubParsersAction[argparse.ArgumentParser]",
                      parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
    for name, summary in COMMANDS.items():
        if name in wanted:
            _load(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _load(name: str) -> Command:
    return cast(Command, importlib.import_module(f"brise.cli.{name}"))
