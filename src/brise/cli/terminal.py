"""What is written where: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys

from brise.watch import size_text


def result(text: str) -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")


def stream(text: str) -> None:
    """A piece of the result that shall be seen at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def stream_safely(text: str) -> None:
    """`stream`, but a model cannot send commands to the terminal: control characters become visible signs."""
    stream(harmless(text))


def harmless(text: str) -> str:
    """Text that is no command to a terminal."""
    return "".join(chr(0x2400 + ord(char)) if char < " " and char not in "\n\t" else
                   "\ufffd" if "\x7f" <= char <= "\x9f" else char for char in text)


def aside(text: str) -> None:
    """A piece of what the model thinks: no result, dim where that can be seen."""
    sys.stdout.flush()
    sys.stderr.write(f"\x1b[2m{harmless(text)}\x1b[22m" if sys.stderr.isatty() else text)
    sys.stderr.flush()


def note(text: str) -> None:
    """A line that is not the result: progress, advice, an error."""
    sys.stdout.flush()  # so that the two streams stay in order on a terminal
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def size(num_bytes: int) -> str:
    """98362432 as '98.4 MB'."""
    return size_text(num_bytes)
