"""Novelty: how far a request is from those that a rule was fitted on, by hashed words and pieces of words.

A text becomes a vector of length 1: how often its words, pairs of words and triples of characters fall into each of
WIDTH places (feature hashing, Weinberger et al., 0902.2206). A few of a set's texts stand for it, chosen so that each
of the others is close to one (Gonzalez' farthest-first traversal). The distance is 1 - cosine to the nearest.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np

from brise.stats.clusters import Floats

WIDTH = 512
MAX_CENTRES = 64  # one byte a number: 32 kB in the ledger
MAX_CHARACTERS = 4000  # the end of a text, where the question stands
_WORD = re.compile(r"\w+")


def embed(text: str) -> Floats:
    """A vector of length 1, or of zeros if the text has no words."""
    counts = Counter(_features(text[-MAX_CHARACTERS:].casefold()))
    vector = np.zeros(WIDTH)
    for feature, count in counts.items():
        code = crc32(feature.encode(errors="surrogatepass"))
        # One bit of the code is a sign, so that features that share a place cancel on average.
        vector[(code >> 1) % WIDTH] += (1 + math.log(count)) * (1 if code & 1 else -1)
    length = float(np.sqrt(vector @ vector))
    return vector / (length or 1.0)


def cover(texts: Sequence[str]) -> str:
    """The texts' centres, as base64 of int8."""
    vectors = np.stack([embed(text) for text in texts])
    chosen = [0]
    nearest = 1 - vectors @ vectors[0]
    while len(chosen) < min(MAX_CENTRES, len(vectors)) and nearest.max() > 1e-6:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, 1 - vectors @ vectors[chosen[-1]])
    centres = np.rint(vectors[chosen] * 127).astype(np.int8)
    return base64.b64encode(centres.tobytes()).decode()


def unpack(centres: str) -> Floats:
    """The centres as (N, WIDTH), each of length 1."""
    values = np.frombuffer(base64.b64decode(centres), np.int8).reshape(-1, WIDTH).astype(np.float64)
    lengths = np.sqrt((values**2).sum(axis=1, keepdims=True))
    unit: Floats = values / np.maximum(lengths, 1e-12)
    return unit


def novelty(text: str, centres: Floats) -> float:
    """0 for a text that is one of the centres, about 1 for one that has nothing in common with any."""
    return 1 - float((centres @ embed(text)).max())


def _features(text: str) -> Iterator[str]:
    words = _WORD.findall(text)
    for before, word in zip(["", *words], words, strict=False):
        yield f"w {word}"
        yield f"p {before} {word}"
        yield from (f"c {piece}" for piece in _triples(f"^{word}$"))


def _triples(word: str) -> Iterator[str]:
    for start in range(len(word) - 2):
        yield word[start:start + 3]
