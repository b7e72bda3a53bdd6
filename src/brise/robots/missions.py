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

# {a}, {b}, {c} are gates in the order in which they are flown, {A}, {B}, {C} the same with words around them. What
# follows says height, pace and end.
ONE = ("fly through {A}", "only {A}", "go to {A}", "pass {A}", "{A} is the only one", "take {A}", "nothing but {A}",
       "head for {A} and go through",
       "find the {a} gate and pass it", "your one gate is {a}",
       "the {a} gate, and that is all", "your way leads through the {a} gate")
TWO = ("fly through {A}, then through {B}", "{A} first, {B} second", "go {a} to {b}", "pass {A}, then {B}",
       "once you are through {A}, head for {B}", "start at {A} and end at {B}", "{a} before {b}",
       "first {A} and next {B}", "from {A} go on to {B}", "take {A}; when that is done, take {B}",
       "begin with {A}, then do {B}", "{A} comes before {B}", "after {A} comes {B}", "after {A}, fly to {B}",
       "{A}, followed by {B}", "through {A} and on to {B}",
       "take {B}, but only after {A}", "{B} comes after {A}", "before {B}, fly through {A}",
       "not {B} before {A}, but both", "the second gate is {b}, the first is {a}", "before you go to {B}, pass {A}",
       "before flying to {B}, take {A}", "{B}, but {A} before it", "{B} is the last gate; {A} is the first",
       "end at {B}; start at {A}", "{B} follows {A}", "finish with {B}; before that {A}",
       "you may pass {B} once {A} is done", "{B} only after {A}", "as the last gate take {B}, as the first {A}",
       "before {B} you have to pass {A}", "{B} must wait until {A} is done", "{B} last, {A} first",
       "do not take {B} until you have {A}", "{B} ends the route, {A} starts it",
       "before the {b} gate comes the {a} gate", "visit the {a} gate and afterwards the {b} gate",
       "prior to the {b} gate, do the {a} gate", "{a}, and when you have it, {b}",
       "{A} then {B}", "{B}, but {A} first", "before you go through {B}, make sure you've flown {A}",
       "{B} right after {A}")
THREE = ("fly {A}, {B}, {C} in this order", "start with {A}, go on with {B}, finish with {C}",
         "first {A}, then {B}, then {C}", "take {A}, after it {B}, after that {C}", "go {a} to {b} to {c}",
         "{A}, {B} and at last {C}", "pass {A}; then {B}; {C} is the end", "{A} and {B} before {C}",
         "{B} after {A}, and {C} at the end",
         "end at {C}; on the way pass {A}, then {B}", "finish with {C}, after {A} and {B}",
         "before {C} fly {B}, and before that {A}", "{C} comes last; first {A}, then {B}",
         "the last one is {C}; go by {A} and then {B} first", "keep {C} for the end: {A}, then {B}, then that",
         "before {C} take {A}, then {B}", "{C} is the third gate, {A} the first, {B} the second",
         "start at {A}, end at {C}, and in between pass {B}", "the end is {C}; {A} and {B} come before it",
         "{C} ends the route; on it come {A} and {B}", "{C} last, {A} first, {B} in between",
         "{C} only after {A} and {B}", "{C} after {B}, and {B} after {A}", "you end at {C}, having passed {A}, {B}",
         "{C} must wait: {A} and then {B} come first", "{C} is last, and {A} is before {B}",
         "do not take {C} until you have {A} and {B}",
         "the {c} gate is the last; before it {a} and then {b}", "your gates are {a}, {b} and {c}, one after the other",
         "last of all the {c} gate, but {a} and {b} ahead of it",
         "the {a} gate leads off, the {b} gate comes next, and the {c} gate ends it",
         "{A}, {B}, {C}, in that order", "{B} second, {C} third, {A} first", "{B} then {C}, but {A} before both",
         "fly through {C} only once you've cleared {A} and then {B}", "please take {B} on your way from {A} to {C}",
         "I want you to end with {C}, after starting at {A} and going through {B} next",
         "kick off with {A}, follow it with {B} and wrap up at {C}")
# The last ones are for tests only. Of these the last four and seven are by somebody who knew none of the others.
HELD_OUT_TEMPLATES = frozenset((*ONE[-4:], *TWO[-8:], *THREE[-11:]))
NOUNS = ("{}", "the {} gate", "the {} one", "the {} ring")

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
        template, nouns = str(random.choice(templates)), [str(noun) for noun in random.choice(NOUNS, count)]
        mission = written(template, gates, HEIGHTS[height], PACES[pace], ENDS[end], nouns)
        if mission.split == split:
            return mission


def written(template: str, gates: tuple[str, ...], height: Height, pace: Pace, end: End,
            nouns: Sequence[str] = NOUNS[:1] * 3) -> Mission:
    """The mission of these parts; `nouns` are the words around the gates."""
    slots = dict(zip("abc", gates, strict=False))
    slots |= {slot.upper(): noun.format(gate) for (slot, gate), noun in zip(slots.items(), nouns, strict=False)}
    text = template.format(**slots) + _HEIGHTS[height] + _PACES[pace] + _ENDS[end]
    return Mission(text, gates, height, pace, end, template)
