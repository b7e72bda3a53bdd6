"""The 4-bit cache: its definition in NumPy, and that the kernels store and read exactly that."""

from __future__ import annotations

import numpy as np
import pytest

from brise import _native
from brise.backends.reference.cache import ReferenceCache, quantize_groups
from brise.models.batch import Batch
from brise.models.weights import Array

HEAD_DIMS = (1, 16, 31, 32, 33, 48, 80, 96, 128)


def heads(*, tokens: int, head_dim: int) -> Array:
    """Numbers of every size, rows of one number, ties between codes, and numbers beyond float16."""
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((tokens, 2, head_dim)) * 10.0 ** rng.integers(-9, 7, (tokens, 2, 1))
    x[0] = 0
    x[1] = -1.7
    x[2] = rng.integers(0, 31, (2, head_dim)) / 2
    return x.astype(np.float32)


def read_back(x: Array) -> Array:
    codes, lines = quantize_groups(x)
    scale, minimum = (np.repeat(lines[..., i], 32, axis=-1)[..., :x.shape[-1]].astype(np.float32) for i in (0, 1))
    return scale * codes + minimum


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_number_is_off_by_half_a_step(head_dim: int) -> None:
    x = np.random.default_rng(1).standard_normal((50, 3, head_dim)).astype(np.float32)
    codes, lines = quantize_groups(x)
    assert codes.max(initial=0) <= 15 and lines.shape == (50, 3, -(-head_dim // 32), 2)
    step = np.repeat(lines[..., 0], 32, axis=-1)[..., :head_dim].astype(np.float32)
    # Half a step; scale and minimum are themselves rounded by 2^-11 of 15 steps and of numbers up to 5.
    assert (np.abs(read_back(x) - x) <= step / 2 + (15 * step + 5) * 2.0**-11).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("isa", _native.isa_names())
def test_a_token_alone_gets_its_value_as_it_was_stored(isa: str, head_dim: int) -> None:
    tokens = 40  # each a sequence of its own: the weight of its only key is 1
    v = heads(tokens=tokens, head_dim=head_dim)
    program = _native.Backend(2, isa).program()
    q, k = (program.input(2 * head_dim) for _ in range(2))
    out = program.attend(q, q, k, 0, 2, 2, 1.0, 0)
    program.finish([out])
    program.set_input(q, np.zeros((tokens, 2 * head_dim), np.float32))
    program.set_input(k, v.reshape(tokens, -1))
    numbers = np.arange(tokens, dtype=np.int32)
    starts = np.arange(tokens + 1, dtype=np.int32)
    batch = Batch(numbers * 0, numbers * 0, starts, numbers * 0, numbers[:, None], numbers * 16)
    program.run(batch.tokens, batch.positions, batch.query_starts, batch.rows, batch.page_table, batch.slots,
                _native.Cache(1, tokens, 16, 2, head_dim, "q4"), None, None)
    assert np.array_equal(program.read(out, tokens).reshape(v.shape), read_back(v))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_reference_cache_reads_what_is_defined(head_dim: int) -> None:
    k, v = heads(tokens=5, head_dim=head_dim), -heads(tokens=5, head_dim=head_dim)
    cache, slots = ReferenceCache(2, 2, head_dim, 1, 16, "q4"), np.array([3, 0, 7, 15, 8])
    cache.write(1, slots, k, v)
    keys, values = cache.read(1, slots)
    assert np.array_equal(keys, read_back(k)) and np.array_equal(values, read_back(v))


def test_a_number_takes_five_bits() -> None:
    shape = (3, 4, 16, 8, 128)
    q4, f32 = (_native.cache_bytes(*shape, format, 2) for format in ("q4", "f32"))
    assert q4 * 32 == f32 * 5
