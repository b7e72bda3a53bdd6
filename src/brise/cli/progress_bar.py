"""The terminal as a watcher: notes on stderr, and a bar for work that takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
import rich.progress

from brise.cli import terminal
from brise.watch import Advance, running_clock


@contextmanager
def bar(task: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar of `total` bytes or tokens on a terminal; elsewhere one line for the whole task."""
    with running_clock() as clock, progress_of(unit, clock) as progress:
        if not progress.console.is_terminal:
            terminal.note(f"{task}: {terminal.size(total) if unit == 'bytes' else f'{total} {unit}'}")
        number = progress.add_task(task, total=total)
        yield lambda step: progress.advance(number, step)


def progress_of(unit: str, clock: Callable[[], float]) -> rich.progress.Progress:
    """A bar whose speed and time left are by this clock."""
    console = rich.console.Console(stderr=True)
    columns = (rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()) if unit == "bytes" else (
        rich.progress.MofNCompleteColumn(), rich.progress.TextColumn(unit))
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(), *columns,
        rich.progress.TimeRemainingColumn(), console=console, disable=not console.is_terminal, get_time=clock)


class TerminalWatcher:
    """Shows the notes and progress of a use case on stderr (brise.watch.Watcher)."""

    def note(self, text: str) -> None:
        """Writes a line."""
        terminal.note(text)

    @contextmanager
    def progress(self, task: str, total: int, unit: str) -> Iterator[Advance]:
        """Shows a bar."""
        with bar(task, total, unit) as advance:
            yield advance
