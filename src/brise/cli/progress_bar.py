"""A bar on stderr for work that takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
import rich.progress

from brise.cli import terminal

Advance = Callable[[int], None]


@contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar of `total` bytes or tokens on a terminal, to be told each step; elsewhere one line for the whole work."""
    console = rich.console.Console(stderr=True)
    columns = (rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()) if unit == "bytes" else (
        rich.progress.MofNCompleteColumn(), rich.progress.TextColumn(unit))
    progress = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(), *columns,
        rich.progress.TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    if not console.is_terminal:
        terminal.note(f"{what}: {terminal.size(total) if unit == 'bytes' else f'{total} {unit}'}")
    with progress:
        task = progress.add_task(what, total=total)
        yield lambda step: progress.advance(task, step)
