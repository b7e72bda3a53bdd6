"""Samples one token from one row of logits, by pure functions: an answer never depends on others in its batch.

The order is: grammar, log-probabilities, logit bias and penalties, temperature, top-k, top-p, min-p (each on what the
previous one left), the draw. Everything is exact; to avoid sorting the whole vocabulary, a small set of tokens that
must hold the result is found first.

Legend: V vocabulary, C candidates, B blocks of the vocabulary.
"""

from __future__ import annotations

from collections import Counter, deque
from hashlib import blake2b
from math import isfinite, log, sqrt
from struct import pack

import numpy as np

from brise.engine.request import Sampling
from brise.models.weights import Array

# Sums are taken by block, then over blocks: a running sum over the whole vocabulary costs ten times as much.
_BLOCK = 256
# The k-th largest of the blocks' maxima is a bound that at least k logits reach; small blocks make it tight.
_SMALL_BLOCK = 64
# 1 / temperature is limited so that float32 does not overflow; far below the limit the draw is the arg max already.
_MAX_SHARPNESS = 1e30
# Where the search for the nucleus starts: it seldom holds tokens that are this much less likely than the best.
_FIRST_PIVOT = 2.0**-7
# Tokens that are e^40 times less likely than the best add nothing to a float32 sum, not even a whole vocabulary of them
# (10^6 * e^-40 = 4e-12, half a unit of the sum's last place is 6e-8). At low temperatures few others are left.
_NEGLIGIBLE = 40.0
_TINY = float(np.finfo(np.float32).tiny)
_FEW = 512  # sorting so many takes as long as one more pass over the vocabulary


class Adjustments:
    """Logit bias and penalties of one answer, with counts of its tokens.

    The repetition penalty looks at prompt and answer (CTRL, 1909.05858, and transformers), or at the last tokens of
    both (llama.cpp); presence and frequency penalties count the answer only (OpenAI's definition).
    """

    def __init__(self, sampling: Sampling, prompt: Array, vocab_size: int) -> None:
        self._sampling = sampling
        self._bias_tokens = np.array(list(sampling.logit_bias), np.int64)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        self._seen: _SeenTokens | _LastTokens | None = None
        if not sampling.penalizes_prompt:
            prompt = prompt[:0]
        if sampling.repetition_penalty != 1.0 and sampling.repeat_last_n:
            self._seen = (_SeenTokens(prompt, vocab_size) if sampling.repeat_last_n < 0 else
                          _LastTokens(prompt, sampling.repeat_last_n))
        self._place_of: dict[int, int] = {}  # each of the answer's distinct tokens, in the arrays below
        self._tokens: Array = np.empty(64, np.int64)
        self._counts: Array = np.empty(64, np.float32)

    def count(self, token: int) -> None:
        """Records that the answer has got `token`."""
        if self._seen is not None:
            self._seen.add(token)
        place = self._place_of.get(token)
        if place is None:
            place = self._place_of[token] = len(self._place_of)
            if place == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
            self._tokens[place], self._counts[place] = token, 0
        self._counts[place] += 1

    def apply(self, logits_V: Array) -> Array:
        """A copy of the logits with bias and penalties."""
        sampling = self._sampling
        logits_V = logits_V.copy()
        logits_V[self._bias_tokens] += self._bias
        if self._seen is not None:
            seen = self._seen.tokens()
            values = logits_V[seen]
            penalty = np.float32(sampling.repetition_penalty)
            logits_V[seen] = np.where(values > 0, values / penalty, values * penalty)
        num_distinct = len(self._place_of)
        logits_V[self._tokens[:num_distinct]] -= (
            np.float32(sampling.presence_penalty)
            + np.float32(sampling.frequency_penalty) * self._counts[:num_distinct])
        return logits_V


class _SeenTokens:
    """Which tokens occurred."""

    def __init__(self, prompt: Array, vocab_size: int) -> None:
        self._is_seen: Array = np.zeros(vocab_size, np.bool_)
        self._is_seen[prompt] = True

    def add(self, token: int) -> None:
        self._is_seen[token] = True

    def tokens(self) -> Array:
        return np.flatnonzero(self._is_seen)


class _LastTokens:
    """Which tokens are among the last `size`."""

    def __init__(self, prompt: Array, size: int) -> None:
        self._last = deque[int](prompt[-size:].tolist(), size)
        self._counts = Counter(self._last)

    def add(self, token: int) -> None:
        if len(self._last) == self._last.maxlen:
            first = self._last[0]
            self._counts[first] -= 1
            if not self._counts[first]:
                del self._counts[first]
        self._last.append(token)
        self._counts[token] += 1

    def tokens(self) -> Array:
        return np.fromiter(self._counts, np.int64, len(self._counts))


def adjustments(sampling: Sampling, prompt: Array, vocab_size: int) -> Adjustments | None:
    """The bias and penalties that a request sets; None if there are none, so that a step costs nothing."""
    if (sampling.logit_bias or sampling.repetition_penalty != 1.0 or sampling.presence_penalty
            or sampling.frequency_penalty):
        return Adjustments(sampling, prompt, vocab_size)
    return None


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends only on the seed, the answer's index and the token's position."""
    digest = blake2b(pack("<qqq", seed, index, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def pick(logits_V: Array, sampling: Sampling, draw: float, adjust: Adjustments | None = None) -> int:
    """The token that `draw` in [0, 1) selects. ArithmeticError if the largest logit is not finite."""
    if adjust is not None:
        logits_V = adjust.apply(logits_V)
    best_token = int(logits_V.argmax())
    best = float(logits_V[best_token])
    if not isfinite(best):  # argmax returns a NaN if there is one
        raise ArithmeticError(f"the best logit is {best}: damaged numbers, or no token is allowed")
    if sampling.temperature == 0:
        return best_token
    sharpness = min(1.0 / sampling.temperature, _MAX_SHARPNESS)
    if 0 < sampling.top_k < len(logits_V):
        tokens_C = largest(logits_V, sampling.top_k)
        return _draw_sorted(tokens_C, _likelihoods(logits_V[tokens_C], best, sharpness), sampling, draw)
    is_likely_V = logits_V >= np.float32(best - _NEGLIGIBLE / sharpness)
    if np.count_nonzero(is_likely_V) > len(logits_V) // 4:
        return _draw_cut(_likelihoods(logits_V, best, sharpness), sampling, draw)
    tokens_C = np.flatnonzero(is_likely_V)
    return int(tokens_C[_draw_cut(_likelihoods(logits_V[tokens_C], best, sharpness), sampling, draw)])


def score(logits_V: Array, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `token`, and the `num_top` best tokens with theirs, at temperature 1."""
    best = logits_V.max()
    norm = float(best) + log(float(np.exp(logits_V - best).sum()))
    others = largest(logits_V, num_top).tolist() if num_top else []
    return float(logits_V[token]) - norm, [(other, float(logits_V[other]) - norm) for other in others]


def largest(logits_V: Array, count: int) -> Array:
    """The tokens of the `count` largest finite logits, largest first; equal ones in the order of their tokens."""
    count = min(count, len(logits_V))
    maxima_B = np.maximum.reduceat(logits_V, np.arange(0, len(logits_V), _SMALL_BLOCK))
    values = maxima_B if len(maxima_B) >= count else logits_V
    bound = np.partition(values, len(values) - count)[len(values) - count]
    tokens_C = np.flatnonzero(logits_V >= max(bound, np.finfo(np.float32).min))
    return tokens_C[np.argsort(-logits_V[tokens_C], kind="stable")[:count]]


def _likelihoods(logits: Array, best: float, sharpness: float) -> Array:
    """Probabilities relative to that of the best token, whose value is 1."""
    likelihoods = logits - np.float32(best)
    likelihoods *= np.float32(sharpness)
    return np.exp(likelihoods, out=likelihoods)


def _draw_cut(likelihoods_C: Array, sampling: Sampling, draw: float) -> int:
    """Draws from candidates after cutting them by top_p and min_p."""
    if sampling.top_p < 1.0 or sampling.min_p > 0.0:
        return _draw_nucleus(likelihoods_C, sampling, draw)
    return _draw_any(likelihoods_C, draw)


def _draw_any(likelihoods_V: Array, draw: float) -> int:
    """Draws from all tokens: first the block, then the token in it."""
    ends_B = np.cumsum(_block_sums(likelihoods_V), dtype=np.float64)
    target = draw * ends_B[-1]
    block = _first_beyond(ends_B, target)
    inside = np.cumsum(likelihoods_V[block * _BLOCK:(block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + _first_beyond(inside, target - (ends_B[block - 1] if block else 0.0))


def _draw_nucleus(likelihoods_V: Array, sampling: Sampling, draw: float) -> int:
    """Draws from the likeliest tokens that together make up top_p of the sum, and that reach min_p of the best."""
    cutoff, num_kept = 0.0, len(likelihoods_V)
    if sampling.top_p < 1.0:
        total = float(_block_sums(likelihoods_V).sum(dtype=np.float64))
        cutoff, num_kept = _nucleus_cutoff(likelihoods_V, sampling.top_p * total)
    if sampling.min_p > cutoff:  # both rules keep the head of the sorted order; the shorter one applies
        cutoff, num_kept = sampling.min_p, len(likelihoods_V)
    tokens_C = np.flatnonzero(likelihoods_V >= cutoff)
    likelihoods_C = likelihoods_V[tokens_C]
    ties = np.flatnonzero(likelihoods_C == cutoff)[num_kept:]
    likelihoods_C[ties] = 0.0
    return int(tokens_C[_draw_any(likelihoods_C, draw)])


def _nucleus_cutoff(likelihoods_V: Array, wanted: float) -> tuple[float, int]:
    """The least likelihood in the nucleus with sum `wanted`, and the number of its tokens with exactly that likelihood.

    A bisection for where the sum is reached, until so few tokens are left that they can be sorted.
    """
    inside, above = likelihoods_V, 0.0  # low <= inside < high; `above` is the sum of what is >= high
    low, high, pivot = 0.0, 2.0, _FIRST_PIVOT
    wanted = max(wanted, _TINY)  # the nucleus always holds the best token
    while len(inside) > _FEW and low < pivot < high and pivot > _TINY:
        is_upper = inside >= np.float32(pivot)
        upper = inside[is_upper]
        mass = float(_block_sums(upper).sum(dtype=np.float64)) if len(upper) else 0.0
        if above + mass >= wanted:
            inside, low = upper, pivot
        else:
            inside, high, above = inside[~is_upper], pivot, above + mass
        pivot = sqrt(low * high) if low else pivot * _FIRST_PIVOT
    ordered = -np.sort(-inside)
    ends = above + np.cumsum(ordered, dtype=np.float64)
    last = min(int(np.searchsorted(ends, wanted)), len(ordered) - 1)
    return float(ordered[last]), int(np.count_nonzero(ordered[:last + 1] == ordered[last]))


def _draw_sorted(tokens_C: Array, likelihoods_C: Array, sampling: Sampling, draw: float) -> int:
    """Draws from candidates, which are sorted, after cutting them by top_p and min_p."""
    ends_C = np.cumsum(likelihoods_C, dtype=np.float64)
    kept = len(ends_C)
    if sampling.top_p < 1.0:
        kept = int(np.searchsorted(ends_C, sampling.top_p * ends_C[-1])) + 1
    if sampling.min_p > 0.0:
        kept = min(kept, int(np.count_nonzero(likelihoods_C >= sampling.min_p)))
    ends_C = ends_C[:max(kept, 1)]
    return int(tokens_C[_first_beyond(ends_C, draw * ends_C[-1])])


def _block_sums(values_V: Array) -> Array:
    return np.add.reduceat(values_V, np.arange(0, len(values_V), _BLOCK))


def _first_beyond(ends: Array, target: float) -> int:
    """The index of the first running sum over `target`; if rounding left none, of the first that equals the total."""
    index = int(np.searchsorted(ends, target, side="right"))
    return index if index < len(ends) else int(np.searchsorted(ends, ends[-1]))
