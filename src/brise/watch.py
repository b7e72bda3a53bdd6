"""What work that takes minutes tells whoever watches it: notes in words, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]  # so many more bytes, tokens or rows are done


class Watcher(Protocol):
    """Shows what happens. The command line shows it on stderr; a program may keep it, or leave it to `Silent`."""

    def note(self, text: str) -> None:
        """A line that is no result: what was left out, what begins."""

    def progress(self, task: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Surrounds a task of `total` bytes, tokens, rows or prompts; the task calls what it gets with each part."""


class Silent:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None:
        """See Watcher."""

    @contextmanager
    def progress(self, task: str, total: int, unit: str) -> Iterator[Advance]:
        """See Watcher."""
        yield lambda count: None


SILENT: Watcher = Silent()


def size_text(num_bytes: int) -> str:
    """98362432 as '98.4 MB'."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
