"""Speculation: a step computes an answer's next token and drafted tokens after it, and the answer keeps those that it
would have had anyway.

Every token is sampled as without drafts, in order: its numbers do not depend on its company, and its draw is a hash of
seed and position. The first token that differs from the draft ends what is kept. So drafts change the time of an
answer and nothing else, and what is drafted is a question of expected time alone: of the tokens that the sources
propose, a step takes those that give the most tokens a second, by measured acceptance and measured times of steps.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from brise.engine.answer import EngineAnswer
from brise.engine.drafts import DraftState
from brise.engine.lookup import LEAST_CHANCE
from brise.engine.request import DraftCounts
from brise.engine.scheduler import Chunk, Scheduler
from brise.engine.sequence import Sequence as AnswerSequence
from brise.engine.step_cost import StepLoad, load_of

GRAMMAR = "grammar"
MOST_DRAFTED = 15  # tokens of one answer in a step: rows of logits grow with it, and few drafts are longer
_FORCED = 0.95  # how often a model cuts forced text into tokens as its tokenizer does, before it is measured
_LEAST_GAIN = 1.02  # of tokens a second; below, a draft is not worth its risk
_MOST_SLOWER = 1.03  # times as long as without drafts: what one answer may cost another
_NEW_SHARE = 0.1  # of the last step in an average
_NUM_BINS, _PRIOR_TRIES, _MOST_TRIES = 10, 8, 256
_MAX_RATES = 512  # (adapter, source) whose acceptance is remembered


class Costs(Protocol):
    """What steps take; step_cost.StepCost learns it."""

    def seconds(self, load: StepLoad) -> float:
        """Of a step; 0 before one has run."""


class _Base(NamedTuple):
    """A step without drafts, and the part of it that is the answers' next tokens: load, mean position, seconds."""

    step: StepLoad
    answers: StepLoad
    depth: int
    seconds: float


class Speculation:
    """The drafts of one engine; it belongs to the engine's thread. `most` limits the drafted tokens of an answer, and
    `only` names the sources that are used, to measure them; None: all."""

    def __init__(self, most: int, vocab_size: int, cost: Costs) -> None:
        self.most, self._vocab_size, self.cost = most, vocab_size, cost
        self.only: frozenset[str] | None = None
        self.counts: dict[str, DraftCounts] = {}  # by source
        self._paces: dict[str | None, float] = {}  # by adapter: tokens that a step gives an answer
        self._drafters = WeakKeyDictionary[EngineAnswer, Drafter]()
        self._rates: OrderedDict[tuple[str | None, str], AcceptanceRate] = OrderedDict()

    def add(self, chunks: list[Chunk], scheduler: Scheduler, max_tokens: int,
            answer_of: Callable[[AnswerSequence], EngineAnswer]) -> list[Chunk]:
        """The chunks of a step, with drafts where they pay, as far as tokens, rows and pages allow."""
        num_tokens = sum(chunk.end - chunk.start for chunk in chunks)
        room = min(max_tokens - num_tokens, scheduler.max_rows - sum(chunk.end - chunk.first_row for chunk in chunks))
        sampled = [index for index, chunk in enumerate(chunks) if chunk.end == chunk.sequence.num_tokens]
        if room <= 0 or not sampled:
            return chunks
        base = self._base(chunks, sampled)
        surely = [(-1.0, 0)] * min(room, 2 * self.most)
        if len(sampled) > 1 and not self._best_count(base, surely, {}):
            return chunks  # not even drafts that are always right would pay, as in a full batch
        answers = {index: answer_of(chunks[index].sequence) for index in sampled
                   if not chunks[index].sequence.wants_scores}
        drafters = {index: self._drafter(answer) for index, answer in answers.items()}
        for index, drafter in drafters.items():
            drafter.draft = drafter.propose(min(self.most, answers[index].num_left - 1))
        drafts = {index: drafter.draft for index, drafter in drafters.items()}
        likely = sorted((-chance, index) for index, draft in drafts.items() for chance in draft.chances)[:room]
        count = self._best_count(base, likely, {index: drafter.pace for index, drafter in drafters.items()})
        out = list(chunks)
        for index, draft in drafts.items():
            wanted = sum(other == index for _, other in likely[:count])
            chunk = chunks[index]
            draft.keep(scheduler.lend(chunk.sequence, chunk.end + wanted) - chunk.end if wanted else 0)
            if draft.tokens:
                chunk.sequence.place_draft(draft.tokens)
                out[index] = chunk._replace(end=chunk.end + len(draft.tokens), num_drafted=len(draft.tokens))
        return out

    def record(self, answer: EngineAnswer, tokens: Sequence[int]) -> None:
        """Records the tokens that an answer got in a step."""
        drafter = self._drafters.get(answer)
        if drafter is None:
            return
        draft = drafter.draft
        if draft.tokens:
            for counts in (self.counts.setdefault(draft.source, DraftCounts()), drafter.counts[draft.source]):
                counts.drafted += len(draft.tokens)
                counts.accepted += draft.num_equal(tokens)
        drafter.extend(tokens)
        drafter.pace += _NEW_SHARE * (len(tokens) - drafter.pace)
        adapter = answer.request.adapter
        pace = self._paces.get(adapter, 1.0)
        if len(self._paces) > _MAX_RATES:
            self._paces.clear()
        self._paces[adapter] = pace + _NEW_SHARE * (len(tokens) - pace)

    def counted(self, answer: EngineAnswer, source: str) -> DraftCounts:
        """What a source drafted for one answer."""
        drafter = self._drafters.get(answer)
        return DraftCounts() if drafter is None else drafter.counts[source]

    def _drafter(self, answer: EngineAnswer) -> Drafter:
        drafter = self._drafters.get(answer)
        if drafter is None:
            drafter = self._drafters[answer] = Drafter(answer, self._vocab_size, self._rate, self.only)
            drafter.pace = self._paces.get(answer.request.adapter, 1.0)
        return drafter

    def _base(self, chunks: Sequence[Chunk], sampled: Sequence[int]) -> _Base:
        answers = load_of((chunks[index].end - 1, chunks[index].end) for index in sampled)
        return _Base(load_of((chunk.start, chunk.end) for chunk in chunks), answers, answers.pairs // len(sampled),
                     self.cost.seconds(answers))

    def _best_count(self, base: _Base, likely: Sequence[tuple[float, int]], paces: Mapping[int, float]) -> int:
        """How many of the drafted tokens (minus their chance, answer), likeliest first, give the most tokens a second.

        What the step's prompts cost is spent in any case, so it does not count. A step may take longer only as far as
        every answer gets more tokens in it: now, or by its pace so far.
        """
        if base.seconds <= 0:  # no step has been measured
            return 0
        without = self.cost.seconds(base.step)
        others = base.seconds - without
        expected, gains = float(base.answers.tokens), dict.fromkeys(paces, 1.0)
        best, best_rate = 0, _LEAST_GAIN * expected / base.seconds
        for count, (negative, index) in enumerate(likely, 1):
            expected -= negative
            if index in gains:
                gains[index] -= negative
            seconds = self.cost.seconds(StepLoad(base.step.tokens + count, base.step.pairs + count * base.depth))
            rate = expected / max(others + seconds, base.seconds)
            if rate > best_rate:
                slowest = min((max(paces[index], gain) for index, gain in gains.items()), default=inf)
                if seconds <= _MOST_SLOWER * slowest * without:
                    best, best_rate = count, rate
        return best

    def _rate(self, adapter: str | None, source: str) -> AcceptanceRate:
        """The acceptance of a source on answers with an adapter, which begins with that of the source as a whole."""
        key = (adapter, source)
        rate = self._rates.get(key)
        if rate is None:
            rate = AcceptanceRate(None if adapter is None else self._rate(None, source))
            self._rates[key] = rate
        self._rates.move_to_end(key)
        while len(self._rates) > _MAX_RATES:
            self._rates.popitem(last=False)
        return rate


@dataclass
class Draft:
    """Drafted tokens, and of each the chance that it and all before it are right."""

    source: str
    tokens: list[int]
    chances: list[float]

    def keep(self, count: int) -> None:
        """Drops all but the first `count` tokens."""
        del self.tokens[count:], self.chances[count:]

    def num_equal(self, tokens: Sequence[int]) -> int:
        """How many of its tokens the answer got."""
        return _num_equal(self.tokens, tokens)


@dataclass
class _Followed:
    """A source on one answer: its state, its acceptance there, and its last proposal."""

    name: str
    state: DraftState
    rate: AcceptanceRate
    tokens: list[int] = field(default_factory=list)
    estimates: list[float] = field(default_factory=list)

    def chances(self, num_forced: int, forced_rate: float) -> list[float]:
        """Of each token the chance that it and all before it are right, as far as one is worth a place in a step.

        The first `num_forced` tokens are also what the grammar forces.
        """
        chances: list[float] = []
        chance = 1.0
        for index, estimate in enumerate(self.estimates):
            rate = self.rate.of(estimate)
            chance *= max(rate, forced_rate) if index < num_forced else rate
            if chance < LEAST_CHANCE:
                break
            chances.append(chance)
        return chances


class Drafter:
    """The sources of one answer. Each is measured by what it proposes, whether or not that is computed."""

    def __init__(self, answer: EngineAnswer, vocab_size: int,
                 rate_of: Callable[[str | None, str], AcceptanceRate], only: frozenset[str] | None) -> None:
        self.draft = Draft("", [], [])  # of the current step
        self.counts = defaultdict[str, DraftCounts](DraftCounts)  # by source
        self.pace = 1.0  # tokens that a step gives the answer, of late
        self._constraint, self._vocab_size = answer.constraint, vocab_size
        self._followed: list[_Followed] = []
        request = answer.request
        self._uses_grammar = only is None or GRAMMAR in only
        for source in answer.draft_sources:
            if only is not None and source.name not in only:
                continue
            with suppress(Exception):  # a source never fails an answer
                state = source.start(request.prompt)
                state.extend(answer.tokens)
                self._followed.append(_Followed(source.name, state, AcceptanceRate(
                    rate_of(request.adapter, source.name))))
        self._forced = AcceptanceRate(rate_of(request.adapter, GRAMMAR))
        self._forced_tokens: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Records new tokens of the answer, and how many of each source's proposal they are."""
        self.draft = Draft("", [], [])
        if not tokens:
            return
        _measure(self._forced, self._forced_tokens, [_FORCED] * len(self._forced_tokens), tokens)
        for followed in tuple(self._followed):
            _measure(followed.rate, followed.tokens, followed.estimates, tokens)
            followed.tokens, followed.estimates = [], []
            try:
                followed.state.extend(tokens)
            except Exception:  # see __init__
                self._followed.remove(followed)
        self._forced_tokens = []

    def propose(self, most: int) -> Draft:
        """The most promising draft: of one source, or of the grammar."""
        best, promise = Draft("", [], []), 0.0
        if most <= 0:
            return best
        constraint = self._constraint
        if constraint is not None and self._uses_grammar:
            self._forced_tokens = constraint.forced()[:most]
        forced, forced_rate = self._forced_tokens, self._forced.of(_FORCED)
        if forced:
            best = Draft(GRAMMAR, list(forced), [forced_rate ** place for place in range(1, len(forced) + 1)])
            promise = sum(best.chances)
        for followed in tuple(self._followed):
            try:
                tokens, estimates = followed.state.propose(most)
                followed.tokens, followed.estimates = self._known(tokens[:most], estimates)
            except Exception:  # see __init__
                self._followed.remove(followed)
                continue
            if constraint is not None and followed.tokens:
                followed.tokens = followed.tokens[:constraint.num_allowed(followed.tokens)]
                del followed.estimates[len(followed.tokens):]
            chances = followed.chances(_num_equal(followed.tokens, forced), forced_rate)
            if sum(chances) > promise:
                best, promise = Draft(followed.name, followed.tokens[:len(chances)], chances), sum(chances)
        return best

    def _known(self, tokens: Sequence[int], estimates: Sequence[float]) -> tuple[list[int], list[float]]:
        """A proposal up to its first token outside the vocabulary, with estimates from 0 to 1."""
        known: list[int] = []
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                break
            known.append(token)
        return known, [min(max(estimate, 0.0), 1.0) for _, estimate in zip(known, estimates, strict=False)]


class AcceptanceRate:
    """How often drafted tokens are right, by the estimate of their source; before it is known, what the more general
    rate says, at last the estimate itself. Old tries count less and less."""

    def __init__(self, general: AcceptanceRate | None) -> None:
        self._general = general
        self._tries, self._hits = [0.0] * _NUM_BINS, [0.0] * _NUM_BINS

    def of(self, estimate: float) -> float:
        """The probability that a token is right, if all before it are."""
        index = _bin(estimate)
        prior = estimate if self._general is None else self._general.of(estimate)
        return (self._hits[index] + _PRIOR_TRIES * prior) / (self._tries[index] + _PRIOR_TRIES)

    def record(self, estimate: float, *, is_right: bool) -> None:
        index = _bin(estimate)
        self._tries[index] += 1
        self._hits[index] += is_right
        if self._tries[index] > _MOST_TRIES:
            self._tries[index] /= 2
            self._hits[index] /= 2
        if self._general is not None:
            self._general.record(estimate, is_right=is_right)


def _measure(rate: AcceptanceRate, tokens: Sequence[int], estimates: Sequence[float], got: Sequence[int]) -> None:
    for token, estimate, actual in zip(tokens, estimates, got, strict=False):
        rate.record(estimate, is_right=token == actual)
        if token != actual:
            return


def _num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _bin(estimate: float) -> int:
    return min(int(estimate * _NUM_BINS), _NUM_BINS - 1)
