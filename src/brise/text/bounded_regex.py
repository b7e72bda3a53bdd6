"""Searches for a pattern in a bounded number of steps, whatever the pattern: those of schemas come with a request.

Python's own parser reads the pattern, and the tree that it makes is walked here, with backtracking. Classes such as \\w
are ASCII, and $ is the end of the text, as in JSON schemas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MAX_CHARS = 1024  # of the pattern, and of the text
_Rest = Callable[[int], bool]  # whether the rest of the pattern matches from a place on
_CLASSES: Mapping[Any, str] = {
    kinds.CATEGORY_DIGIT: r"\d", kinds.CATEGORY_NOT_DIGIT: r"\D", kinds.CATEGORY_SPACE: r"\s",
    kinds.CATEGORY_NOT_SPACE: r"\S", kinds.CATEGORY_WORD: r"\w", kinds.CATEGORY_NOT_WORD: r"\W"}
_SINGLE = (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN)
_REPEATS = (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT)


@dataclass
class Budget:
    """Steps that are left for searches, about 5 us each."""

    steps: int = 1000

    def take(self, steps: int) -> None:
        """Takes steps; they may not go below none."""
        self.steps -= steps
        if self.steps < 0:
            raise _TooLongError


def search(pattern: str, text: str, budget: Budget) -> bool | None:
    """Whether the pattern occurs in the text; None if it cannot be read, or the search takes too long."""
    if max(len(pattern), len(text)) > MAX_CHARS:
        return None
    try:
        budget.take(len(pattern) // 4)  # the parser's time
        tree = parser.parse(pattern, re.ASCII)
        walk = _Walk(text, tree.state.flags, budget)
        return any(walk.matches(list(tree), start, lambda _: True) for start in range(len(text) + 1))
    except (re.error, RecursionError, OverflowError, _TooLongError, NotImplementedError):
        return None


class _TooLongError(Exception):
    """The search took too many steps."""


class _Walk:
    """One search in one text."""

    def __init__(self, text: str, flags: int, budget: Budget) -> None:
        self._text, self._flags, self._budget = text, flags, budget
        self._groups = dict[int, tuple[int, int]]()

    def matches(self, nodes: Sequence[Any], at: int, rest: _Rest) -> bool:
        """Whether the nodes match from `at` on, and then the rest."""
        self._budget.take(1)
        if not nodes:
            return rest(at)
        (kind, value), others = nodes[0], nodes[1:]

        def following(end: int) -> bool:
            return self.matches(others, end, rest)

        if kind in _SINGLE:
            return at < len(self._text) and self._fits(kind, value, self._text[at]) and following(at + 1)
        if kind in _REPEATS:
            return self._repeats(kind, value, at, following)
        return self._other(kind, value, at, following)

    def _other(self, kind: Any, value: Any, at: int, following: _Rest) -> bool:
        if kind is kinds.BRANCH:
            return any(self.matches(list(branch), at, following) for branch in value[1])
        if kind is kinds.AT:
            return self._is_at(value, at) and following(at)
        if kind is kinds.SUBPATTERN:
            return self._group(value, at, following)
        if kind in (kinds.ASSERT, kinds.ASSERT_NOT):
            return self._looks(value, at) is (kind is kinds.ASSERT) and following(at)
        if kind is kinds.GROUPREF:
            start, end = self._groups.get(value, (0, -1))
            part = self._text[start:end]
            return end >= start and self._text.startswith(part, at) and following(at + len(part))
        raise NotImplementedError(str(kind))

    def _group(self, value: Any, at: int, following: _Rest) -> bool:
        number, _, _, inner = value

        def closed(end: int) -> bool:
            before = self._groups.get(number, (0, -1))
            self._groups[number] = (at, end)
            if following(end):
                return True
            self._groups[number] = before
            return False

        return self.matches(list(inner), at, following if number is None else closed)

    def _looks(self, value: Any, at: int) -> bool:
        direction, inner = value
        if direction > 0:
            return self.matches(list(inner), at, lambda _: True)
        return any(self.matches(list(inner), start, lambda end: end == at) for start in range(at + 1))

    def _repeats(self, kind: Any, value: Any, at: int, following: _Rest) -> bool:
        low, high, inner = value
        nodes, limit = list(inner), len(self._text) + 1 if high is kinds.MAXREPEAT else high
        if len(nodes) == 1 and nodes[0][0] in _SINGLE:
            most = at
            one, what = nodes[0]
            while most < len(self._text) and most - at < limit and self._fits(one, what, self._text[most]):
                most += 1
            self._budget.take((most - at) // 8)
            ends = range(at + low, most + 1)
            return any(map(following, ends if kind is kinds.MIN_REPEAT else reversed(ends)))

        def again(count: int, start: int) -> bool:
            more = count < limit and self.matches(nodes, start, lambda end: (end > start or count < low) and again(
                count + 1, end))
            return more or (count >= low and following(start))

        return again(0, at)

    def _is_at(self, place: Any, at: int) -> bool:
        if place in (kinds.AT_BEGINNING, kinds.AT_BEGINNING_STRING):
            return at == 0 or bool(self._flags & re.MULTILINE) and self._text[at - 1] == "\n"
        if place in (kinds.AT_END, kinds.AT_END_STRING):
            return at == len(self._text)
        before, after = (bool(re.match(r"\w", char, re.ASCII))
                         for char in (self._text[max(at - 1, 0):at], self._text[at:at + 1]))
        return (before is not after) is (place is kinds.AT_BOUNDARY)

    def _fits(self, kind: Any, value: Any, char: str) -> bool:
        if kind is kinds.ANY:
            return char != "\n" or bool(self._flags & re.DOTALL)
        if kind in (kinds.LITERAL, kinds.NOT_LITERAL):
            return self._is(char, value, value) is (kind is kinds.LITERAL)
        is_negated = value[0][0] is kinds.NEGATE
        return any(self._has(part, char) for part in value[is_negated:]) is not is_negated

    def _has(self, part: Any, char: str) -> bool:
        kind, value = part
        if kind is kinds.CATEGORY:
            return re.match(_CLASSES[value], char, re.ASCII) is not None
        return self._is(char, *((value, value) if kind is kinds.LITERAL else value))

    def _is(self, char: str, low: int, high: int) -> bool:
        forms = {char, char.lower(), char.upper()} if self._flags & re.IGNORECASE else {char}
        return any(low <= ord(form) <= high for form in forms if len(form) == 1)
