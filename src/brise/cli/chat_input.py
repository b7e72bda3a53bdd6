"""Input of a chat at the terminal: several lines, editing and history (readline), Ctrl-C and Ctrl-D.

What is typed while an answer is printed would stand in the middle of it, and a line of it would be the next question.
So the terminal shows none of it then, and the next prompt begins with it, for its writer to go on with or to send.
"""

from __future__ import annotations

import os
import re
import readline
import select
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brise.cli import terminal

FENCE = '"""'
MAX_HISTORY_LINES = 1000
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?")  # what arrows and other keys send
_LINE_ENDS = re.compile(r"[\r\n\t]+")


@dataclass(frozen=True)
class Typed:
    """One input. A block between fences is a message even if it begins with a slash."""

    text: str
    is_block: bool = False


class LineReader:
    """Reads input from the terminal, with the history of earlier chats; `close` saves the history."""

    def __init__(self, history: Path, words: Sequence[str]) -> None:
        self._history = history
        self._words = tuple(words)
        self._ahead = b""  # typed while an answer was printed
        readline.set_completer(self._complete)
        readline.set_completer_delims("\n")
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        readline.set_auto_history(True)
        for line in _read_history(history):
            readline.add_history(line)

    def read(self) -> Typed:
        """The next input; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C, which discards what was typed."""
        ahead, self._ahead = edited(self._ahead.decode("utf-8", "replace")), b""
        readline.set_startup_hook((lambda: readline.insert_text(ahead)) if ahead else None)
        try:
            line = _line("> ")
        finally:
            readline.set_startup_hook(None)
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

    @contextmanager
    def hold_back(self) -> Iterator[None]:
        """Keeps what is typed meanwhile for the next prompt, and its echo off the terminal."""
        if not sys.stdin.isatty() or not sys.stdout.isatty():
            yield
            return
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        silent = termios.tcgetattr(descriptor)
        # Without NOFLSH a Ctrl-C would throw away what was typed before it.
        silent[3] = silent[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
        termios.tcsetattr(descriptor, termios.TCSANOW, silent)
        try:
            yield
        finally:
            self._ahead += _pending(descriptor)
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    def close(self) -> None:
        lines = [readline.get_history_item(number) or ""
                 for number in range(1, readline.get_current_history_length() + 1)]
        try:
            _write_history(self._history, lines[-MAX_HISTORY_LINES:])
        except OSError as error:  # a full disk must not make the chat fail
            terminal.note(f"brise: the history was not saved: {error}")

    def _complete(self, text: str, state: int) -> str | None:
        matches = [word for word in self._words if text and word.startswith(text)]
        return matches[state] if state < len(matches) else None


def edited(typed: str) -> str:
    """What a line would hold after these keys: Backspace, Ctrl-W and Ctrl-U delete, other control keys do nothing."""
    text = ""
    for char in _LINE_ENDS.sub(" ", _ESCAPES.sub("", typed)):
        match char:
            case "\x08" | "\x7f":
                text = text[:-1]
            case "\x15":
                text = ""
            case "\x17":
                text = text[:text.rstrip().rfind(" ") + 1]
            case _ if char >= " ":
                text += char
    return text.strip()


def _pending(descriptor: int) -> bytes:
    """What has been typed and not been read."""
    data = b""
    while select.select([descriptor], [], [], 0)[0] and (more := os.read(descriptor, 4096)):
        data += more
    return data


def _line(prompt: str) -> str:
    """Reads one line. The prompt goes to stderr if stdout is a file, which gets answers only."""
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
    """Writes a new file and renames it. Only its owner can read it, because people paste secrets into chats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    text = "".join(line.replace("\n", " ") + "\n" for line in lines if line.strip())
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8",
              errors="replace") as file:
        file.write(text)
    os.replace(staged, path)
