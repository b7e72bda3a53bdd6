"""Reading what a person types: several lines, editing and history (readline), Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import readline
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brise.cli import terminal

FENCE = '"""'
MAX_HISTORY_LINES = 1000


@dataclass(frozen=True)
class Typed:
    """One input. A block between fences is always a message, also if it begins with a slash."""

    text: str
    is_block: bool = False


class LineReader:
    """Reads from the terminal, with the history of earlier chats; `close` writes it back."""

    def __init__(self, history: Path, words: Sequence[str]) -> None:
        self._history = history
        self._words = tuple(words)
        readline.set_completer(self._complete)
        readline.set_completer_delims("\n")
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        readline.set_auto_history(True)
        for line in _read_history(history):
            readline.add_history(line)

    def read(self) -> Typed:
        """The next input; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C, which drops what was begun."""
        line = _line("> ")
        if line.strip() == FENCE:
            lines = []
            while (line := _line(". ")).strip() != FENCE:
                lines.append(line)
            return Typed("\n".join(lines), is_block=True)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(_line(". "))
        return Typed("\n".join(lines))

    def close(self) -> None:
        lines = [readline.get_history_item(number) or ""
                 for number in range(1, readline.get_current_history_length() + 1)]
        try:
            _write_history(self._history, lines[-MAX_HISTORY_LINES:])
        except OSError as error:  # a full disk must not turn a good chat into a failure
            terminal.note(f"brise: the history was not saved: {error}")

    def _complete(self, text: str, state: int) -> str | None:
        fits = [word for word in self._words if text and word.startswith(text)]
        return fits[state] if state < len(fits) else None


def _line(prompt: str) -> str:
    """One line. If the answers go into a file, the prompt must not: it goes to stderr."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


def _read_history(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-MAX_HISTORY_LINES:]
    except OSError:
        return []


def _write_history(path: Path, lines: Sequence[str]) -> None:
    """Written anew and renamed, readable by its owner only: people paste secrets into chats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    text = "".join(line.replace("\n", " ") + "\n" for line in lines if line.strip())
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8",
              errors="replace") as file:
        file.write(text)
    os.replace(staged, path)
