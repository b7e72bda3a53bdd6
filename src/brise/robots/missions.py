"""Missions for a drone in words, and what they ask for: gates in an order, a height, a pace, and where to end.

A mission is drawn from a template and a combination of its parts. Both are split by a hash, so that one can test on
templates and on combinations that no training mission had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from brise.files.digests import hash_draw

COLORS = ("red", "blue", "green", "yellow", "white", "orange")
Height = Literal["low", "middle", "high"]
Pace = Literal["slowly", "normally", "fast"]
End = Literal["hover", "land"]
HEIGHTS: Sequence[Height] = ("low", "middle", "high")
PACES: Sequence[Pace] = ("slowly", "normally", "fast")
ENDS: Sequence[End] = ("hover", "land")
Split = Literal["train", "combination", "template"]

HELD_OUT = 0.25  # of the combinations of gates

# {a}, {b}, {c} are gates in the order in which they are flown. What follows says height, pace and end.
ONE = ("fly through the {a} gate", "only the {a} gate", "go to {a}", "pass the {a} ring",
       "the {a} gate is the only one",
       "find the {a} gate and pass it", "your one gate is {a}")
TWO = ("fly through the {a} gate, then through the {b} gate",
       "{a} gate first, {b} gate second",
       "take the {b} gate, but only after the {a} one",
       "go {a} to {b}",
       "pass {a}, then {b}",
       "{b} comes after {a}",
       "before {b}, fly through {a}",
       "once you are through {a}, head for {b}",
       "not {b} before {a}, but both",
       "start at the {a} ring and end at the {b} ring",
       "the second gate is {b}, the first is {a}",
       "{a} before {b}",
       "before the {b} gate comes the {a} gate",
       "visit the {a} gate and afterwards the {b} gate")
THREE = ("fly {a}, {b}, {c} in this order",
         "start with the {a} gate, go on with {b}, finish with {c}",
         "first {a}, then {b}, then {c}",
         "end at {c}; on the way pass {a}, then {b}",
         "finish with {c}, after {a} and {b}",
         "take {a}, after it {b}, after that {c}",
         "go {a} to {b} to {c}",
         "before {c} fly {b}, and before that {a}",
         "the {c} gate is the last; before it {a} and then {b}",
         "your gates are {a}, {b} and {c}, one after the other")
# The last two of each list are for tests only.
HELD_OUT_TEMPLATES = frozenset(template for templates in (ONE, TWO, THREE) for template in templates[-2:])

_HEIGHTS: Mapping[str, str] = MappingProxyType({"low": "; stay low", "middle": "", "high": "; keep high"})
_PACES: Mapping[str, str] = MappingProxyType({"slowly": "; take it slowly", "normally": "", "fast": "; hurry"})
_ENDS: Mapping[str, str] = MappingProxyType({"hover": "; wait there", "land": "; then land"})


@dataclass(frozen=True)
class Mission:
    """What a drone is told, and what that means."""

    text: str
    gates: tuple[str, ...]
    height: Height
    pace: Pace
    end: End
    template: str

    @property
    def split(self) -> Split:
        """To which part its template and its combination belong."""
        if self.template in HELD_OUT_TEMPLATES:
            return "template"
        return "combination" if is_held_out(self.gates) else "train"


def is_held_out(gates: tuple[str, ...]) -> bool:
    """Whether no training mission has these gates in this order. Single gates are always trained."""
    return len(gates) > 1 and hash_draw(" ".join(gates)) < HELD_OUT


def draw(random: np.random.Generator, split: Split) -> Mission:
    """A mission of a split."""
    while True:
        templates = (ONE, TWO, THREE)[int(random.choice(3, p=(0.2, 0.5, 0.3)))]
        count = (ONE, TWO, THREE).index(templates) + 1
        gates = tuple(str(each) for each in random.choice(COLORS, count, replace=False))
        height, pace, end = (int(random.integers(count)) for count in (len(HEIGHTS), len(PACES), len(ENDS)))
        mission = written(str(random.choice(templates)), gates, HEIGHTS[height], PACES[pace], ENDS[end])
        if mission.split == split:
            return mission


def written(template: str, gates: tuple[str, ...], height: Height, pace: Pace, end: End) -> Mission:
    """The mission of these parts."""
    route = template.format(**dict(zip("abc", gates, strict=False)))
    text = route + _HEIGHTS[height] + _PACES[pace] + _ENDS[end]
    return Mission(text, gates, height, pace, end, template)
