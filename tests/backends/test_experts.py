"""The experts op of the native backend, bit for bit: alone or in a batch, all in memory or loaded when needed."""

from __future__ import annotations

import numpy as np
import pytest

from brise.errors import CheckpointError, UnsupportedError
from brise.models.ops import Ops
from brise.models.weights import Array, Dense, Quant, Stack, Weight
from tests.backends.expert_rows import Experts
from tests.backends.under_test import UnderTest

_native = pytest.importorskip("brise._native")
native = pytest.importorskip("brise.backends.native.backend")
NAMES = ("w1", "w2", "w3")


@pytest.fixture
def backend(under_test: UnderTest) -> native.NativeBackend:
    if not isinstance(under_test.backend, native.NativeBackend):
        pytest.skip("for the native backend")
    return under_test.backend


def one_by_one(ops: Ops, x: Array, gates: Array, stacks: list[tuple[Weight, ...]]) -> Array:
    """The contract's formula over the backend's own linears, experts ascending."""
    out = np.zeros_like(x)
    for index, (w1, w2, w3) in enumerate(zip(*stacks, strict=True)):
        own = np.flatnonzero(gates[:, index])
        if len(own):
            y = ops.linear(ops.silu_mul(*ops.linears(x[own], (w1, w3))), w2)
            out[own] += gates[own, index, None] * y
    return out


@pytest.mark.parametrize("format", ["F32", "BF16", "Q4_0", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("tokens", [1, 2, 13, 40])
def test_experts_are_their_linears(under_test: UnderTest, format: str, tokens: int) -> None:
    if not under_test.is_quantized:
        pytest.skip("the reference sums all experts at once")
    backend = under_test.backend
    row = Experts(format, tokens, 6, 3, 256, 512)
    x, gates = row.inputs()
    parts = [tuple(backend.place("w", matrix) for matrix in stack.matrices) for stack in row.stacks()]
    np.testing.assert_array_equal(row.run(under_test.ops, backend, np.float32),
                                  one_by_one(under_test.ops, x, gates, parts))


@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_a_token_gets_the_same_alone(under_test: UnderTest, format: str) -> None:
    if not under_test.is_quantized:
        pytest.skip("NumPy's sums depend on how many tokens there are")
    backend = under_test.backend
    row = Experts(format, 30, 5, 2, 64, 96)
    x, gates = row.inputs()
    placed = [backend.place(name, stack) for name, stack in zip(NAMES, row.stacks(), strict=True)]
    together = under_test.ops.experts(x, gates, *placed)
    alone = [under_test.ops.experts(x[t:t + 1], gates[t:t + 1], *placed)[0] for t in range(len(x))]
    np.testing.assert_array_equal(together, alone)


def loaded(backend: native.NativeBackend, row: Experts, room: int,
           read: list[Weight]) -> tuple[list[Weight], _native.ExpertStore]:
    """The row's stacks, of which a store holds `room` experts, and that store."""
    stacks = row.stacks()
    store = _native.ExpertStore(room * expert_bytes(stacks))
    return [backend.place_experts(name, stack, store, read.append)
            for name, stack in zip(NAMES, stacks, strict=True)], store


def expert_bytes(stacks: tuple[Stack, ...]) -> int:
    return sum(_native.weight_bytes(stack.matrices[0].format, *stack.matrices[0].shape) for stack in stacks)


@pytest.mark.parametrize("room", [1, 2, 100])
@pytest.mark.parametrize("tokens", [1, 40])
def test_experts_that_are_loaded_when_needed_are_the_same(under_test: UnderTest, backend: native.NativeBackend,
                                                          tokens: int, room: int) -> None:
    row = Experts("Q4_0", tokens, 6, 3, 64, 96)
    expected, (x, gates) = row.run(under_test.ops, backend, np.float32), row.inputs()
    read: list[Weight] = []
    stacks, store = loaded(backend, row, room, read)
    assert store.nbytes == 0 and not read
    for _ in range(2):
        np.testing.assert_array_equal(under_test.ops.experts(x, gates, *stacks), expected)
        assert store.nbytes <= store.budget
    needed = 3 * int((gates != 0).any(axis=0).sum())
    assert store.num_loads == len(read)
    if room == 100:
        assert store.num_loads == needed
    else:  # what the first run left is used before it is thrown out
        assert needed < store.num_loads == 2 * needed - 3 * room


def test_an_error_while_loading_ends_the_step_and_not_the_next_one(under_test: UnderTest,
                                                                   backend: native.NativeBackend) -> None:
    row = Experts("Q4_0", 8, 4, 2, 64, 96)
    expected, (x, gates) = row.run(under_test.ops, backend, np.float32), row.inputs()
    is_broken = True

    def on_read(weight: Weight) -> None:
        if is_broken and weight is row_stacks[1].matrices[1]:
            raise CheckpointError("expert 1 is damaged")

    row_stacks = row.stacks()
    store = _native.ExpertStore(2 * expert_bytes(row_stacks))
    stacks = [backend.place_experts(name, stack, store, on_read)
              for name, stack in zip(NAMES, row_stacks, strict=True)]
    with pytest.raises(CheckpointError, match="expert 1 is damaged"):
        under_test.ops.experts(x, gates, *stacks)
    is_broken = False
    np.testing.assert_array_equal(under_test.ops.experts(x, gates, *stacks), expected)


def test_a_store_smaller_than_an_expert_is_refused(backend: native.NativeBackend) -> None:
    stack = Experts("Q4_0", 1, 2, 1, 64, 96).stacks()[0]
    with pytest.raises(UnsupportedError, match="the store holds 4096 bytes, one matrix takes"):
        backend.place_experts("w1", stack, _native.ExpertStore(4096), lambda _: None)


def test_experts_of_different_formats_are_refused_by_name(backend: native.NativeBackend) -> None:
    first = Experts("Q4_0", 1, 1, 1, 64, 96).stacks()[0].matrices[0]
    second = Experts("Q8_0", 1, 1, 1, 64, 96).stacks()[0].matrices[0]
    assert isinstance(first, Quant | Dense) and isinstance(second, Quant | Dense)
    with pytest.raises(UnsupportedError, match=r"layers\.3\.w1\.1 is Q8_0 \(96, 64\), allowed is Q4_0"):
        backend.place_experts("layers.3.w1", Stack((first, second)), _native.ExpertStore(1 << 20), lambda _: None)
    with pytest.raises((ValueError, UnsupportedError), match="one shape and one format"):
        _native.Stack([backend.place("w", first).handle, backend.place("w", second).handle])


def test_recording_refuses_experts_that_do_not_fit_together(backend: native.NativeBackend) -> None:
    w1, w2, w3 = (_native.Stack([backend.place("w", matrix).handle for matrix in stack.matrices])
                  for stack in Experts("F32", 1, 3, 1, 32, 48).stacks())
    program = backend.handle.program()
    x, narrow, gates = program.input(32), program.input(31), program.input(3)
    for arguments in ((narrow, gates, w1, w2, w3), (x, x, w1, w2, w3), (x, gates, w1, w1, w3), (x, gates, w1, w2, w2)):
        with pytest.raises(ValueError, match="wanted"):
            program.experts(*arguments)
    with pytest.raises(ValueError, match="wanted 1 to as many as there are"):
        program.route(gates, 4, 1.0)
    assert program.experts(x, gates, w1, w2, w3) == gates + 1
