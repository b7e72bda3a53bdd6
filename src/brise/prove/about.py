"""What a proof says of the data behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brise.prove.changes import Change


@dataclass(frozen=True)
class About:
    """What stands around a proof: whose task, where the data lay, what was left out and why."""

    task: str
    source: str
    student: str
    teachers: tuple[str, ...]
    since_s: float | None = None
    until_s: float | None = None
    unit: str = "conversation"
    left_out: Sequence[tuple[int, str]] = ()
    changes: Sequence[Change] = ()
    notes: Sequence[str] = ()
    fingerprint: str | None = None  # of the student, if it is known and there is one
