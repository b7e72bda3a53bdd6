"""Text that memory plans share: what a sum is made of, and what would fit instead."""

from __future__ import annotations

from collections.abc import Iterable

from brise.watch import size_text


def size(nbytes: int) -> str:
    """Gigabytes with two decimals: what is left over may be small."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 995_000_000 else size_text(nbytes)


def numbers(parts: Iterable[tuple[str, int]]) -> str:
    """The parts of a plan's sum on one line, those of 0 bytes left out."""
    return ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, nbytes in parts if nbytes)


def fitting(suggestions: Iterable[tuple[str, int]]) -> str | None:
    """The hint of an error: options that would fit, with the bytes that they take; None if there are none."""
    text = "; or ".join(f"{options} ({nbytes / 1e6:.0f} MB)" for options, nbytes in suggestions)
    return f"what fits: {text}" if text else None
