"""Shaders of the cache and of attention on the software device: rounding, agreement, and bits that have no company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from brise.backends.reference.cache import quantize_groups, quantize_heads
from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from brise.models.batch import Batch
from brise.models.ops import CacheFormat
from brise.models.weights import Array
from tests import tolerances
from tests.backends.attend_rows import Attend
from tests.backends.inputs import normal, off_ties, packed_batch
from tests.backends.vulkan.device_ops import Cut, DeviceBackend, DeviceCache, DeviceOps
from tests.backends.vulkan.lavapipe import Lavapipe

FORMATS: tuple[CacheFormat, ...] = ("f32", "f16", "q8", "q4")
# Heads, key/value heads, numbers of a head, rank of latents: each is a pipeline more in decode and in prefill.
SMOLLM2, MISTRAL = (9, 3, 64, 0), (8, 2, 128, 0)
SHAPES: dict[CacheFormat, tuple[tuple[int, int, int, int], ...]] = {
    "f32": (SMOLLM2, (2, 2, 34, 0), (20, 1, 16, 0), (5, 1, 48, 33)),
    "f16": (SMOLLM2, MISTRAL, (4, 4, 80, 0), (6, 2, 96, 0), (8, 1, 256, 0)),
    "q8": (SMOLLM2, (4, 4, 80, 0), (6, 2, 96, 0), (3, 1, 24, 16)),
    "q4": (SMOLLM2, (4, 4, 80, 0), (6, 2, 96, 0), (2, 2, 34, 0))}


def cases(format: CacheFormat) -> list[Attend]:
    """Sequences (past, new), with and without a window, over one chunk of 512 keys and over several."""
    out = []
    for heads, kv_heads, head_dim, rank in SHAPES[format]:
        shape = (heads, kv_heads, head_dim, format)
        out += [Attend(((0, 5), (0, 18)), *shape, rank=rank),
                Attend(((15, 1),), *shape, rank=rank),
                Attend(((17, 2), (0, 3), (5, 1), (16, 16)), *shape, rank=rank),
                Attend(((0, 40),), *shape, size=30.0, rank=rank),
                Attend(((511, 2), (512, 1), (550, 3)), *shape, page_size=64, rank=rank)]
        if not rank:
            out += [Attend(((0, 35), (0, 3)), *shape, window=7), Attend(((600, 3), (3, 1)), *shape, window=100)]
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_attention_agrees_with_the_reference_in_decode_and_prefill(lavapipe: Lavapipe, format: CacheFormat) -> None:
    for case in cases(format):
        expected = case.run(ReferenceOps(precision=np.float64), ReferenceBackend(), np.float64)
        allowed = max(tolerances.attend(*case._tensors(i), case.head_dim**-0.5) for i in range(len(case.sequences)))
        decode, prefill = (case.run(DeviceOps(lavapipe, is_decode), DeviceBackend(), np.float32)
                           for is_decode in (True, False))
        assert (np.abs(prefill - expected) <= allowed).all(), (case, np.abs(prefill - expected).max(), allowed)
        assert decode.tobytes() == prefill.tobytes(), case


def test_attention_without_a_cache_agrees_with_the_reference(lavapipe: Lavapipe) -> None:
    for case in (Attend(((0, 33), (0, 1)), 9, 3, 64), Attend(((0, 530),), 9, 3, 64)):
        expected = case.run(ReferenceOps(precision=np.float64), ReferenceBackend(), np.float64)
        actual = case.run(DeviceOps(lavapipe), DeviceBackend(), np.float32)
        assert (np.abs(actual - expected) <= case.allowed(expected)).all()


@pytest.mark.parametrize("format", ["f16", "q4"])
def test_numbers_below_the_least_normal_half_count(lavapipe: Lavapipe, format: CacheFormat) -> None:
    """Multiples of 2^-24, the least half; in q4 the minima of groups of equal numbers, whose scale is 0."""
    cache, batch = DeviceCache(1, 16, 1, 64, format), packed_batch([(0, 4)], [[0]])
    codes = np.random.default_rng(0).integers(-1023, 1024, (4, 1, 2))
    values = np.repeat(codes, 32, axis=2).astype(np.float32) * np.float32(2.0**-24)
    zeros = np.zeros((4, 1, 64), np.float32)  # as keys, so that the weights are equal
    for ops in (DeviceOps(lavapipe), DeviceOps(lavapipe, is_decode=True)):
        ops.write(cache, 0, 0, zeros, batch)
        ops.write(cache, 0, 1, values, batch)
        out = ops._attend(zeros, batch, cache, (0, 1), 1.0, None, 64)
        expected = np.cumsum(values[:, 0], axis=0) / np.arange(1, 5)[:, None]
        assert np.abs(out - expected).max() <= 2.0**-22 * np.abs(values).max()


# ---- company ----

@dataclass(frozen=True)
class Filled:
    """A cache of pages in some order, with a past of `past` tokens of one sequence and one of a neighbour."""

    ops: DeviceOps
    cache: DeviceCache
    pages: Sequence[int]

    def attend(self, q: Array, batch: Batch, window: int | None = None) -> Array:
        return self.ops._attend(q, batch, self.cache, (0, 1), 0.125, window, q.shape[2])


def fill(lavapipe: Lavapipe, format: CacheFormat, pages: Sequence[int], past: int) -> Filled:
    ops, cache = DeviceOps(lavapipe), DeviceCache(max(pages) + 1, 16, 3, 64, format)
    rng = np.random.default_rng(5)
    batch = packed_batch([(0, past)], [pages])
    for side in (0, 1):
        ops.write(cache, 0, side, normal(rng, (past, 3, 64), np.float32), batch)
    return Filled(ops, cache, pages)


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_has_the_same_bits_in_any_company(lavapipe: Lavapipe, format: CacheFormat) -> None:
    """Alone, behind others of its sequence, beside another sequence, by other cuts and in other pages."""
    past, first = 530, 524
    order = np.random.default_rng(2).permutation(70).tolist()
    q = normal(np.random.default_rng(6), (6, 9, 64), np.float32)
    filled = fill(lavapipe, format, order[:34], past)
    together = filled.attend(q, packed_batch([(first, 6)], [filled.pages]))
    alone = filled.attend(q[4:5], packed_batch([(first + 4, 1)], [filled.pages]))
    moved = fill(lavapipe, format, order[30:64], past)
    beside = packed_batch([(0, 2), (first + 2, 4)], [moved.pages, moved.pages])
    decode = replace(moved, ops=DeviceOps(lavapipe, is_decode=True))
    other = replace(moved, ops=DeviceOps(lavapipe, cut=Cut(3, 1, 1)))
    assert alone.tobytes() == together[4:5].tobytes()
    for company in (moved, decode, other):
        assert company.attend(q, beside)[2:].tobytes() == together[2:].tobytes()


def test_reach_shows_later_keys(lavapipe: Lavapipe) -> None:
    """All tokens of an image see each other: those that reach one position differ by their queries alone."""
    filled = fill(lavapipe, "f16", range(4), 40)
    q = np.repeat(normal(np.random.default_rng(6), (1, 9, 64), np.float32), 3, axis=0)
    batch = packed_batch([(36, 3)], [filled.pages])
    plain = filled.attend(q, batch)
    for ops in (filled.ops, DeviceOps(lavapipe, is_decode=True)):
        reached = replace(filled, ops=ops).attend(q, replace(batch, reach=np.full(3, 38, np.int32)))
        assert reached[0].tobytes() == reached[2].tobytes() == plain[2].tobytes() != plain[0].tobytes()


# ---- the cache ----

def written(lavapipe: Lavapipe, x: Array, format: CacheFormat) -> tuple[DeviceCache, Array]:
    """x (T, K, E) in a cache of four pages, and its side's words."""
    cache = DeviceCache(4, 16, x.shape[1], x.shape[2], format)
    DeviceOps(lavapipe).write(cache, 0, 0, x, packed_batch([(0, len(x))], [[2, 0, 3, 1]]))
    return cache, cache.side(0, 0)


def rows_of(cache: DeviceCache, words: Array, count: int) -> Array:
    """The words of the rows (T, K, n)."""
    rows = words[:4 * 16 * cache.kv_heads * cache.row_words].reshape(4, cache.kv_heads, 16, cache.row_words)
    return rows[[2, 0, 3, 1]].transpose(0, 2, 1, 3).reshape(64, cache.kv_heads, -1)[:count]


@pytest.mark.parametrize("head_dim", [2, 34, 64, 80, 96])
def test_f16_is_rounded_to_even(lavapipe: Lavapipe, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    x = (rng.standard_normal((20, 2, head_dim)) * np.exp(rng.uniform(-20, 12, (20, 2, head_dim)))).astype(np.float32)
    x[0, 0, :2], x[1, 0, :2] = (65519.996, -65520.0), (6e-8, 2.0**-25)
    x[2] = np.float16(x[2] % 1).astype(np.float32) + np.float32(2.0**-12)  # ties
    cache, words = written(lavapipe, x, "f16")
    with np.errstate(over="ignore"):
        assert rows_of(cache, words, 20).view(np.float16)[..., :head_dim].tobytes() == x.astype(np.float16).tobytes()


@pytest.mark.parametrize("head_dim", [2, 34, 64, 80, 96])
def test_q8_has_the_codes_of_the_reference(lavapipe: Lavapipe, head_dim: int) -> None:
    x = off_ties(np.random.default_rng(0), (20, 2, head_dim), head_dim)
    codes, scales = quantize_heads(x)
    cache, words = written(lavapipe, x, "q8")
    assert (rows_of(cache, words, 20).view(np.int8)[..., :head_dim] == codes).all()
    found = words[cache.scales_at:].view(np.float32)[:128].reshape(4, 2, 16)[[2, 0, 3, 1]].transpose(0, 2, 1)
    assert found.reshape(64, 2)[:20].tobytes() == scales.tobytes()


@pytest.mark.parametrize("head_dim", [2, 34, 64, 80, 96])
def test_q4_has_the_codes_of_the_reference(lavapipe: Lavapipe, head_dim: int) -> None:
    x = normal(np.random.default_rng(0), (20, 2, head_dim), np.float32)
    x[1], x[2, :, 1:] = 0.5, 1e5
    codes, lines = quantize_groups(x)
    cache, words = written(lavapipe, x, "q4")
    packed = rows_of(cache, words, 20).view(np.uint8)
    assert (np.stack([packed & 15, packed >> 4], axis=-1).reshape(20, 2, -1)[..., :head_dim] == codes).all()
    groups = lines.shape[2]
    found = words[cache.scales_at:][:128 * groups].reshape(4, 2, 16, groups)[[2, 0, 3, 1]].transpose(0, 2, 1, 3)
    assert found.reshape(64, 2, groups)[:20].copy().view(np.float16).tobytes() == lines.tobytes()
