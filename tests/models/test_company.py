"""A token's numbers do not depend on its company: native logits of each family are the same bits however it is run."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from brise.models.batch import Batch
from brise.models.weights import place
from tests.backends.under_test import open_backend
from tests.goldens.golden import read
from tests.models.test_goldens import ONE_BY_ONE, PAGE_SIZE, PAGES, PREFILL_THEN_DECODE, in_chunks, packed

native = pytest.importorskip("brise.backends.native.backend")
NAMES = ("smollm3", "mixtral", "mixtral_window", "granite", "granite4", "phi3", "phi4_long", "phi4_short", "gemma3")


@pytest.mark.parametrize("name", NAMES)
def test_decode_equals_prefill_and_a_batch_equals_single_sequences(name: str) -> None:
    under_test = open_backend(f"native-{native.NativeBackend.available_isas()[0]}")
    golden = read(name, "interleaved")
    whole = in_chunks(under_test, golden, (0, 16, 32, 40), "f16")
    assert np.array_equal(in_chunks(under_test, golden, PREFILL_THEN_DECODE, "f16"), whole)
    assert np.array_equal(in_chunks(under_test, golden, ONE_BY_ONE, "f16"), whole)
    backend = under_test.backend
    runner = backend.runner(golden.config, place(golden.weights, backend.place), max_tokens=64)
    cache = backend.new_cache(golden.config, 2 * (max(PAGES) + 1), PAGE_SIZE, "f16")
    both = [two(packed(golden.tokens, first, end, cached=True)) for first, end in pairwise((0, 7, 23, 40))]
    logits = [runner.logits(batch, cache).copy() for batch in both]
    for half in (0, 1):
        assert np.array_equal(np.concatenate([np.split(part, 2)[half] for part in logits]), whole)


def two(one: Batch) -> Batch:
    """The same sequence twice in one step, the second in pages of its own."""
    assert one.page_table is not None and one.slots is not None
    count, moved = len(one.tokens), max(PAGES) + 1
    return Batch(np.tile(one.tokens, 2), np.tile(one.positions, 2), np.array([0, count, 2 * count], np.int32),
                 np.arange(2 * count, dtype=np.int32),
                 page_table=np.concatenate([one.page_table, one.page_table + moved]),
                 slots=np.concatenate([one.slots, one.slots + moved * PAGE_SIZE]))
