"""Cache pages for a batch that runs without a cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from brise.errors import UnsupportedError
from brise.models.batch import PAGE_SIZE, Batch


def packed_pages(batch: Batch) -> tuple[Batch, int]:
    """The batch with pages for exactly its own tokens, and their number. Attention without a cache runs on these."""
    if batch.parents is not None:
        raise UnsupportedError("a batch with shared prompts (parents) is for training, which needs the torch backend")
    starts = np.asarray(batch.query_starts)
    counts = -(-np.diff(starts) // PAGE_SIZE)
    table = np.zeros((len(counts), int(counts.max(initial=0))), np.int32)
    slots = np.zeros(len(batch.tokens), np.int32)
    first = 0
    for index, count in enumerate(counts):
        begin, end = starts[index], starts[index + 1]
        table[index, :count] = np.arange(first, first + count)
        slots[begin:end] = first * PAGE_SIZE + np.arange(end - begin)
        first += int(count)
    return replace(batch, page_table=table, slots=slots), max(first, 1)
