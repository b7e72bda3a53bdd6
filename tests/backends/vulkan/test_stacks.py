"""Shaders of stacks on the software device: each row has the bits of the linear of its matrix, however it is listed."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest

from brise.models.weights import Array, Weight
from tests.backends.inputs import BLOCKS, off_ties, weight
from tests.backends.vulkan.lavapipe import Lavapipe
from tests.backends.vulkan.test_linear import ONE, PLAIN, SPLITS, UNTOUCHED, Split, linear, quantize, tiles

COUNT, ROWS = 5, 33


@dataclass(frozen=True)
class Routed:
    """The plan of some tokens' places as the shaders make it: shaders/README.md."""

    gates: Array  # (T, X)
    per_token: int
    most: int  # places of a unit
    plan: Array

    @property
    def places(self) -> int:
        return len(self.gates) * self.per_token

    @property
    def experts(self) -> Array:
        """(T, per_token), -1: none."""
        return self.plan[:self.places].reshape(-1, self.per_token)

    @property
    def units(self) -> Array:
        """(N, 3): expert, first place of the list, places."""
        return self.plan[3 * self.places:].reshape(-1, 3)


def routed(lavapipe: Lavapipe, gates: Array, per_token: int, most: int) -> Routed:
    tokens, experts = gates.shape
    places = tokens * per_token
    units = places if most == 1 else places // most + experts
    plan = np.full(3 * places + 3 * units, -77, np.int32)
    push = struct.pack("5i", experts, per_token, 0, places, most == 1)
    plan = lavapipe.dispatch("expert_places", [gates, plan], push, (1, tokens, 1))[1]
    if most > 1:
        plan = lavapipe.dispatch("expert_units", [plan], struct.pack("2i", places, most), (experts, 1, 1))[0]
    return Routed(gates, per_token, most, plan)


def some_gates(tokens: int, experts: int, per_token: int) -> Array:
    """Gates of tokens of which every fifth has fewer experts than it may; the expert before the last has no token."""
    rng, out = np.random.default_rng((tokens, experts)), np.zeros((tokens, experts), np.float32)
    allowed = np.delete(np.arange(experts), max(experts - 2, 1)) if experts > 2 else np.arange(experts)
    for token in range(tokens):
        own = max(per_token - (token % 5 == 4), 0)
        out[token, rng.permutation(allowed)[:own]] = rng.uniform(0.1, 1, min(own, len(allowed)))
    return out


@pytest.mark.parametrize(("tokens", "experts", "per_token", "most"), [
    (1, 1, 1, 1), (3, 8, 2, 1), (40, 4, 2, 16), (33, 8, 3, 4), (150, 130, 4, 4), (5, 1024, 7, 1), (300, 3, 3, 16)])
def test_every_place_is_in_one_unit_of_its_expert(lavapipe: Lavapipe, tokens: int, experts: int, per_token: int,
                                                  most: int) -> None:
    plan = routed(lavapipe, some_gates(tokens, experts, per_token), per_token, most)
    for token, gates in enumerate(plan.gates):
        own = np.flatnonzero(gates)
        assert plan.experts[token, :len(own)].tolist() == own.tolist()
        assert (plan.experts[token, len(own):] == -1).all()
        found = plan.plan[plan.places:2 * plan.places].view(np.float32).reshape(-1, per_token)[token]
        assert found[:len(own)].tobytes() == gates[own].tobytes()
    listed = plan.plan[2 * plan.places:3 * plan.places]
    seen = [(expert, place) for expert, first, count in plan.units for place in listed[first:first + count]]
    expected = [(expert, place) for expert in range(experts)
                for place in np.flatnonzero(plan.experts.reshape(-1) == expert)]
    assert sorted(seen) == expected and (0 <= plan.units[:, 2]).all() and (plan.units[:, 2] <= most).all()
    assert most == 1 or seen == expected, "an expert's places are in the order of tokens"


def test_a_token_with_more_gates_than_it_may_have_keeps_the_first(lavapipe: Lavapipe) -> None:
    gates = np.full((2, 70), np.nan, np.float32)
    assert routed(lavapipe, gates, 3, 1).experts.tolist() == [[0, 1, 2], [0, 1, 2]]


def stack(lavapipe: Lavapipe, matrices: list[Weight], x: Array, split: Split, plan: Routed | None,
          in_buffer: slice = slice(0, COUNT)) -> Array:
    """x (T, heads * D) times the matrix of each head, or x (T, D) times those of its places; (rows of out, O).

    Matrices outside `in_buffer` lie elsewhere: their rows are left alone.
    """
    (rows, cols), tokens = matrices[0].shape, len(x)
    packed = [tiles(matrix) for matrix in matrices[in_buffer]]
    is_plain = matrices[0].format in PLAIN  # type: ignore[union-attr]
    inputs = x if is_plain else quantize(lavapipe, x).view(np.uint8)
    count = len(packed)
    out_rows = tokens * COUNT if plan is None else plan.places
    out = np.full((out_rows, rows + 2), UNTOUCHED, np.float32)
    share, units_at, list_at = (1, -1, 0) if plan is None else (plan.per_token, 3 * plan.places, 2 * plan.places)
    push = struct.pack("12I2i", rows, cols, tokens, 0, packed[0].size // 4, in_buffer.start, count, COUNT, share, 0, 1,
                       rows + 2, units_at, list_at)
    across, y, _ = split.groups(tokens, rows)
    groups = (across, y, count) if plan is None else (len(plan.units), y, 1)
    name = f"stack_{matrices[0].format.lower()}"  # type: ignore[union-attr]
    buffers = [np.concatenate(packed), inputs, out, np.zeros(1, np.int32) if plan is None else plan.plan]
    after = lavapipe.dispatch(name, buffers, push, groups, split.constants)[2]
    assert (after[:, 0] == UNTOUCHED).all() and (after[:, -1] == UNTOUCHED).all()
    return after[:, 1:-1]


def made(format: str) -> tuple[list[Weight], int]:
    cols = 512 if format in BLOCKS and BLOCKS[format][0] == 256 else 320 if format in BLOCKS else 33
    rng = np.random.default_rng(cols)
    return [weight(rng, format, ROWS, cols) for _ in range(COUNT)], cols


@pytest.mark.parametrize("format", [*BLOCKS, *PLAIN])
def test_a_head_s_rows_have_the_bits_of_its_linear(lavapipe: Lavapipe, format: str) -> None:
    matrices, cols = made(format)
    x = off_ties(np.random.default_rng(1), (18, COUNT * cols), 32 if format in BLOCKS else cols)
    expected = np.stack([linear(lavapipe, w, np.ascontiguousarray(x[:, i * cols:][:, :cols]), ONE)
                         for i, w in enumerate(matrices)], axis=1).reshape(-1, ROWS)
    for split in SPLITS:
        assert stack(lavapipe, matrices, x, split, None).tobytes() == expected.tobytes(), split
    part = stack(lavapipe, matrices, x, ONE, None, slice(2, 4)).reshape(-1, COUNT, ROWS)
    assert (part[:, 2:4] == expected.reshape(-1, COUNT, ROWS)[:, 2:4]).all()
    assert (part[:, [0, 1, 4]] == UNTOUCHED).all()


@pytest.mark.parametrize("format", [*BLOCKS, *PLAIN])
def test_a_place_s_row_has_the_bits_of_its_expert_s_linear(lavapipe: Lavapipe, format: str) -> None:
    matrices, cols = made(format)
    x = off_ties(np.random.default_rng(2), (29, cols), 32 if format in BLOCKS else cols)
    gates = some_gates(29, COUNT, 2)
    each = [linear(lavapipe, w, x, ONE) for w in matrices]
    for split in SPLITS:
        plan = routed(lavapipe, gates, 2, split.tokens)
        whole = stack(lavapipe, matrices, x, split, plan).reshape(29, 2, ROWS)
        part = stack(lavapipe, matrices, x, split, plan, slice(1, 3)).reshape(29, 2, ROWS)
        for token, experts in enumerate(plan.experts):
            for i, expert in enumerate(experts):
                expected = each[expert][token] if expert >= 0 else np.full(ROWS, UNTOUCHED)
                assert whole[token, i].tobytes() == expected.tobytes(), (split, token, expert)
                other = expected if expert in (1, 2) else np.full(ROWS, UNTOUCHED)
                assert part[token, i].tobytes() == other.tobytes(), (split, token, expert)


def test_a_token_s_experts_are_summed_in_ascending_order(lavapipe: Lavapipe) -> None:
    tokens, per_token, width = 9, 3, 300
    plan = routed(lavapipe, some_gates(tokens, 8, per_token), per_token, 1)
    rows = np.random.default_rng(0).standard_normal((plan.places, width)).astype(np.float32)
    expected = np.zeros((tokens, width), np.float32)
    for place, expert in enumerate(plan.experts.reshape(-1)):
        if expert >= 0:
            expected[place // per_token] += rows[place] * plan.gates[place // per_token, expert]
    out = np.full((tokens + 1, width), UNTOUCHED, np.float32)
    push = struct.pack("4i", width, per_token, 1, plan.places)
    after = lavapipe.dispatch("sum_experts", [rows, plan.plan, out], push, (2, tokens, 1))[2]
    assert after[1:].tobytes() == expected.tobytes() and (after[0] == UNTOUCHED).all()
