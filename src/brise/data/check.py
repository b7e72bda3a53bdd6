"""Checks of data that can be read: rows that repeat, and held-out rows whose prompts are trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brise.data import identity
from brise.data.example import TrainingExample
from brise.data.split import Split
from brise.text.conversation import plain_text

NUM_SHOWN = 5
Places = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Repeats:
    """How many examples repeat an earlier one: whole, its prompt with another answer, or nearly its prompt.

    The places name some of them, the earlier example first.
    """

    num_same: int
    num_contrary: int
    num_near: int
    same: Places
    contrary: Places
    near: Places


@dataclass(frozen=True)
class Leakage:
    """How many held-out examples share a prompt, a conversation, or nearly a prompt with the training rows.

    Each is counted once, under the first that applies. The places name some of the first two kinds.
    """

    same_prompt: int = 0
    same_conversation: int = 0
    near_prompt: int = 0
    places: Places = ()

    @property
    def is_certain(self) -> bool:
        """Whether a held-out row is certainly trained on; a near prompt may be another question."""
        return self.same_prompt + self.same_conversation > 0


def inspect(examples: Sequence[TrainingExample], split: Split) -> tuple[Repeats, Leakage]:
    """Checks both sides of the split."""
    used = sorted({*split.train, *split.held_out})
    pairs = near_duplicates([_asked(examples[index]) for index in used])
    near = [(used[first], used[second]) for first, second in pairs.tolist()]
    return _repeats(examples, used, near), _leakage(examples, split, near)


def _repeats(examples: Sequence[TrainingExample], used: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Repeats:
    whole: dict[bytes, int] = {}
    prompts: dict[bytes, int] = {}
    same: dict[int, int] = {}
    contrary: dict[int, int] = {}
    for index in used:
        first = whole.setdefault(identity.whole(examples[index]), index)
        asked = prompts.setdefault(identity.prompt(examples[index]), index)
        if first != index:
            same[index] = first
        elif asked != index:
            contrary[index] = asked
    near = {later: earlier for earlier, later in reversed(pairs) if later not in same and later not in contrary}
    return Repeats(len(same), len(contrary), len(near), *(_places(examples, kind) for kind in (same, contrary, near)))


def _leakage(examples: Sequence[TrainingExample], split: Split, pairs: Sequence[tuple[int, int]]) -> Leakage:
    prompts = {identity.prompt(examples[index]): index for index in reversed(split.train)}
    names = {_name(examples[index]): index for index in reversed(split.train)}
    same_prompt: dict[int, int] = {}
    same_conversation: dict[int, int] = {}
    for index in split.held_out:
        prompt, name = identity.prompt(examples[index]), _name(examples[index])
        if prompt in prompts:
            same_prompt[index] = prompts[prompt]
        elif name in names:
            same_conversation[index] = names[name]
    certain = same_prompt | same_conversation
    train, held_out = set(split.train), set(split.held_out)
    near = {one for pair in pairs for one, other in (pair, pair[::-1])
            if one in held_out and one not in certain and other in train}
    return Leakage(len(same_prompt), len(same_conversation), len(near), _places(examples, certain))


def _name(example: TrainingExample) -> object:
    """The identity of the example's conversation: its name, or else its first question and answer."""
    return identity.opening(example) if identity.is_derived(example.conversation) else example.conversation


def _asked(example: TrainingExample) -> str:
    """The text before the last answer, without the system prompt, which all rows share."""
    messages = [message for message in example.messages[:-1] if message["role"] != "system"]
    return "\n".join(plain_text(message["content"]) + (identity.canonical(message["tool_calls"])
                                                       if message.get("tool_calls") else "") for message in messages)


def _places(examples: Sequence[TrainingExample], firsts: dict[int, int]) -> Places:
    return tuple((examples[other].place, examples[index].place) for index, other in sorted(firsts.items())[:NUM_SHOWN])


SIMILARITY = 0.8  # Jaccard, of sets of shingles: changing one word in a sentence of ten leaves about this much
_WIDTH = 5  # bytes of a shingle
_NUM_BANDS, _BAND = 16, 4  # a pair of similarity 0.8 is found with probability 1 - (1 - 0.8^4)^16 = 99.98 %
_CHUNK_BYTES = 1 << 22  # of text hashed at a time
_MAX_TEXT_BYTES = 1 << 16  # only the beginning of a longer text is compared
_CROWD = 8  # neighbours within a bucket that are compared pairwise

Pairs = NDArray[np.int64]


def near_duplicates(texts: Sequence[str], similarity: float = SIMILARITY) -> Pairs:
    """Pairs (N, 2) of indices of texts that are at least this similar, the smaller index first; equal texts count."""
    plain = [_plain(text) for text in texts]
    if len(plain) < 2:
        return np.empty((0, 2), np.int64)
    candidates = _candidates(_signatures(plain))
    sets: dict[int, NDArray[np.uint64]] = {}
    alike = [_jaccard(_set(plain, int(first), sets), _set(plain, int(second), sets)) >= similarity
             for first, second in candidates]
    near: Pairs = candidates[np.array(alike, bool)]
    return near


def _plain(text: str) -> bytes:
    """Lower-case words separated by single spaces; a text without words stays as it is."""
    words = " ".join(re.findall(r"\w+", text.lower())) or text
    return words.encode(errors="surrogatepass")[:_MAX_TEXT_BYTES]


def _signatures(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    """MinHash signatures (N, bands * rows): minima of hashed shingles."""
    out = np.empty((len(texts), _NUM_BANDS * _BAND), np.uint32)
    # Odd multipliers; the high half of the product is close enough to a random permutation.
    factors = np.random.default_rng(0x5EED).integers(1, 2**63, out.shape[1], dtype=np.uint64) * np.uint64(2) + \
        np.uint64(1)
    start = 0
    while start < len(texts):
        stop, num_bytes = start, 0
        while stop < len(texts) and (stop == start or num_bytes + len(texts[stop]) < _CHUNK_BYTES):
            num_bytes += len(texts[stop]) + _WIDTH
            stop += 1
        shingles, starts = _shingles(texts[start:stop])
        for column, factor in enumerate(factors):
            out[start:stop, column] = np.minimum.reduceat((shingles * factor) >> np.uint64(32), starts)
        start = stop
    return out


def _shingles(texts: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashed shingles of all texts, concatenated, and the offset of each text; a short text has one shingle."""
    padded = [text.ljust(_WIDTH, b"\0") for text in texts]
    bytes_ = np.frombuffer(b"".join(padded) + bytes(_WIDTH), np.uint8).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    windows = np.zeros(lengths.sum(), np.uint64)
    for offset in range(_WIDTH):
        windows |= bytes_[offset:offset + len(windows)] << np.uint64(8 * offset)
    ends = np.cumsum(lengths)
    is_inside = np.ones(len(windows), bool)
    for offset in range(1, _WIDTH):  # windows that reach into the next text
        is_inside[ends - offset] = False
    counts = lengths - (_WIDTH - 1)
    return _mixed(windows[is_inside]), np.cumsum(counts) - counts


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64, so that similar shingles get unrelated hashes."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _candidates(signatures: NDArray[np.uint32]) -> Pairs:
    """Pairs whose signatures agree in at least one band."""
    pairs = [np.empty((0, 2), np.int64)]
    for band in range(_NUM_BANDS):
        rows = np.ascontiguousarray(signatures[:, band * _BAND:(band + 1) * _BAND])
        keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * _BAND))).ravel()
        _, bucket = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        starts = np.flatnonzero(np.diff(bucket[order], prepend=-1))
        first_of = np.repeat(starts, np.diff(starts, append=len(order)))
        place = np.arange(len(order))
        for step in range(1, _CROWD):
            is_pair = place - step >= first_of
            pairs.append(np.stack([order[place[is_pair] - step], order[is_pair]], 1))
        pairs.append(np.stack([order[first_of], order], 1)[place > first_of])
    return np.unique(np.concatenate(pairs), axis=0)


def _set(texts: Sequence[bytes], index: int, known: dict[int, NDArray[np.uint64]]) -> NDArray[np.uint64]:
    if index not in known:
        known[index] = np.unique(_shingles([texts[index]])[0])
    return known[index]


def _jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
