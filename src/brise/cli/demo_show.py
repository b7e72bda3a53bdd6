"""What the demo shows: stages, the commands that run, a bar, what was found, and at the end how long all took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import rich.console
import rich.progress
from rich.table import Table
from rich.text import Text

from brise.cli import terminal
from brise.demo.story import Ended, Stage

WIDTH = 110
LINE_S = 10.0  # between lines of progress where there is no terminal
_SIGNS = (("done", "\u2713", "green"), ("skipped", "-", "yellow"), ("failed", "\u2717", "red"))


class Screen:
    """On a terminal a bar that moves; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(), rich.progress.BarColumn(bar_width=28), rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(), rich.progress.TextColumn("{task.description}"), console=self._console,
            transient=True, disable=not self._console.is_terminal)
        self._task: rich.progress.TaskID | None = None
        self._last_s = 0.0

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, number: int, of: int, stage: Stage) -> None:
        """See Teller."""
        self._print(Text(f"\n{number}/{of} {stage.name}: {stage.about}", style="bold"))
        self._task = self._bar.add_task("", total=None)
        self._last_s = time.monotonic()

    def end(self, ended: Ended) -> None:
        """See Teller."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        sign, style = next((sign, style) for name, sign, style in _SIGNS if name == ended.ending)
        self._print(Text(f"  {sign} {ended.ending} in {ended.seconds:.0f} s" + (f": {ended.why}" if ended.why else ""),
                         style=style))

    def command(self, line: str) -> None:
        """See Show."""
        self._print(Text(f"  $ {line}", style="dim"))

    def progress(self, done: float, total: float, note: str) -> None:
        """See Show."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=note)
        if not self._console.is_terminal and time.monotonic() - self._last_s >= LINE_S:
            self._last_s = time.monotonic()
            self._print(Text(f"  ... {done:.0f} of {total:.0f}, {note}"))

    def say(self, line: str) -> None:
        """See Show."""
        self._print(Text(f"  {line}"))

    def text(self, text: str) -> None:
        """See Show."""
        self._console.out(text, highlight=False)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def close(ended: Sequence[Ended], pages: Sequence[Path], kept: Path | None) -> None:
    """How long each stage took, and where the pages are."""
    table = Table(title="The demo, stage by stage", title_justify="left")
    for name in ("stage", "", "seconds"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for one in ended:
        table.add_row(one.name, one.ending, f"{one.seconds:.0f}")
    table.add_row("all", "", f"{sum(one.seconds for one in ended):.0f}")
    rich.console.Console(width=WIDTH, highlight=False).print(table)
    for page in pages:
        terminal.result(f"{page.stem}: {page}")
    if kept is not None:
        terminal.result(f"everything else: {kept.resolve()}")
    terminal.note("The hosted model was simulated; all other numbers are measured on this machine.")
