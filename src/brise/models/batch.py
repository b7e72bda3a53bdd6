"""The batch of one step: tokens of several sequences, packed one after the other.

Legend: T tokens in the step, S sequences, R rows whose outputs are wanted, P pages of the longest sequence.
Sequence s owns the tokens query_starts[s] to query_starts[s + 1]. Token t stands at absolute position
positions[t] of its sequence; its key and value are written to slot slots[t] = page * page_size + offset;
the key of position p of sequence s lies in page page_table[s, p // page_size].

Without a cache, sequence s may continue sequence parents[s] (a prompt that several share, computed once): its tokens
also see all of the parent's, whose positions are lower. A parent has no parent itself, and comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from brise.models.weights import Array

PAGE_SIZE = 16  # tokens of a page of the cache: the smallest that the kernels take


@dataclass(frozen=True)
class Batch:
    """All arrays int32 but `features`. Without a cache (training, scoring) page_table and slots are None."""

    tokens: Array  # (T,)
    positions: Array  # (T,)
    query_starts: Array  # (S + 1,)
    rows: Array  # (R,) token indices whose logits (or hidden states) are wanted
    page_table: Array | None = None  # (S, P), unused entries are 0
    slots: Array | None = None  # (T,)
    features: Array | None = None  # (N, D) float32: rows of images that take the place of tokens' embeddings
    feature_rows: Array | None = None  # (T,): which row of `features` is this token's, -1 for none
    parents: Array | None = None  # (S,), -1 for none; only without a cache
    reach: Array | None = None  # (T,): the last position that a token sees, its own or a later one; None: its own
    adapters: Array | None = None  # (T,): which adapter a token goes through, -1 for none; None: no adapters
    background: bool = False  # nobody waits for it: it gives way to all other work of the machine
