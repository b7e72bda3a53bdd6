"""Changes within the window: a new system prompt, other tools, another version of the large model.

What was shown before a change says nothing of what comes after it. So only the pairs since the last one count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brise.prove.pairs import Pair


@dataclass(frozen=True)
class Change:
    """At `at_s`, before the pair at `place`, all that was in use of `what` was replaced by something else."""

    what: str
    at_s: float | None
    place: str
    number: int  # of pairs before it


def changes(pairs: Sequence[Pair], *, any_context: bool) -> tuple[Change, ...]:
    """Every point at which nothing of what stood before is seen again after it; `pairs` in the order of time.

    Two system prompts that are used by turns are no change; they are both covered.
    """
    found = _cuts(pairs, "the large model", [teacher_of(pair) for pair in pairs])
    if not any_context:
        found += _cuts(pairs, "system prompt or tools", [pair.context for pair in pairs])
    return tuple(sorted(found, key=lambda change: change.number))


def teacher_of(pair: Pair) -> str:
    """Name and fingerprint of the large model, as far as they are known."""
    return " ".join(part for part in (pair.large.model, pair.large.fingerprint) if part)


def _cuts(pairs: Sequence[Pair], what: str, names: Sequence[str]) -> list[Change]:
    last = {name: at for at, name in enumerate(names)}
    found, end = list[Change](), -1
    for at, name in enumerate(names):
        if at > end and at:
            found.append(Change(what, pairs[at].at_s, pairs[at].place, at))
        end = max(end, last[name])
    return found
