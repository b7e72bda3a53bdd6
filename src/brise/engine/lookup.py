"""Drafts by copying: what followed the last tokens when they occurred before in prompt, answer or prediction.

Tables give the last place of every run of 1, 2 and 4 tokens. They are arrays of places by hash: a collision loses a
place and is never wrong, because a place is compared with the tokens before it is used. So an index takes time and
memory in proportion to its tokens, whatever they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from threading import Lock

import numpy as np

from brise.models.weights import Array

_RUNS = (4, 2, 1)  # tokens; the longer run is likelier to go on in the same way
_LONGEST = 16  # how many equal tokens before a place are counted
# How often a copy is right, by the number of equal tokens before it, and how often the last of these occurred before:
# a rare token tells more than a frequent one. Measured on answers of four tasks (LOG.md).
_OFTEN = 4  # and more
_RIGHT: Sequence[Sequence[float]] = (
    (0.0, 0.5, 0.75, 0.75, *(0.8,) * 13), (0.0, 0.4, 0.25, 0.7, *(0.75,) * 13),
    (0.0, 0.5, 0.2, 0.5, *(0.7,) * 13), (0.0, 0.4, 0.15, 0.35, 0.55, 0.6, 0.65, *(0.75,) * 10))
LEAST_CHANCE = 0.05  # that a token and all before it are right; no step has room for less
_PREDICTED = 8  # a prediction is followed from its start as if so many tokens were equal
_FACTOR, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1  # of Fibonacci hashing, in 64 bits
_FIRST_BITS = 8
NO_TOKENS = np.zeros(0, np.int32)
# Memory for a token of prompt and answer: itself, and a place in each table and a count, at least a quarter in use.
TOKEN_BYTES = 4 + (len(_RUNS) * 4 + 1) * 4


class PromptLookup:
    """Copies from the prompt and from the answer itself."""

    name = "prompt"

    def __init__(self) -> None:
        self._last: tuple[Sequence[int], _Places] | None = None
        self._lock = Lock()

    def start(self, prompt: Sequence[int]) -> LookupState:
        """The answers of one request share the index of its prompt, if they start one after the other."""
        with self._lock:
            if self._last is None or self._last[0] is not prompt:
                tokens = array("i", prompt)
                self._last = prompt, _Places(tokens, len(tokens))
            return LookupState(array("i", prompt), self._last[1])


class Prediction:
    """Copies from tokens that the client expects, in OpenAI's field `prediction`."""

    name = "prediction"

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def start(self, prompt: Sequence[int]) -> LookupState:
        """Begins at the start of the prediction; goes on behind a difference where the tokens agree again."""
        tokens = array("i", self._tokens)
        return LookupState(tokens, _Places(tokens, len(tokens)), is_expected=True)


class LookupState:
    """Follows one answer. `earlier` are the tokens before it, and `places` is their index, which answers may share."""

    def __init__(self, earlier: array[int], places: _Places, *, is_expected: bool = False) -> None:
        self._tokens, self._places, self._num_earlier = earlier, places, len(earlier)
        self._own = _Places(earlier, len(earlier), first=len(earlier))
        self._place, self._num_equal = 0, _PREDICTED if is_expected and earlier else 0  # what is copied from
        self._find()

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds tokens of the answer."""
        for token in tokens:
            if self._num_equal and self._tokens[self._place] == token:
                self._place, self._num_equal = self._place + 1, min(self._num_equal + 1, _LONGEST)
            else:
                self._num_equal = 0
            self._own.add(len(self._tokens))
            self._tokens.append(token)
        self._find()

    def propose(self, most: int) -> tuple[list[int], list[float]]:
        """What followed the last place; a place so near that its copy runs into itself repeats."""
        if not self._num_equal:
            return [], []
        tokens, place = self._tokens, self._place
        end = self._num_earlier if place < self._num_earlier else len(tokens)
        count = most if end == len(tokens) else min(most, end - place)
        drafted = tokens[place:place + count].tolist()
        for index in range(len(drafted), count):
            drafted.append(drafted[index - (end - place)])
        chances: list[float] = []
        before, together = tokens[-1], 1.0
        for index, token in enumerate(drafted):
            chance = self._right(before, self._num_equal + index)
            together *= chance
            if together < LEAST_CHANCE:
                break
            chances.append(chance)
            before = token
        return drafted[:len(chances)], chances

    def _right(self, before: int, num_equal: int) -> float:
        """The probability that what is copied behind a token is right."""
        often = self._places.count(before) + self._own.count(before)
        return _RIGHT[min(max(often, 1), _OFTEN) - 1][min(num_equal, _LONGEST)]

    def _find(self) -> None:
        """Looks for a place with more equal tokens than the one that is followed."""
        tokens = self._tokens
        if self._num_equal == _LONGEST:
            return
        for length in _RUNS:
            for places in (self._own, self._places):
                place = places.find(tokens, length)
                equal = self._equal(place) if place else 0
                if equal > self._num_equal:
                    self._place, self._num_equal = place, equal

    def _equal(self, place: int) -> int:
        """How many tokens before `place` equal the last tokens."""
        tokens, end = self._tokens, len(self._tokens)
        count = 0
        while count < _LONGEST and count < place and tokens[place - 1 - count] == tokens[end - 1 - count]:
            count += 1
        return count


class _Places:
    """The last place behind every run, of places `first` to `end` (exclusive) of `tokens`; 0 where there is none."""

    def __init__(self, tokens: array[int], end: int, *, first: int = 0) -> None:
        self._tokens, self._first, self._end = tokens, first, max(end, first)
        self._tables: tuple[Array, ...] = ()
        self._counts: Array = NO_TOKENS
        self._shift = 0
        self._build()

    def add(self, place: int) -> None:
        """Adds the next place: a token stands there, or is about to."""
        self._end = place + 1
        if self._end - self._first > len(self._tables[0]) // 2:
            self._build()
            return
        if place:
            token = self._tokens[place - 1] & len(self._counts) - 1
            self._counts[token] = min(int(self._counts[token]) + 1, _OFTEN)
        for length, table in zip(_RUNS, self._tables, strict=True):
            if place >= length:
                table[_hash(self._tokens[place - length:place]) >> self._shift] = place

    def find(self, tokens: array[int], length: int) -> int:
        """A place behind a run like the last `length` of `tokens`, which the caller compares."""
        if len(tokens) < length:
            return 0
        return int(self._tables[_RUNS.index(length)][_hash(tokens[-length:]) >> self._shift])

    def count(self, token: int) -> int:
        """How often the token stands before a place, up to _OFTEN; a collision may add to it."""
        return int(self._counts[token & len(self._counts) - 1])

    def _build(self) -> None:
        count = self._end - self._first
        bits = max((2 * count).bit_length(), _FIRST_BITS)
        self._shift = 64 - bits
        self._tables = tuple(self._table(length, bits) for length in _RUNS)
        first = max(self._first, 1)
        before = np.frombuffer(self._tokens, np.int32)[first - 1:self._end - 1] if self._end > first else NO_TOKENS
        self._counts = np.minimum(np.bincount(before & (1 << bits) - 1, minlength=1 << bits), _OFTEN).astype(np.uint8)

    def _table(self, length: int, bits: int) -> Array:
        table = np.zeros(1 << bits, np.int32)
        first = max(self._first, length)
        if first < self._end:
            ids = np.frombuffer(self._tokens, np.int32)[first - length:self._end - 1].astype(np.uint64)
            places = np.arange(first, self._end, dtype=np.int32)
            hashes = np.zeros(len(places), np.uint64)
            for index in range(length):
                hashes = (hashes + ids[index:index + len(places)] + np.uint64(1)) * np.uint64(_FACTOR)
            table[(hashes >> np.uint64(self._shift)).astype(np.int64)] = places  # of equal hashes the last one stays
        return table


def _hash(run: array[int]) -> int:
    value = 0
    for token in run:
        value = (value + token + 1) * _FACTOR & _WORD
    return value
