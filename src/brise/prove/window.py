"""The window: which pairs count. Those asked in the time that was named, and since the last change within it.

A change is a new system prompt, other tools, or another version of the large model. What was shown before it says
nothing of what comes after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brise.errors import EvidenceError
from brise.prove.pairs import Pair, in_order


@dataclass(frozen=True)
class Change:
    """At `at_s`, before the pair at `place`, all that was in use of `what` was replaced by something else."""

    what: str
    at_s: float | None
    place: str
    number: int  # of pairs before it


@dataclass(frozen=True)
class Chosen:
    """The pairs in the order of time, what was left out and why, and the changes that were found."""

    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[int, str], ...]
    changes: tuple[Change, ...]


def choose(pairs: Sequence[Pair], since_s: float | None = None, until_s: float | None = None, *,
           any_context: bool = False) -> Chosen:
    """The pairs that count; EvidenceError if nothing is left."""
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


def changes(pairs: Sequence[Pair], *, any_context: bool) -> tuple[Change, ...]:
    """Every point after which nothing of what stood before is seen again; `pairs` in the order of time.

    Two system prompts that are used by turns are no change; both are covered.
    """
    found = _cuts(pairs, "the large model", [large_model_of(pair) for pair in pairs])
    if not any_context:
        found += _cuts(pairs, "system prompt or tools", [pair.context for pair in pairs])
    return tuple(sorted(found, key=lambda change: change.number))


def large_model_of(pair: Pair) -> str:
    """Name and fingerprint of the large model, as far as they are known."""
    return " ".join(part for part in (pair.large.model, pair.large.fingerprint) if part)


def _is_within(pair: Pair, since_s: float | None, until_s: float | None) -> bool:
    if since_s is None and until_s is None:
        return True
    if pair.at_s is None:
        raise EvidenceError(f"{pair.place} has no time", hint="--since and --until need 'at' in every row of the log")
    return (since_s is None or pair.at_s >= since_s) and (until_s is None or pair.at_s < until_s)


def _cuts(pairs: Sequence[Pair], what: str, names: Sequence[str]) -> list[Change]:
    last = {name: at for at, name in enumerate(names)}
    found, end = list[Change](), -1
    for at, name in enumerate(names):
        if at > end and at:
            found.append(Change(what, pairs[at].at_s, pairs[at].place, at))
        end = max(end, last[name])
    return found
