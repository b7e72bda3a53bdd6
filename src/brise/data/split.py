"""Choosing the held-out examples: whole conversations, and the same ones however many examples are appended.

A hash of the seed and the conversation's name decides its side. Rows with the same prompt join the side of the first
of them, whatever their conversation, so that nothing held out is trained on. A row whose conversation is on one side
and whose prompt is on the other is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brise.data import identity
from brise.data.example import TrainingExample
from brise.errors import EvidenceError
from brise.files.digests import hash_draw


@dataclass(frozen=True)
class Split:
    """Indices of examples, in order."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    left_out: tuple[int, ...] = ()  # between the sides


def split(examples: Sequence[TrainingExample], seed: int, share: float, count: int | None = None) -> Split:
    """Holds out about this share of the conversations, or the fewest that have `count` examples.

    With a share, appended examples never move earlier ones; with a count they may.
    """
    leaders = _leaders(examples)
    keys = {name: _fraction(seed, name) for pair in leaders for name in pair}
    limit = share if count is None else _limit_for([keys[first] for first, _ in leaders], count)
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, (first, second) in enumerate(leaders):
        is_held_out = keys[first] < limit
        sides[2 if (keys[second] < limit) != is_held_out else int(is_held_out)].append(index)
    return Split(*map(tuple, sides))


def _leaders(examples: Sequence[TrainingExample]) -> list[tuple[str, str]]:
    """For each example the conversations that decide the side of its conversation and of its prompt."""
    by_conversation: dict[str, str] = {}
    by_prompt: dict[bytes, str] = {}
    leaders: list[tuple[str, str]] = []
    for example in examples:
        name, prompt = example.conversation, identity.prompt(example)
        of_prompt = by_prompt.get(prompt, by_conversation.get(name, name))
        of_conversation = by_conversation.setdefault(name, of_prompt)
        by_prompt.setdefault(prompt, of_prompt)
        leaders.append((of_conversation, of_prompt))
    return leaders


def _fraction(seed: int, name: str) -> float:
    """A number in [0, 1) that depends on the seed and the name only."""
    return hash_draw(f"{seed}\0{name}")


def _limit_for(keys: Sequence[float], count: int) -> float:
    """The limit below which at least `count` examples fall."""
    if not 0 <= count < len(keys):
        raise EvidenceError(f"{count} examples are to be held out; there are {len(keys)}, and some must be left to "
                            "train on")
    ordered = sorted(keys)
    return math.nextafter(ordered[count - 1], 2) if count else 0.0
