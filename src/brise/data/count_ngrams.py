"""Counting n-grams: what answers of a task have in common becomes a table of drafts (ngrams.py).

An answer's tokens are counted after the 1 to `order` tokens before each of them, prompt included. What only one
conversation (of traffic: one subject) said is left out, unless `least` is 1: it may be personal, and it is no pattern.

The probability of a token after a context is interpolated with that after the shorter context by Witten and Bell's
weights (1991): (count + kinds * shorter) / (total + kinds), where `kinds` different tokens followed the context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from brise.data.example import EncodedRow
from brise.data.ngrams import (
    ENTRY_BYTES,
    MAX_BYTES,
    ORDER,
    STEPS,
    NgramFacts,
    Source,
    first_keys,
    keys_after,
    table_bytes,
    tokenizer_digest,
)
from brise.errors import UnsupportedError
from brise.models.weights import Array
from brise.text.protocols import TextTokenizer

NBYTES = 4 << 20
LEAST = 2
MAX_TOKENS = 1 << 20  # of answers that are counted: 100 MB while it lasts
_HEADER_ROOM = 1024  # the facts have 400 bytes


@dataclass(frozen=True)
class NgramOptions:
    """How tables are made. `nbytes` is the largest size of the file, 0 makes none; the least frequent contexts are left
    out. `least` conversations, or subjects, must have said what is kept.
    """

    nbytes: int = NBYTES
    least: int = LEAST

    def __post_init__(self) -> None:
        if not 0 <= self.nbytes <= MAX_BYTES:
            raise UnsupportedError(f"a table of n-grams may have {self.nbytes} bytes; allowed are 0 to {MAX_BYTES}")
        if self.least < 1:
            raise UnsupportedError(f"what {self.least} conversations said is to be kept; allowed is 1 and more")


@dataclass(frozen=True)
class CountedRow:
    """A row, and whose it is: n-grams are kept that enough `owner`s have in common."""

    row: EncodedRow
    owner: str


def count_ngrams(rows: Iterable[CountedRow], tokenizer: TextTokenizer, source: Source,
                 options: NgramOptions = NgramOptions(), *, order: int = ORDER) -> bytes:
    """The table of the learned tokens of rows, as the bytes of its file. Equal rows give equal bytes.

    Once MAX_TOKENS tokens of answers are counted, further rows are left out.
    """
    counted = _collected(rows)
    keys, values, counts = _entries(counted, options, order)
    room = max(0, (options.nbytes - _HEADER_ROOM) // ENTRY_BYTES)
    kept = np.sort(np.argsort(-counts, kind="stable")[:room])
    kept = kept[np.argsort(keys[kept], kind="stable")]
    facts = NgramFacts(tokenizer_digest(tokenizer), tokenizer.vocab_size, order, source, counted.digest,
                       counted.num_answers, len(counted.targets), options.least)
    return table_bytes(facts, keys[kept], values[kept])


@dataclass(frozen=True)
class _Counted:
    """All rows behind each other: `places` is the place of each token in its row, `targets` are the learned ones."""

    tokens: Array
    places: Array
    targets: Array  # indices
    owners: Array  # of the targets
    num_answers: int
    digest: str


def _collected(rows: Iterable[CountedRow]) -> _Counted:
    tokens, places, targets, owners = list[Array](), list[Array](), list[Array](), list[Array]()
    numbers, digest, length, num_targets, num_answers = dict[str, int](), hashlib.sha256(), 0, 0, 0
    for counted in rows:
        own = np.flatnonzero(counted.row.is_target)
        if num_targets + len(own) > MAX_TOKENS:
            break
        tokens.append(counted.row.tokens)
        places.append(np.arange(len(counted.row.tokens), dtype=np.int32))
        targets.append(own + length)
        owners.append(np.full(len(own), numbers.setdefault(counted.owner, len(numbers)), np.int32))
        num_answers += int((np.diff(own) > 1).sum()) + bool(len(own))
        digest.update(len(own).to_bytes(8, "little") + counted.row.tokens.astype("<i4").tobytes()
                      + counted.row.is_target.tobytes())
        length, num_targets = length + len(counted.row.tokens), num_targets + len(own)
    empty = [np.zeros(0, np.int32)]
    return _Counted(np.concatenate(tokens or empty), np.concatenate(places or empty),
                    np.concatenate(targets or empty).astype(np.int64), np.concatenate(owners or empty), num_answers,
                    digest.hexdigest())


def _entries(counted: _Counted, options: NgramOptions, order: int) -> tuple[Array, Array, Array]:
    """Keys, values and counts of the contexts that have something to say, the shorter contexts first."""
    targets, owners = counted.targets, counted.owners
    following = counted.tokens[targets]
    shorter = _shares(following)  # of each target, its probability after a context of one token less
    keys = first_keys(len(targets))
    every: list[tuple[Array, Array, Array]] = []
    for length in range(1, order + 1):
        is_there = counted.places[targets] >= length
        targets, owners, following, keys, shorter = (
            array[is_there] for array in (targets, owners, following, keys, shorter))
        if not len(targets):
            break
        keys = keys_after(keys, counted.tokens[targets - length].astype(np.uint64))
        pairs = _pairs(keys, following, owners, shorter)
        shorter = pairs.probabilities[pairs.of_target]
        every.append(_best(pairs, options.least))
    if not every:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.int64)
    keys, values, counts = (np.concatenate(arrays) for arrays in zip(*every, strict=True))
    keys, first = np.unique(keys, return_index=True)  # of two contexts with one key, the shorter
    order_T = np.argsort(first, kind="stable")
    return keys[order_T], values[first][order_T], counts[first][order_T]


@dataclass(frozen=True)
class _Pairs:
    """The different pairs of a context and the token after it, in the order of keys and tokens."""

    keys: Array
    tokens: Array
    owners: Array  # how many said it
    totals: Array  # how often the context was there
    probabilities: Array
    of_target: Array  # the pair of each target


def _pairs(keys: Array, following: Array, owners: Array, shorter: Array) -> _Pairs:
    rank = np.lexsort((owners, following, keys))
    keys_R, tokens_R, owners_R = keys[rank], following[rank], owners[rank]
    is_context = _is_new(keys_R)
    is_pair = is_context | _is_new(tokens_R)
    starts = np.flatnonzero(is_pair)
    pair_R = np.cumsum(is_pair) - 1
    counts = np.diff(starts, append=len(rank))
    context_P = (np.cumsum(is_context) - 1)[starts]  # of each pair
    totals = np.bincount(context_P, weights=counts)[context_P]
    kinds = np.bincount(context_P)[context_P]
    num_owners = np.bincount(pair_R, weights=is_pair | _is_new(owners_R))
    of_target = np.empty(len(rank), np.int64)
    of_target[rank] = pair_R
    probabilities = (counts + kinds * shorter[rank[starts]]) / (totals + kinds)
    return _Pairs(keys_R[starts], tokens_R[starts], num_owners, totals, probabilities, of_target)


def _best(pairs: _Pairs, least: int) -> tuple[Array, Array, Array]:
    """Of each context its most likely token that enough have said; of equals the smaller one."""
    allowed = np.flatnonzero(pairs.owners >= least)
    keys, tokens, probabilities = pairs.keys[allowed], pairs.tokens[allowed], pairs.probabilities[allowed]
    rank = np.lexsort((tokens, -probabilities, keys))
    first = rank[_is_new(keys[rank])]
    steps = np.minimum((probabilities[first] * STEPS).astype(np.uint32), STEPS - 1)
    return keys[first], tokens[first].astype(np.uint32) << np.uint32(8) | steps, pairs.totals[allowed][first]


def _shares(tokens: Array) -> Array:
    """Of each token its share of all."""
    _, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    return counts[inverse] / max(len(tokens), 1)


def _is_new(values: Array) -> Array:
    """Whether each value differs from the one before it; the first does."""
    return np.concatenate((np.ones(min(len(values), 1), bool), values[1:] != values[:-1]))
