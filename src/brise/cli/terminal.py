"""Output of commands: results go to stdout, everything else to stderr; half characters become U+FFFD.

Names of models, tensors and keys come from files that nobody checked, so no line holds a control character.
"""

from __future__ import annotations

import sys

from brise.text.json_text import mended_text
from brise.watch import size_text


def result(text: str) -> None:
    """Writes a line of the result."""
    sys.stdout.write(harmless(text) + "\n")


def stream(text: str) -> None:
    """Writes a piece of the result, visible at once."""
    sys.stdout.write(mended_text(text))
    sys.stdout.flush()


def stream_safely(text: str) -> None:
    """`stream` for text of a model, which must not send commands to the terminal."""
    stream(harmless(text))


def harmless(text: str) -> str:
    """The text with control characters replaced by visible ones, so that it cannot control a terminal."""
    return "".join(chr(0x2400 + ord(char)) if char < " " and char not in "\n\t" else
                   "\ufffd" if "\x7f" <= char <= "\x9f" else char for char in mended_text(text))


def aside(text: str) -> None:
    """Writes a piece of a model's reasoning to stderr, dimmed on a terminal."""
    sys.stdout.flush()
    sys.stderr.write(f"\x1b[2m{harmless(text)}\x1b[22m" if sys.stderr.isatty() else mended_text(text))
    sys.stderr.flush()


def note(text: str) -> None:
    """Writes a line to stderr: progress, advice or an error."""
    sys.stdout.flush()  # keeps the two streams in order on a terminal
    sys.stderr.write(harmless(text) + "\n")
    sys.stderr.flush()


def size(num_bytes: int) -> str:
    """98362432 as '98.4 MB'."""
    return size_text(num_bytes)
