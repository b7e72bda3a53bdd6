"""Which pairs count: the time that was asked for, and what came after the last change within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brise.errors import EvidenceError
from brise.prove.changes import Change, changes
from brise.prove.pairs import Pair, in_order


@dataclass(frozen=True)
class Chosen:
    """The pairs in the order of time, what was left out and why, and the changes that were found."""

    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[int, str], ...]
    changes: tuple[Change, ...]


def choose(pairs: Sequence[Pair], since_s: float | None = None, until_s: float | None = None, *,
           any_context: bool = False) -> Chosen:
    """EvidenceError if nothing is left."""
    ordered = in_order(pairs)
    within = tuple(pair for pair in ordered if _is_within(pair, since_s, until_s))
    left_out = [(len(ordered) - len(within), "outside of --since and --until")]
    if not within:
        raise EvidenceError(f"none of {len(ordered)} pairs was asked between --since and --until")
    found = changes(within, any_context=any_context)
    if found:
        start = found[-1].number
        left_out.append((start, f"before the last change ({found[-1].what}); what was shown with another says nothing"))
        within = within[start:]
    return Chosen(within, tuple(item for item in left_out if item[0]), found)


def _is_within(pair: Pair, since_s: float | None, until_s: float | None) -> bool:
    if since_s is None and until_s is None:
        return True
    if pair.at_s is None:
        raise EvidenceError(f"{pair.place} has no time", hint="--since and --until need 'at' in every row of the log")
    return (since_s is None or pair.at_s >= since_s) and (until_s is None or pair.at_s < until_s)
