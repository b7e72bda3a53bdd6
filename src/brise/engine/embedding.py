"""Embeddings of texts: the model's last hidden states, pooled and scaled to length 1."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np

from brise.checkpoint.pooling import Pooling
from brise.engine import batching
from brise.engine.model import LoadedModel
from brise.engine.pages import Pages
from brise.engine.scheduler import Chunk
from brise.engine.sequence import Sequence
from brise.errors import RequestError
from brise.models.ops import Cache, Runner
from brise.models.weights import Array


def split_groups(texts: Seq[Seq[int]], max_pages: int, page_size: int) -> list[Seq[Seq[int]]]:
    """Splits the texts, in order, into groups of at most `max_pages` pages; a longer text is a group of its own."""
    groups: list[Seq[Seq[int]]] = []
    first = total = 0
    for index, text in enumerate(texts):
        needed = num_pages(len(text), page_size)
        if index > first and total + needed > max_pages:
            groups.append(texts[first:index])
            first, total = index, 0
        total += needed
    return [*groups, texts[first:]] if len(texts) else []


def embed(texts: Seq[Seq[int]], pooling: Pooling, runner: Runner, cache: Cache, pages: Pages,
          max_step_tokens: int) -> list[Array]:
    """The vectors (D,) float32 of one group. Its pages must be available; they are released in any case."""
    sequences = [Sequence((0, index), text) for index, text in enumerate(texts)]
    try:
        for sequence in sequences:
            sequence.hold(pages.allocate(num_pages(sequence.num_tokens, pages.page_size)))
        sums: list[Array] = [np.zeros(())] * len(texts)
        for chunks in _steps(sequences, pooling, max_step_tokens):
            hidden_RD = runner.hidden(batching.pack(chunks, pages.page_size), cache)
            at = 0
            for chunk in chunks:
                rows = chunk.end - chunk.first_row
                index = chunk.sequence.order[1]
                sums[index] = sums[index] + _pooled(hidden_RD[at:at + rows], pooling, chunk)
                at += rows
        return [_unit(total) for total in sums]
    finally:
        for sequence in sequences:
            pages.release(sequence.drop_pages())


def group_pages(texts: Seq[Seq[int]], page_size: int) -> int:
    """The number of pages that a group takes."""
    return sum(num_pages(len(text), page_size) for text in texts)


def num_pages(num_tokens: int, page_size: int) -> int:
    """The number of pages that hold `num_tokens` tokens."""
    return -(-num_tokens // page_size)


def vector_size(model: LoadedModel, wanted: int | None) -> int:
    """How long vectors are: as asked for, where the model was trained for that, or as usual for the model."""
    width, shorter = model.config.width, model.matryoshka
    if wanted is None:
        return width if shorter is None else shorter.usual or width
    if wanted == width or wanted < width and shorter is not None and shorter.allows(wanted):
        return wanted
    sizes = "it was not trained for shorter vectors" if shorter is None else (
        f"allowed are also {', '.join(map(str, shorter.sizes))}" if shorter.sizes else f"allowed are 1 to {width}")
    raise RequestError(f"'dimensions' is {wanted}, the model has {width}: {sizes}", param="dimensions")


def shortened(vectors: Seq[Array], size: int) -> list[Array]:
    """The first numbers of each vector, again of length 1."""
    return [vector if len(vector) == size else _unit(vector[:size].astype(np.float64)) for vector in vectors]


def _steps(sequences: Seq[Sequence], pooling: Pooling, max_tokens: int) -> Iterator[list[Chunk]]:
    if sum(sequence.num_tokens for sequence in sequences) <= max_tokens:
        yield [_chunk(sequence, 0, sequence.num_tokens, pooling) for sequence in sequences]
        return
    for sequence in sequences:
        for start in range(0, sequence.num_tokens, max_tokens):
            yield [_chunk(sequence, start, min(start + max_tokens, sequence.num_tokens), pooling)]


def _chunk(sequence: Sequence, start: int, end: int, pooling: Pooling) -> Chunk:
    """A chunk with every row for "mean" and "cls", and with the last row for "last"."""
    return Chunk(sequence, start, end, end - 1 if pooling == "last" else start)


def _pooled(hidden_RD: Array, pooling: Pooling, chunk: Chunk) -> Array:
    """This chunk's share of a sum over tokens; only the direction of the sum matters."""
    match pooling:
        case "mean":
            return hidden_RD.sum(axis=0, dtype=np.float64)
        case "cls":
            return hidden_RD[0].astype(np.float64) * (chunk.start == 0)
        case "last":
            return hidden_RD[-1].astype(np.float64) * (chunk.end == chunk.sequence.num_tokens)


def _unit(sum_D: Array) -> Array:
    length = float(np.sqrt(sum_D @ sum_D))
    return (sum_D / (length or 1.0)).astype(np.float32)
