"""Requests on their way into the engine: checked, and with their answers, in whatever thread they come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

from brise.engine import features, validate
from brise.engine.answer import EngineAnswer, drops_space
from brise.engine.constraint import TokenChoices
from brise.engine.drafts import DraftSource, DraftSources
from brise.engine.lookup import Prediction, PromptLookup
from brise.engine.model import LoadedModel
from brise.engine.request import Request, TokenLogprob
from brise.engine.sequence import Sequence

if TYPE_CHECKING:  # llguidance takes 50 ms to import: only requests with a grammar pay for it
    from brise.engine.adapters import Adapters, Lease
    from brise.engine.constraint import AnswerConstraint
    from brise.engine.grammar import Grammars


@dataclass(eq=False)
class Submission:
    """A request in the engine: its answers, which of them are open, and its prompt's log-probabilities so far."""

    request_id: str
    request: Request
    answers: list[EngineAnswer]
    open: set[int]
    model: LoadedModel  # that it was prepared for
    held_back: list[EngineAnswer]  # they start once the first one has put the prompt into the prefix cache
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    lease: Lease | None = None  # of its adapter, until the last answer has ended
    due_s: float | None = None  # by the engine's clock, when it ends as late


class Submissions:
    """Prepares requests for one engine; safe to use from several threads.

    Prompt and answer together have at most `max_context` tokens. `drafts` are the sources of drafts besides those that
    every request has; None: nothing is drafted.
    """

    def __init__(self, model: LoadedModel, vocab_size: int, max_context: int, adapters: Adapters | None,
                 drafts: DraftSources | None, clock: Callable[[], float]) -> None:
        self._model, self._vocab_size, self._max_context = model, vocab_size, max_context
        self._adapters, self._drafts, self._clock = adapters, drafts, clock
        self._arrivals = count()
        self._grammars: Grammars | None = None
        self._opening = Lock()
        self._prompt_lookup = PromptLookup()

    def prepare(self, request: Request) -> Submission:
        """Does everything for a request that the engine's thread need not do. It may read an adapter from disk."""
        model, arrived_s = self._model, self._clock()
        max_tokens = validate.check(request, self._vocab_size, self._max_context)
        spans = features.spans(request, model.vision, model.audio, model.name)
        seed = request.sampling.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little", signed=True)
        arrival = next(self._arrivals)
        request_id = f"request-{arrival}"
        answers = [
            EngineAnswer(request_id, index, request,
                         Sequence((arrival, index), request.prompt,
                                  scores_prompt=request.prompt_logprobs is not None and index == 0,
                                  spans=tuple(replace(span) for span in spans), is_urgent=request.is_urgent),
                         tokenizer=model.tokenizer, seed=seed, max_tokens=max_tokens,
                         constraint=self._constraint(request), sources=self._sources(request))
            for index in range(request.n)]
        submission = Submission(request_id, request, answers, set(range(request.n)), model, answers[1:],
                                due_s=None if request.deadline_s is None else arrived_s + request.deadline_s)
        if request.adapter is not None:
            if self._adapters is None:
                from brise.engine.adapters import AdapterNotFoundError  # noqa: PLC0415 - starts sooner without
                raise AdapterNotFoundError(request.adapter)
            submission.lease = self._adapters.acquire(request.adapter)
            for answer in answers:
                answer.sequence.adapter, answer.sequence.root = submission.lease.slot, submission.lease.digest
        return submission

    def drop(self, submission: Submission) -> None:
        """Releases what a prepared request holds."""
        if submission.lease is not None and self._adapters is not None:
            self._adapters.release(submission.lease)

    def _constraint(self, request: Request) -> AnswerConstraint | None:
        grammar, tokenizer = request.grammar, self._model.tokenizer
        if request.token_choices:
            return TokenChoices(request.token_choices)
        if grammar is None:
            return None
        if not grammar.begun and drops_space(request, tokenizer):
            grammar = replace(grammar, has_space=True)
        return self._opened_grammars().constraint(grammar)

    def warm(self) -> None:
        """Prepares for requests with grammars."""
        self._opened_grammars().warm()

    def _opened_grammars(self) -> Grammars:
        with self._opening:
            if self._grammars is None:
                from brise.engine.grammar import Grammars  # noqa: PLC0415 - see above
                self._grammars = Grammars(self._model.tokenizer)
            return self._grammars

    def _sources(self, request: Request) -> tuple[DraftSource, ...]:
        """What drafts for a request, besides its grammar."""
        if self._drafts is None:
            return ()
        prediction = (Prediction(request.prediction[:self._max_context]),) if request.prediction else ()
        return (self._prompt_lookup, *prediction, *self._drafts.of(request.adapter))
