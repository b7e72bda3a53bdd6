"""Tiny models of every family give the logits of transformers, on every backend, in both rope layouts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from brise.models import decoder
from brise.models.batch import Batch
from brise.models.ops import CacheFormat
from brise.models.rope import Layout
from brise.models.weights import Array, place
from tests import tolerances
from tests.backends.under_test import UnderTest
from tests.goldens.golden import NAMES, Golden, read

PAGE_SIZE = 16
PAGES = (3, 1, 4)  # 40 tokens, in no order
PREFILL_THEN_DECODE = (0, 7, 23, *range(24, 41))
ONE_BY_ONE = tuple(range(41))
FORMAT_TOLERANCES: tuple[tuple[CacheFormat, float], ...] = (
    ("f32", tolerances.GOLDEN_LOGITS), ("f16", tolerances.GOLDEN_LOGITS_F16),
    ("q8", tolerances.GOLDEN_LOGITS_Q8), ("q4", tolerances.GOLDEN_LOGITS_Q4))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", NAMES)
def test_forward_without_cache(under_test: UnderTest, name: str, layout: Layout) -> None:
    golden = read(name, layout)
    weights = place(golden.weights, under_test.backend.place)
    batch = packed(golden.tokens, 0, len(golden.tokens), cached=False)
    logits = decoder.forward(under_test.ops, golden.config, weights, batch)
    assert_close(logits, golden, tolerances.GOLDEN_LOGITS)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", NAMES)
def test_forward_in_chunks_with_pages(under_test: UnderTest, name: str, layout: Layout) -> None:
    golden = read(name, layout)
    assert_close(in_chunks(under_test, golden, PREFILL_THEN_DECODE, "f32"), golden, tolerances.GOLDEN_LOGITS)


@pytest.mark.parametrize("name", NAMES)
def test_forward_token_by_token(under_test: UnderTest, name: str) -> None:
    golden = read(name, "half")
    assert_close(in_chunks(under_test, golden, ONE_BY_ONE, "f32"), golden, tolerances.GOLDEN_LOGITS)


@pytest.mark.parametrize(("format", "tolerance"), FORMAT_TOLERANCES)
@pytest.mark.parametrize("name", ["mistral_window", "ministral3_yarn1_tied", "qwen3", "large3", "gemma3"])
def test_forward_with_small_caches(under_test: UnderTest, name: str, format: CacheFormat,
                                   tolerance: float) -> None:
    golden = read(name, "interleaved")
    assert_close(in_chunks(under_test, golden, PREFILL_THEN_DECODE, format), golden, tolerance)


@pytest.mark.parametrize("name", ["llama_untied", "ministral3_yarn0_untied"])
def test_packed_sequences_do_not_see_each_other(under_test: UnderTest, name: str) -> None:
    golden = read(name, "half")
    starts = np.array([0, 9, 10, 40], np.int32)
    lengths = np.diff(starts)
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    tokens = np.concatenate([golden.tokens[:n] for n in lengths])
    weights = place(golden.weights, under_test.backend.place)
    batch = Batch(tokens, positions, starts, np.arange(40, dtype=np.int32))
    logits = decoder.forward(under_test.ops, golden.config, weights, batch)
    expected = np.concatenate([golden.logits[:n] for n in lengths])
    assert np.abs(logits - expected).max() < tolerances.GOLDEN_LOGITS


def in_chunks(under_test: UnderTest, golden: Golden, ends: tuple[int, ...], format: CacheFormat) -> Array:
    """Logits of all tokens, computed by the backend's runner from chunk to chunk with a paged cache."""
    weights = place(golden.weights, under_test.backend.place)
    runner = under_test.backend.runner(golden.config, weights, max_tokens=16)
    cache = under_test.backend.new_cache(golden.config, max(PAGES) + 1, PAGE_SIZE, format)
    return np.concatenate([runner.logits(packed(golden.tokens, first, end, cached=True), cache).copy()
                           for first, end in pairwise(ends)])


def packed(tokens: Array, first: int, end: int, *, cached: bool) -> Batch:
    """Tokens first to end of one sequence, all logits wanted."""
    positions = np.arange(first, end, dtype=np.int32)
    table = np.array([PAGES], np.int32)
    slots = table[0, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    return Batch(tokens[first:end], positions, np.array([0, end - first], np.int32),
                 np.arange(end - first, dtype=np.int32),
                 page_table=table if cached else None, slots=slots if cached else None)


def assert_close(logits: Array, golden: Golden, tolerance: float) -> None:
    assert logits.shape == golden.logits.shape and logits.dtype == np.float32
    assert np.abs(logits - golden.logits).max() < tolerance
