"""Latent attention gives a token the same bits alone, in a prefill and in a batch."""

from __future__ import annotations

import numpy as np
import pytest

from brise import _native
from brise.backends.native.backend import NativeBackend
from brise.models.ops import CacheFormat
from brise.models.weights import Array
from tests.backends.inputs import packed_batch

HEADS, HEAD_DIM, RANK, TOKENS = 5, 40, 32, 530
PAGES = tuple(range(0, 80, 2))  # every other page belongs to the sequence beside
FORMATS: tuple[CacheFormat, ...] = ("f32", "f16", "q8", "q4")


def in_steps(isa: str, format: CacheFormat, ends: list[int], *, in_company: bool = False) -> Array:
    """(T, H, C) of all tokens, computed from one of `ends` to the next."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((TOKENS, HEADS, HEAD_DIM)).astype(np.float32)
    kv = rng.standard_normal((TOKENS, 1, HEAD_DIM)).astype(np.float32)
    ops, cache = NativeBackend(2, isa).ops(), _native.Cache(1, 80, 16, 1, HEAD_DIM, format, 1)
    results, first = [], 0
    for end in ends:
        spans, pages, parts = [(first, end - first)], [PAGES], [slice(first, end)]
        if in_company:
            spans, pages, parts = [(0, 3), *spans], [(1,), *pages], [slice(7, 10), *parts]
        batch = packed_batch(spans, pages)
        out = ops.attend_latent(np.concatenate([q[part] for part in parts]),
                                np.concatenate([kv[part] for part in parts]), batch, cache, 0, 0.2, RANK)
        results.append(out[-(end - first):])
        first = end
    return np.concatenate(results)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("isa", NativeBackend.available_isas())
def test_bits_do_not_depend_on_the_steps_or_on_company(isa: str, format: CacheFormat) -> None:
    whole = in_steps(isa, format, [TOKENS])
    decoded = in_steps(isa, format, [7, 500, *range(501, TOKENS + 1)])
    assert (decoded == whole).all()
    assert (in_steps(isa, format, [20, 513, 514, TOKENS], in_company=True) == whole).all()
