"""What the compiled module refuses: calls that would make a kernel read or write out of bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise import _native
from brise.models.weights import Array

WIDTH, ROWS = 32, 20
BACKEND = _native.Backend(2, "")
VECTOR = _native.vector(np.ones(WIDTH, np.float32))
TWO_TOKENS, ONE_SEQUENCE = np.array([0, 1], np.int32), np.array([0, 2], np.int32)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int32)


def matrix(rows: int = ROWS) -> _native.Weight:
    return BACKEND.pack("F32", np.ones((rows, WIDTH), np.float32).view(np.uint8), WIDTH)


def step(program: _native.Program, tokens: Array = TWO_TOKENS, starts: Array = ONE_SEQUENCE,
         cache: _native.Cache | None = None) -> None:
    sequences = len(starts) - 1
    program.run(tokens, np.arange(len(tokens), dtype=np.int32), starts, ints(0, 1),
                np.zeros((sequences, 1), np.int32), np.arange(len(tokens), dtype=np.int32), cache)


def finished(*, attends: bool = False) -> _native.Program:
    program = BACKEND.program()
    x = program.embed(matrix())
    program.finish([program.attend(x, x, x, 1, 2, 2, 1.0, 0) if attends else program.add(x, x)])
    return program


RECORDED: dict[str, Callable[[_native.Program, int, int], object]] = {
    "add": lambda p, x, y: p.add(x, y),
    "silu_mul": lambda p, x, y: p.silu_mul(x, y),
    "gelu_mul": lambda p, x, y: p.gelu_mul(x, y),
    "take_rows": lambda p, x, y: p.take_rows(y),
    "rope": lambda p, x, y: p.rope(y, p.rope_table([0.1], 1.0), 1, False),
    "rope table": lambda p, x, y: p.rope(x, y, 1, False),
    "scale_queries": lambda p, x, y: p.scale_queries(y, 1.0, 2.0),
    "attend": lambda p, x, y: p.attend(y, x, x, 0, 2, 2, 1.0, 0),
    "put_rows": lambda p, x, y: p.put_rows(y),
    "heads_linear": lambda p, x, y: p.heads_linear(y, [matrix()]),
    "heads_linear width": lambda p, x, y: p.heads_linear(x, [matrix(), matrix()]),
    "heads_linear shapes": lambda p, x, y: p.heads_linear(p.concat(x, x, 1), [matrix(), matrix(ROWS + 1)]),
    "heads_linear vector": lambda p, x, y: p.heads_linear(x, [VECTOR]),
    "heads_linear of none": lambda p, x, y: p.heads_linear(x, []),
    "columns": lambda p, x, y: p.columns(x, 2, 0, WIDTH // 2 + 1),
    "columns from behind": lambda p, x, y: p.columns(x, 1, -1, 3),
    "no columns": lambda p, x, y: p.columns(x, 1, 3, 3),
    "columns of heads": lambda p, x, y: p.columns(x, 3, 0, 1),
    "concat": lambda p, x, y: p.concat(x, y, 1),
    "concat heads": lambda p, x, y: p.concat(x, x, 5),
    "attend_latent": lambda p, x, y: p.attend_latent(y, x, 0, 1, 1.0, 3),
    "attend_latent keys": lambda p, x, y: p.attend_latent(x, x, 0, 2, 1.0, 3),
    "attend_latent rank": lambda p, x, y: p.attend_latent(x, x, 0, 1, 1.0, WIDTH + 1),
    "attend keys": lambda p, x, y: p.attend(x, y, y, 0, 2, 2, 1.0, 0),
    "negative layer": lambda p, x, y: p.attend(x, x, x, -1, 2, 2, 1.0, 0),
    "negative window": lambda p, x, y: p.attend(x, x, x, 0, 2, 2, 1.0, -1),
    "matrix as bias": lambda p, x, y: p.bias(x, matrix()),
    "vector as table": lambda p, x, y: p.embed(VECTOR),
    "empty table": lambda p, x, y: p.rope_table([], 1.0),
    "no width": lambda p, x, y: p.input(0),
    "no such value": lambda p, x, y: p.width(99),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recording_refuses(name: str) -> None:
    program = BACKEND.program()
    x = program.embed(matrix())
    with pytest.raises(ValueError, match="wanted|wider|negative|needs|at least 1|no value"):
        RECORDED[name](program, x, program.take_rows(x))


def test_a_matrix_has_rows() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        matrix(0)


def test_refused_linears_leave_no_value_behind() -> None:
    program = BACKEND.program()
    x = program.embed(matrix())
    narrow = BACKEND.pack("F32", np.ones((1, 4), np.uint8), 1)
    with pytest.raises(ValueError, match="columns"):
        program.linears(x, [matrix(), narrow])
    assert program.add(x, x) == x + 1


def test_nothing_runs_before_finish_or_is_recorded_after() -> None:
    program = BACKEND.program()
    x = program.input(WIDTH)
    with pytest.raises(ValueError, match="not finished"):
        program.set_input(x, np.ones((2, WIDTH), np.float32))
    with pytest.raises(ValueError, match="not finished"):
        step(program)
    program.finish([x])
    with pytest.raises(ValueError, match="finished already"):
        program.add(x, x)


def test_a_token_is_a_row_of_the_table_whatever_the_vocabulary() -> None:
    with pytest.raises(ValueError, match=f"allowed are 0 to {ROWS - 1}"):
        step(finished(), ints(0, ROWS))


def test_starts_that_pass_the_last_token_are_refused() -> None:
    with pytest.raises(ValueError, match="must not fall"):
        step(finished(), starts=ints(0, 1 << 30, 2), cache=_native.Cache(1, 1, 16, 1, 1, "f32"))


@pytest.mark.parametrize("shape", [(1, 2, 16), (2, 1, 16), (2, 2, 32), (2, 3, 16)])
def test_a_cache_of_another_shape_is_refused(shape: tuple[int, int, int]) -> None:
    layers, kv_heads, head_dim = shape
    program = finished(attends=True)
    with pytest.raises(ValueError, match="on a cache of"):
        step(program, cache=_native.Cache(layers, 1, 16, kv_heads, head_dim, "f32"))
    with pytest.raises(ValueError, match="needs a cache"):
        step(program)
    step(program, cache=_native.Cache(2, 1, 16, 2, 16, "f32"))


@pytest.mark.parametrize("shape", [(1, 1 << 28, 16, 1, 1), (1 << 30, 1 << 20, 16, 1 << 30, 9), (-1, -1, 16, 1, 1)])
def test_a_cache_too_large_to_count_is_refused(shape: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no cache has|at least one"):
        _native.Cache(*shape, "f32")
    with pytest.raises(ValueError, match="no cache has"):
        _native.cache_bytes(*shape, "f32")


def test_read_gives_no_more_rows_than_there_are_and_they_stay() -> None:
    program = finished()
    with pytest.raises(ValueError, match="has not 1 rows"):
        program.read(1, 1)
    step(program)
    seen = program.read(1, 2)
    with pytest.raises(ValueError, match="has not 5000 rows"):
        program.read(1, 5000)
    step(program, np.zeros(5000, np.int32), ints(0, 5000))
    del program
    assert (seen == 2).all()


def test_a_taken_row_is_not_overwritten_by_the_rows_after_it() -> None:
    program = BACKEND.program()
    x = program.input(WIDTH)
    moved = program.add(x, x)
    program.finish([program.add(program.take_rows(moved), program.take_rows(moved))])
    numbers = np.repeat(np.arange(64, dtype=np.float32)[:, None], WIDTH, axis=1)
    program.set_input(x, numbers)
    tokens = np.zeros(64, np.int32)
    program.run(tokens, tokens, ints(0, 64), np.arange(64, dtype=np.int32)[::-1].copy(),
                np.zeros((0, 0), np.int32), ints(), None)
    assert (program.read(4, 64) == 4 * numbers[::-1]).all()


def test_inputs_keep_what_they_are_given() -> None:
    program = BACKEND.program()
    x = program.input(WIDTH)
    doubled = program.linears(program.add(x, x), [matrix(WIDTH)])[0]
    y = program.input(WIDTH)
    program.finish([program.add(doubled, y)])
    for value in (x, y):
        program.set_input(value, np.full((2, WIDTH), value + 1, np.float32))
    step(program)
    assert (program.read(y + 1, 2) == 2 * WIDTH + y + 1).all()


@pytest.mark.parametrize(("features", "rows"), [
    (np.ones((2, WIDTH + 1), np.float32), ints(0, 1)), (np.ones((2, WIDTH), np.float32), ints(0, 2)),
    (np.ones((2, WIDTH), np.float32), ints(-2, 0)), (np.ones((2, WIDTH), np.float32), ints(0)),
    (np.ones((2, WIDTH), np.float32), None), (None, ints(0, 0))])
def test_features_that_do_not_fit_are_refused(features: Array | None, rows: Array | None) -> None:
    program = BACKEND.program()
    program.finish([program.put_rows(program.embed(matrix()))])
    with pytest.raises(ValueError, match="feature"):
        program.run(TWO_TOKENS, TWO_TOKENS, ONE_SEQUENCE, ints(), np.zeros((0, 0), np.int32), ints(), None,
                    features, rows)


def test_latents_and_keys_with_values_do_not_share_a_cache() -> None:
    program = BACKEND.program()
    x = program.embed(matrix())
    program.finish([program.attend_latent(x, x, 0, 1, 1.0, 16)])
    with pytest.raises(ValueError, match="latents on a cache of keys and values"):
        step(program, cache=_native.Cache(1, 1, 16, 1, WIDTH, "f32"))
    step(program, cache=_native.Cache(1, 1, 16, 1, WIDTH, "f32", 1))
    with pytest.raises(ValueError, match="keys and values on a cache of latents"):
        step(finished(attends=True), cache=_native.Cache(2, 1, 16, 2, 16, "f32", 1))


def test_a_cache_of_latents_is_half_of_one_with_values() -> None:
    for format in ("f32", "f16", "q8"):
        assert 2 * _native.cache_bytes(3, 5, 16, 1, 64, format, 1) == _native.cache_bytes(3, 5, 16, 1, 64, format)


def test_an_input_has_a_row_for_each_token() -> None:
    program = BACKEND.program()
    x = program.input(WIDTH)
    program.finish([program.add(x, x)])
    program.set_input(x, np.ones((1, WIDTH), np.float32))
    with pytest.raises(ValueError, match="1 rows in a step of 2 tokens"):
        step(program)


@pytest.mark.parametrize(("first", "count"), [(8, 12), (16, 5), (0, 21), (32, 1), (0, 4), (0, 0)])
def test_rows_are_filled_in_whole_tiles(first: int, count: int) -> None:
    weight = _native.empty("F32", ROWS, WIDTH)
    with pytest.raises(ValueError, match="must begin and end"):
        BACKEND.fill(weight, first, np.zeros((count, WIDTH * 4), np.uint8))
    with pytest.raises(ValueError, match="has 128 bytes, got 4"):
        BACKEND.fill(weight, 16, np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="must begin and end"):
        BACKEND.fill(VECTOR, 0, np.zeros((1, 4), np.uint8))


def test_adapters_that_would_be_read_out_of_bounds_are_refused() -> None:
    backend, ones = _native.Backend(1, ""), np.ones
    table = _native.LoraTable([(20, 32), (8, 32)], 2, 4)
    float_ones = ones((4, 32), np.float32), ones((20, 4), np.float32)
    for part in ((2, *float_ones, 1.0, None), (-1, *float_ones, 1.0, None), (1, *float_ones, 1.0, None),
                 (0, float_ones[0][:3], float_ones[1], 1.0, None), (0, *float_ones, 1.0, ones(19, np.float32)),
                 (0, ones((5, 32), np.float32), ones((20, 5), np.float32), 1.0, None)):
        with pytest.raises(ValueError, match="target"):
            _native.Adapter(table, [part])
    whole = (0, *float_ones, 1.0, None)
    with pytest.raises(ValueError, match="twice"):
        _native.Adapter(table, [whole, whole])
    with pytest.raises(ValueError, match="another table"):
        _native.LoraTable([(20, 32)], 1, 4).put(0, _native.Adapter(table, [whole]))
    whole_matrix = backend.pack("F32", ones((20, 32), np.float32).view(np.uint8), 32)
    program = backend.program()
    x = program.embed(whole_matrix)
    for count, targets_of in ((1, [1]), (1, [2]), (1, [-2]), (1, []), (2, [0])):
        with pytest.raises(ValueError, match="target"):
            program.adapted_linears(x, [whole_matrix] * count, table, targets_of)
    with_embedding = _native.LoraTable([(20, 32), (8, 32)], 2, 4, 1)
    for target in (-1, 0, 2):
        with pytest.raises(ValueError, match="no embedding of the table"):
            program.adapted_embed(whole_matrix, with_embedding, target)
    with pytest.raises(ValueError, match="the embedding has others"):
        program.adapted_embed(whole_matrix, with_embedding, 1)
    with pytest.raises(ValueError, match="is an embedding"):
        program.adapted_linears(x, [backend.pack("F32", ones((8, 32), np.float32).view(np.uint8), 32)],
                                with_embedding, [1])
    with pytest.raises(ValueError, match="takes no gain"):
        _native.Adapter(with_embedding, [(1, float_ones[0], ones((8, 4), np.float32), 1.0, ones(8, np.float32))])
    program.adapted_linears(x, [whole_matrix], table, [0])
    with pytest.raises(ValueError, match="one table"):
        program.adapted_linears(x, [whole_matrix], _native.LoraTable([(20, 32)], 1, 4), [0])
    for first, shape in ((0, (21, 32)), (20, (1, 32)), (0, (1, 31))):
        with pytest.raises(ValueError, match="rows"):
            whole_matrix.rows(first, ones(shape, np.float32))
