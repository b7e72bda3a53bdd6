"""What restricts the tokens of an answer: a grammar (grammar.py), or a list of the tokens allowed at each place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from brise.models.weights import Array


class AnswerConstraint(Protocol):
    """The state of one answer."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""

    def apply(self, logits_V: Array) -> Array:
        """A copy of the logits with minus infinity for every token that is not allowed."""

    def forced(self) -> list[int]:
        """Tokens that are likely to be the only ones that may follow."""

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, may follow."""

    def advance(self, token: int) -> None:
        """Records that the answer has got `token`."""


class TokenChoices:
    """An answer of a fixed length: at each place one of the tokens that are allowed there."""

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        self._choices, self._place = choices, 0

    @property
    def is_complete(self) -> bool:
        return self._place == len(self._choices)

    def apply(self, logits_V: Array) -> Array:
        allowed = np.array(self._choices[self._place], np.int64)
        out_V = np.full_like(logits_V, -np.inf)
        out_V[allowed] = logits_V[allowed]
        return out_V

    def forced(self) -> list[int]:
        tokens = []
        for choice in self._choices[self._place:]:
            if len(choice) != 1:
                break
            tokens.append(choice[0])
        return tokens

    def num_allowed(self, tokens: Sequence[int]) -> int:
        count = 0
        for token, choice in zip(tokens, self._choices[self._place:], strict=False):
            if token not in choice:
                break
            count += 1
        return count

    def advance(self, token: int) -> None:
        if self.is_complete or token not in self._choices[self._place]:
            raise ArithmeticError(f"token {token} is not allowed at place {self._place}")
        self._place += 1
