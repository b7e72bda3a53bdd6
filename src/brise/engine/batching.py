"""Packs the scheduled chunks of one step into arrays (models/batch.py describes them)."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from brise.engine.scheduler import Chunk
from brise.models.batch import Batch
from brise.models.weights import Array


def pack(chunks: Seq[Chunk], page_size: int, break_row: Array | None = None) -> Batch:
    """The batch of one step, chunk by chunk in the given order.

    `break_row` is the vision encoder's own row for breaks between rows of an image, if it has one.
    """
    if all(chunk.end - chunk.start == 1 and not chunk.sequence.has_features for chunk in chunks):
        return _pack_decodes(chunks, page_size)
    lengths = [chunk.end - chunk.start for chunk in chunks]
    query_starts = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths, out=query_starts[1:])
    tokens = np.empty(query_starts[-1], np.int32)
    positions, slots = np.empty_like(tokens), np.empty_like(tokens)
    rows: list[Array] = []
    at = 0
    for (sequence, start, end, first_row, _), length in zip(chunks, lengths, strict=True):
        own = slice(at, at + length)
        tokens[own] = sequence.tokens[start:end]
        positions[own] = place = np.arange(start, end, dtype=np.int32)
        slots[own] = sequence.table[place // page_size] * page_size + place % page_size
        rows.append(np.arange(at + first_row - start, at + length, dtype=np.int32))
        at += length
    features, feature_rows = _features(chunks, len(tokens), break_row)
    return Batch(tokens, positions, query_starts, np.concatenate(rows), _page_table(chunks, page_size), slots,
                 features, feature_rows, reach=_reach(chunks, positions), adapters=_adapters(chunks, lengths))


def _pack_decodes(chunks: Seq[Chunk], page_size: int) -> Batch:
    """A step of one token per sequence. It is the common step, so it makes no array per sequence."""
    places = [chunk.start for chunk in chunks]
    positions = np.array(places, np.int32)
    tokens = np.array([chunk.sequence.tokens[chunk.start] for chunk in chunks], np.int32)
    table = _page_table(chunks, page_size)
    pages = table[np.arange(len(chunks)), positions // page_size]
    rows = np.array([row for row, chunk in enumerate(chunks) if chunk.first_row < chunk.end], np.int32)
    query_starts = np.arange(len(chunks) + 1, dtype=np.int32)
    return Batch(tokens, positions, query_starts, rows, table, pages * page_size + positions % page_size,
                 adapters=_adapters(chunks, [1] * len(chunks)))


def _adapters(chunks: Seq[Chunk], lengths: Seq[int]) -> Array | None:
    """The slot of each token's adapter; None if no sequence has one, as in most steps."""
    slots = [chunk.sequence.adapter for chunk in chunks]
    return None if max(slots) < 0 else np.repeat(np.array(slots, np.int32), lengths)


def _reach(chunks: Seq[Chunk], positions: Array) -> Array | None:
    """The last position that each token sees; None for a step in which that is its own."""
    reach: Array | None = None
    at = 0
    for chunk in chunks:
        for span in chunk.sequence.spans:
            first, last = span.seen if span.sees_itself else (0, 0)
            if chunk.start < last and first < chunk.end:
                assert last <= chunk.end, "the scheduler cuts no span that sees itself"
                reach = positions.copy() if reach is None else reach
                reach[at + max(first - chunk.start, 0):at + last - chunk.start] = last - 1
        at += chunk.end - chunk.start
    return reach


def _features(chunks: Seq[Chunk], num_tokens: int, break_row: Array | None) -> tuple[Array | None, Array | None]:
    """The features of the step, and which row each token takes; None for a step without images and audio."""
    parts: list[Array] = []
    feature_rows = np.full(num_tokens, -1, np.int32)
    at = count = 0
    for chunk in chunks:
        for span in chunk.sequence.spans:
            first, last = max(chunk.start, span.start), min(chunk.end, span.end)
            if first >= last:
                continue
            assert span.features is not None, "an image or chunk is computed before it is encoded"
            wanted = span.rows[first - span.start:last - span.start]
            places = np.flatnonzero(wanted != -1)
            part = span.features[np.maximum(wanted[places], 0)]
            if break_row is not None:
                part[wanted[places] == -2] = break_row
            feature_rows[at + first - chunk.start + places] = count + np.arange(len(places), dtype=np.int32)
            parts.append(part)
            count += len(places)
        at += chunk.end - chunk.start
    return (np.concatenate(parts), feature_rows) if parts else (None, None)


def _page_table(chunks: Seq[Chunk], page_size: int) -> Array:
    """Pages (S, P) up to the last one that the step reads; zero after the last one of a sequence."""
    counts = [-(-chunk.end // page_size) for chunk in chunks]
    if len(chunks) == 1:
        return chunks[0].sequence.table[None, :counts[0]].copy()
    table = np.zeros((len(chunks), max(counts)), np.int32)
    for row, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        table[row, :count] = chunk.sequence.table[:count]
    return table

