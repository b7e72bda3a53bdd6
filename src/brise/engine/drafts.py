"""Sources of drafts: tokens that an answer may go on with, which the model then checks several at a time.

A source costs microseconds a token and may be wrong: the engine samples every token as it does without drafts, and
keeps those that agree (engine/speculation.py). A source that raises an error is not asked again for that answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Protocol


class DraftState(Protocol):
    """One answer, as a source sees it. It belongs to one thread."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Records tokens that the answer has got, in order; all of them, drafted or not."""

    def propose(self, most: int) -> tuple[Sequence[int], Sequence[float]]:
        """Up to `most` tokens that may come next, and for each the probability that it does if those before it did.

        It changes nothing: without `extend` in between, the same call gives the same result. A source that knows
        nothing returns two empty sequences. Tokens outside the vocabulary end a draft.
        """


class DraftSource(Protocol):
    """Where drafts come from. `start` may be called from several threads."""

    @property
    def name(self) -> str:
        """How metrics and reports call it: a few letters, the same for all sources of one kind."""

    def start(self, prompt: Sequence[int]) -> DraftState:
        """The state of a new answer to these tokens."""


class DraftSources:
    """The sources of an engine by adapter (None: of requests without one). Safe to use from several threads.

    Answers use the sources that are there when their request arrives.
    """

    def __init__(self) -> None:
        self._by_adapter: Mapping[str | None, tuple[DraftSource, ...]] = {}
        self._lock = Lock()

    def put(self, adapter: str | None, *sources: DraftSource) -> None:
        """Replaces the sources of an adapter; with none, removes them."""
        with self._lock:
            others = {name: kept for name, kept in self._by_adapter.items() if name != adapter}
            self._by_adapter = {**others, adapter: sources} if sources else others

    def of(self, adapter: str | None) -> tuple[DraftSource, ...]:
        return self._by_adapter.get(adapter, ())
