"""What was left out of a request is said in the answer: under `brise` in the body, and in a header."""

from __future__ import annotations

from collections.abc import Mapping

from brise.serve.generation import Entry
from brise.text.fields import Ignored

HEADER = "x-brise-ignored"
MAX_HEADER = 256  # characters; clients refuse long lines


def report(ignored: Ignored | None) -> Entry:
    """The object under `brise`, empty if everything was honoured."""
    return {"ignored": dict(ignored.reasons)} if ignored is not None and ignored.reasons else {}


def ignored_header(ignored: Ignored | None) -> Mapping[str, str]:
    """The header with the paths of the fields."""
    if ignored is None or not ignored.reasons:
        return {}
    return {HEADER: header_text(", ".join(ignored.reasons))}


def header_text(text: str) -> str:
    """Text that may stand in a header: printable ASCII, and cut."""
    shown = text.encode("ascii", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in shown)[:MAX_HEADER]
