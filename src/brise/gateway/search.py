"""Text in bodies. Bodies are sealed, so a search opens each of them: an index of words would give them away."""

from __future__ import annotations

from brise.text.protocols import texts_of


def holds(body: object, text: str) -> bool:
    """Whether a string in the body, or a field's name, holds the text, without regard to case."""
    wanted = text.casefold()
    return any(wanted in found.casefold() for found in texts_of(body))
