"""Sources of drafts: tokens that an answer may go on with, which the model then checks several at a time.

A source costs microseconds a token and may be wrong: the engine samples every token as it does without drafts, and
keeps those that agree (engine/speculation.py). A source that raises an error is not asked again for that answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from brise.errors import BriseError
from brise.text.protocols import TextTokenizer


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


# Opens the table of drafts in a file, for the tokenizer with this digest (data/ngrams.py), or raises a BriseError.
OpenTable = Callable[[Path, str], DraftSource]


class DraftTables:
    """Tables of n-grams become the sources of adapters, or of requests without one. Safe to use from several threads.

    A table that cannot be used is left out, and said so: it costs time, and no answer.
    """

    def __init__(self, sources: DraftSources, tokenizer: TextTokenizer, open_sealed: OpenTable | None = None) -> None:
        self._sources, self._tokenizer, self._open_sealed = sources, tokenizer, open_sealed
        self._digest: str | None = None  # computed for the first table

    def put(self, adapter: str | None, path: Path) -> str:
        """Drafts from the table in a file, if it is there; what came of it, in a few words, "" if it is not."""
        if not path.is_file():
            return ""
        from brise.data.ngrams import is_sealed, read_table, tokenizer_digest  # noqa: PLC0415 - starts sooner without

        self._digest = self._digest or tokenizer_digest(self._tokenizer)
        try:
            read = self._open_sealed if self._open_sealed is not None and is_sealed(path) else read_table
            self._sources.put(adapter, read(path, self._digest))
        except BriseError as error:
            return f"no drafts: {error.args[0]}"
        return f"drafts from {path.name}"

    def remove(self, adapter: str) -> None:
        """Removes the source of an adapter."""
        self._sources.put(adapter)
