"""What a step costs: seconds by its tokens and by how far they look back, learned from the steps that have run.

Seconds are a curve over the number of tokens, plus a constant for each pair of a token and a position that it attends
to. The curve is kept as points: steps of about the same number of tokens share one, which is a quantile of the last
few, a little below the median, so that steps disturbed by another process move nothing. Between points it is linear.
Beyond them it has the shape `_FIXED_TOKENS` + tokens: reading all weights once takes as long as computing so many
tokens (measured: 31 ms and 4.9 ms a token for a 1.5B, 3.7 and 0.52 for a 135M). The constant of a pair starts at what
the model's sizes say, and follows what is seen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from math import log2
from typing import NamedTuple, TypeVar

from brise.models.config import Config

_Number = TypeVar("_Number", int, float)
_FIXED_TOKENS = 6.0
_SAMPLES = 9  # of a point: a lower speed shows after six steps, a higher one after four
_EXACT = 8  # tokens; up to here each number has a point of its own, above there are two in each octave
_PAIRS_EVERY = 32  # steps; before that many have run, at every one
_NOISE = 0.05  # of a step's time, on a quiet machine
_MAX_NOISE = 10.0  # times that: what is further off moves the constant of a pair no more
_MAX_PAIR_ERROR = 100.0  # how far the constant of a pair may be from what the sizes say
# Products of attention are in float32, those of the weights in int8: measured, 135M and 1.5B.
_PAIR_SLOWDOWN = 3.5


class StepLoad(NamedTuple):
    """The work of a step: its tokens, and the positions that these attend to, added up."""

    tokens: int = 0
    pairs: int = 0

    def plus(self, tokens: int, start: int) -> StepLoad:
        """With `tokens` more of one sequence, the first of them at position `start`."""
        return StepLoad(self.tokens + tokens, self.pairs + tokens * start + tokens * (tokens + 1) // 2)


class _Sample(NamedTuple):
    tokens: int
    pairs: int
    seconds: float


class StepCost:
    """Learns from `record`; `seconds` is what a step would take, 0 before the first one has run.

    `pair_tokens` is the cost of a pair in tokens, see `pair_tokens_of`. Equal records give equal answers.
    """

    def __init__(self, pair_tokens: float) -> None:
        self._pair_tokens = pair_tokens
        self._pair_seconds = 0.0
        self._num_records = 0
        self._samples: dict[int, deque[_Sample]] = {}  # by point
        self._stale: set[int] = set()  # points with samples that are not in the curve yet
        self._curve: dict[int, tuple[int, float]] = {}  # by point: tokens, and seconds without the pairs
        self._tokens: list[int] = []  # of the curve, ascending
        self._seconds: list[float] = []

    def record(self, load: StepLoad, seconds: float) -> None:
        """Learns from a step that has run."""
        point = _point(load.tokens)
        self._samples.setdefault(point, deque(maxlen=_SAMPLES)).append(_Sample(load.tokens, load.pairs, seconds))
        self._num_records += 1
        self._stale.add(point)
        if self._num_records < _PAIRS_EVERY or self._num_records % _PAIRS_EVERY == 0:
            self._stale.update(self._samples)

    def seconds(self, load: StepLoad) -> float:
        """What a step of this load takes."""
        if self._stale:
            self._fit()
        if not self._tokens:
            return 0.0
        return self._without_pairs(load.tokens) + self._pair_seconds * load.pairs

    @property
    def pair_seconds(self) -> float:
        """The constant of a pair."""
        if self._stale:
            self._fit()
        return self._pair_seconds

    def most_tokens(self, load: StepLoad, start: int, most: int, limit_s: float) -> int:
        """How many tokens of a sequence, from position `start` and up to `most`, a step of `load` takes besides so that
        it stays within `limit_s`."""
        if self.seconds(load.plus(most, start)) <= limit_s:
            return most
        enough, too_many = 0, most
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            if self.seconds(load.plus(middle, start)) <= limit_s:
                enough = middle
            else:
                too_many = middle
        return enough

    def _without_pairs(self, tokens: int) -> float:
        index = bisect_left(self._tokens, tokens)
        if index == 0 or index == len(self._tokens):
            nearest = min(index, len(self._tokens) - 1)
            return self._seconds[nearest] * (_FIXED_TOKENS + tokens) / (_FIXED_TOKENS + self._tokens[nearest])
        low, high = self._tokens[index - 1], self._tokens[index]
        share = (tokens - low) / (high - low)
        return self._seconds[index - 1] * (1 - share) + self._seconds[index] * share

    def _fit(self) -> None:
        """Brings the curve, and now and then the constant of a pair, up to the samples."""
        if len(self._stale) == len(self._samples):
            token_seconds = _token_seconds(self._samples.values())
            self._pair_seconds = _pair_seconds(self._samples.values(), token_seconds, token_seconds * self._pair_tokens)
        for point in self._stale:
            samples = self._samples[point]
            tokens = _typical([sample.tokens for sample in samples])
            self._curve[point] = tokens, _typical([self._at(tokens, sample) for sample in samples])
        self._stale.clear()
        ordered = sorted(self._curve.values())
        self._tokens, self._seconds = [tokens for tokens, _ in ordered], [seconds for _, seconds in ordered]

    def _at(self, tokens: int, sample: _Sample) -> float:
        """What a sample says of a step of `tokens` without pairs. It never says that all was for the pairs."""
        seconds = max(sample.seconds - self._pair_seconds * sample.pairs, sample.seconds / 4)
        return seconds * (_FIXED_TOKENS + tokens) / (_FIXED_TOKENS + sample.tokens)


def pair_tokens_of(config: Config) -> float:
    """What attending to one position costs a token, as a part of what the weights cost it."""
    value_dim = config.head_dim if config.latent is None else config.latent.value_dim
    attended = config.num_heads * (config.head_dim + value_dim)
    experts = config.experts
    ffn_width = config.ffn_width if experts is None else experts.per_token * experts.width + experts.shared_width
    projected = attended + config.num_kv_heads * (config.head_dim + value_dim)
    return _PAIR_SLOWDOWN * attended / (config.width * (projected + 3 * ffn_width))


def load_of(chunks: Iterable[tuple[int, int]]) -> StepLoad:
    """The load of chunks (start, end)."""
    load = StepLoad()
    for start, end in chunks:
        load = load.plus(end - start, start)
    return load


def _point(tokens: int) -> int:
    """The point that steps of so many tokens belong to."""
    return tokens if tokens <= _EXACT else _EXACT + 1 + int(2 * log2(tokens / _EXACT))


def _typical(values: list[_Number]) -> _Number:
    """The quantile 0.4."""
    return sorted(values)[(len(values) - 1) * 2 // 5]


def _token_seconds(points: Iterable[deque[_Sample]]) -> float:
    """What one more token takes, about: the least that a point says, because those of few tokens hold the weights."""
    return min(_typical([sample.seconds / (_FIXED_TOKENS + sample.tokens) for sample in samples])
               for samples in points)


def _pair_seconds(points: Iterable[deque[_Sample]], token_seconds: float, planned: float) -> float:
    """The constant of a pair: a weighted least-squares slope within each point, in which the planned value counts as
    one observation that may be wrong by its own size."""
    if planned <= 0:
        return 0.0
    weight, total = 1 / planned**2, 1 / planned
    for pairs, seconds, noise in _deviations(points, token_seconds):
        weight += (pairs / noise) ** 2
        total += pairs * seconds / noise**2
    return min(max(total / weight, planned / _MAX_PAIR_ERROR), planned * _MAX_PAIR_ERROR)


def _deviations(points: Iterable[deque[_Sample]], token_seconds: float) -> Iterator[tuple[float, float, float]]:
    """How far each sample is from the middle of its point: pairs, seconds (bounded), and how far noise moves these."""
    for samples in points:
        tokens = _typical([sample.tokens for sample in samples])
        pairs = _typical([sample.pairs for sample in samples])
        seconds = _typical([sample.seconds for sample in samples])
        noise = _NOISE * seconds
        for sample in samples:
            off = sample.seconds - seconds - token_seconds * (sample.tokens - tokens)
            if noise > 0 and sample.pairs != pairs:
                yield float(sample.pairs - pairs), min(max(off, -_MAX_NOISE * noise), _MAX_NOISE * noise), noise
