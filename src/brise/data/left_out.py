"""Rows that were left out, counted by reason: one form of it for every command that reads or writes rows."""

from __future__ import annotations

from collections import Counter

from brise.errors import RequestError

NUM_REASONS = 10  # that are named on a terminal


class LeftOutError(RequestError):
    """A row is as it should be, and all the same nothing to learn from or to compare with."""


class LeftOut(Counter[str]):
    """How many rows were left out, by reason."""

    def lines(self) -> list[str]:
        """For a terminal, the most frequent first."""
        rest = self.most_common()[NUM_REASONS:]
        more = [f"  left out {sum(number for _, number in rest)} for {len(rest)} other reasons"] if rest else []
        return [*(f"  left out {number}: {reason}" for reason, number in self.most_common(NUM_REASONS)), *more]

    def to_json(self) -> list[dict[str, object]]:
        """For machines."""
        return [{"rows": number, "why": reason} for reason, number in self.most_common()]

