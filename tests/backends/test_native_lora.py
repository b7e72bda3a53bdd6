"""Adapters in the native backend: compared with the reference, bit for bit in any batch, and slots that change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest

from brise import _native
from brise.backends.adapter_checks import gain
from brise.backends.native.backend import NativeBackend, NativeRunner
from brise.backends.reference.ops import ReferenceBackend, ReferenceOps, numbers
from brise.errors import UnsupportedError
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.families import FAMILIES
from brise.models.lora import EMBEDDING, ENDS, MODULES, OUTPUT, matrices, module_of, place_ends, targets
from brise.models.weights import Array, Dense, Lora, LowRank, Placed, Quant, Weight, place
from tests import tolerances
from tests.backends.emulate import RoundedActivationOps
from tests.backends.inputs import off_ties, packed_batch, weight
from tests.goldens import golden

ROWS, COLS = 79, 256  # four tiles and a part of one
RANKS = (1, 16, 23)
PAGE, SLOTS, MAX_RANK = 16, 4, 24
LowRanks = Mapping[str, LowRank]


def low_rank(rng: np.random.Generator, shape: tuple[int, int], rank: int, dora: bool = False,
             bf16: bool = False) -> LowRank:
    """Numbers that change what the matrix gives by about as much as it gives itself."""
    a = rng.standard_normal((rank, shape[1])).astype(np.float32) / np.float32(np.sqrt(shape[1]))
    b = rng.standard_normal((shape[0], rank)).astype(np.float32) / np.float32(np.sqrt(rank))
    if bf16:
        a, b = ((x.view(np.uint32) & np.uint32(0xffff0000)).view(np.float32) for x in (a, b))
    magnitude = rng.uniform(0.5, 2, shape[0]).astype(np.float32) if dora else None
    return LowRank(a, b, float(rng.uniform(0.5, 2)), magnitude)


def adapter(config: Config, seed: int, rank: int, modules: tuple[str, ...], dora: bool = False,
            bf16: bool = False) -> LowRanks:
    rng = np.random.default_rng(seed)
    return {path: low_rank(rng, shape, rank, dora, bf16) for path, shape in targets(config, modules).items()}


def matrix(rng: np.random.Generator, format: str, rows: int = ROWS, cols: int = COLS) -> Dense | Quant:
    made = weight(rng, format, rows, cols)
    assert isinstance(made, Dense | Quant)
    return made


def placed(backend: NativeBackend, base: Weight) -> Placed:
    out = backend.place("w", base)
    assert isinstance(out, Placed)
    return out


# ---- the op ----

@pytest.mark.parametrize("isa", NativeBackend.available_isas())
@pytest.mark.parametrize("format", ["F32", "BF16", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("num_tokens", [1, 7, 150])
@pytest.mark.parametrize("bf16", [False, True])
def test_linears_are_the_reference(isa: str, format: str, num_tokens: int, bf16: bool) -> None:
    rng, backend = np.random.default_rng(num_tokens), NativeBackend(2, isa)
    x = off_ties(rng, (num_tokens, COLS), 32)
    tokens = np.sort(rng.integers(-1, len(RANKS), num_tokens)).astype(np.int32)
    loras = []
    for missing in (0, 1):
        parts = tuple(None if index == missing else low_rank(rng, (ROWS, COLS), rank, rank != 16, bf16)
                      for index, rank in enumerate(RANKS))
        loras.append(Lora(matrix(rng, format), parts, tokens))
    plain = placed(backend, matrix(rng, format))
    first, second = (replace(lora, base=placed(backend, lora.base)) for lora in loras)
    ops = backend.ops()
    ys = ops.linears(x, (first, plain, second))
    for y, lora in zip((ys[0], ys[2]), loras, strict=True):
        assert (np.abs(y - exact(x, lora)) <= bound(x, lora) + tolerances.SUBNORMAL).all()
    assert np.array_equal(ys[1], ops.linear(x, plain))
    none = tokens < 0  # of these every bit is the base's
    assert np.array_equal(ys[0][none], ops.linear(x, first.base)[none])


def exact(x: Array, lora: Lora) -> Array:
    """In float64; a base of blocks sees activations rounded to int8, adapters do not."""
    return RoundedActivationOps(precision=np.float64).linear(x.astype(np.float64), lora)


def bound(x: Array, lora: Lora) -> Array:
    """Absolute (T, O): the base's own tolerance and that of adapters, times the gain."""
    base, wide = numbers(lora.base, np.float64), x.astype(np.float64)
    relative = tolerances.QUANTISED_LINEAR if isinstance(lora.base, Quant) else tolerances.float_linear(COLS)
    out = relative * (np.abs(wide) @ np.abs(base).T)
    y = exact(x, replace(lora, adapters=(), tokens=None))
    for index, low in enumerate(lora.adapters):
        own = np.flatnonzero(np.asarray(lora.tokens) == index)
        if low is None:
            continue
        out[own] += tolerances.low_rank(wide[own], low.a, low.b, low.scale, y[own])
        if low.magnitude is not None:
            out[own] *= low.magnitude / np.linalg.norm(base + low.scale * low.b.astype(np.float64) @ low.a, axis=1)
    return out


def test_without_tokens_all_go_through_the_first() -> None:
    rng, backend = np.random.default_rng(1), NativeBackend(2)
    x, base = off_ties(rng, (5, COLS), 32), placed(backend, matrix(rng, "Q8_0"))
    low = low_rank(rng, (ROWS, COLS), 4, dora=True)
    named = backend.ops().linear(x, Lora(base, (low,), np.zeros(5, np.int32)))
    assert np.array_equal(backend.ops().linear(x, Lora(base, (low,))), named)


def test_matrices_of_one_call_have_the_same_tokens() -> None:
    rng, backend = np.random.default_rng(1), NativeBackend()
    base, low = placed(backend, matrix(rng, "F32", 4, 8)), low_rank(rng, (4, 8), 2)
    with pytest.raises(UnsupportedError, match="different adapters"):
        backend.ops().linears(np.ones((2, 8), np.float32), (
            Lora(base, (low,), np.array([0, -1], np.int32)), Lora(base, (low,), np.array([0, 0], np.int32))))


# ---- a model ----

class Model:
    """A tiny golden on the native backend and on the reference, with three adapters in slots of both; 1 is empty."""

    def __init__(self, name: str = "qwen3", threads: int = 2, isa: str | None = None) -> None:
        self.golden = golden.read(name, "half")
        self.config = config = self.golden.config
        self.backend, reference = NativeBackend(threads, isa), ReferenceBackend()
        weights = place(self.golden.weights, self.backend.place)
        self.plain = self.backend.runner(config, weights, 64)
        self.table = self.backend.adapters(config, weights, SLOTS, MAX_RANK)
        self.runner = self.backend.runner(config, weights, 64, self.table)
        self.reference_weights = place(self.golden.weights, reference.place)
        self.reference_table = reference.adapters(config, self.reference_weights, SLOTS, MAX_RANK)
        self.reference = reference.runner(config, self.reference_weights, 64, self.reference_table)
        own = tuple(dict.fromkeys(map(module_of, matrices(config))))  # experts and latents take none
        some = tuple(name for name in ("o_proj", "gate_proj", "down_proj") if name in own)
        self.adapters = {0: {**adapter(config, 0, 4, tuple(name for name in ("q_proj", "v_proj") if name in own)),
                             **adapter(config, 7, 3, ("lm_head",), dora=True)},
                         2: {**adapter(config, 2, 16, tuple(name for name in own if name not in ENDS), dora=True),
                             **adapter(config, 5, 2, tuple(ENDS))},
                         3: adapter(config, 3, 23, (*some, "embed_tokens"), bf16=True)}
        for slot, low_ranks in self.adapters.items():
            self.table.put(slot, self.prepare(low_ranks))
            self.reference_table.put(slot, self.reference_table.prepare(low_ranks, self.gains(low_ranks)))

    def gains(self, low_ranks: LowRanks) -> Mapping[str, Array]:
        own: dict[str, Weight] = {}
        place_ends(self.reference_weights, lambda path, weight: own.setdefault(path, weight))

        def rows(path: str) -> Array:
            return gain(lambda first, last: numbers(own[path], np.float32)[first:last], low_ranks[path])

        return {path: rows(path) for path, low in low_ranks.items() if low.magnitude is not None}

    def prepare(self, low_ranks: LowRanks) -> _native.Adapter:
        return self.table.prepare(low_ranks, self.gains(low_ranks))

    def batch(self, *sequences: tuple[int, int]) -> Batch:
        """Whole sequences (length, slot) of the golden's tokens, one after the other, without a cache."""
        made = packed_batch([(0, length) for length, _ in sequences], None, PAGE)
        tokens = np.concatenate([self.golden.tokens[:length] for length, _ in sequences])
        return replace(made, tokens=tokens, rows=np.arange(len(tokens), dtype=np.int32), adapters=np.repeat(
            [slot for _, slot in sequences], [length for length, _ in sequences]).astype(np.int32))


# One golden of each family, so that a new one is held to it; and an output of its own.
GOLDENS = (*{golden.read(name, "half").config.family: name for name in golden.NAMES}.values(), "llama_untied")
MIXED = ((7, 2), (1, 0), (20, -1), (9, 3), (3, 3), (12, 0))


@pytest.mark.parametrize("isa", NativeBackend.available_isas())
@pytest.mark.parametrize("name", GOLDENS)
def test_a_mixed_batch_is_the_reference(isa: str, name: str) -> None:
    model = Model(name, isa=isa)
    batch = model.batch(*MIXED)
    expected = model.reference.logits(batch, None)
    # Both sides are off by what a golden may be off by; adapters of this size make numbers a few times larger.
    assert np.abs(model.runner.logits(batch, None) - expected).max() < 2 * tolerances.GOLDEN_LOGITS * 4
    without = model.reference.logits(replace(batch, adapters=None), None)
    changes = np.abs(without - expected)[np.asarray(batch.adapters) >= 0]
    assert changes.max(axis=1).min() > 0.1, "every adapter does something"


@pytest.mark.parametrize("isa", NativeBackend.available_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_token_s_numbers_do_not_depend_on_its_company(isa: str, threads: int) -> None:
    model = Model(threads=threads, isa=isa)
    together, first = model.runner.logits(model.batch(*MIXED), None), 0
    for length, slot in MIXED:
        alone = model.runner.logits(model.batch((length, slot)), None)
        assert np.array_equal(together[first:first + length], alone)
        if slot < 0:
            assert np.array_equal(alone, model.plain.logits(model.batch((length, slot)), None))
        first += length


def test_every_family_has_a_golden_with_adapters() -> None:
    assert {golden.read(name, "half").config.family for name in GOLDENS} == FAMILIES.keys()


@pytest.mark.parametrize("name", ["qwen3", "llama_untied"])
@pytest.mark.parametrize("rows", [[6], [27, 6, 7], [51, 51, 0, 8, 7, 30, 39, 38]])
def test_rows_of_the_output_have_their_tokens_adapters(name: str, rows: list[int]) -> None:
    model = Model(name)
    batch = model.batch(*MIXED)
    whole = model.runner.logits(batch, None)
    some = replace(batch, rows=np.array(rows, np.int32))
    assert np.array_equal(model.runner.logits(some, None), whole[rows])
    close = np.abs(model.reference.logits(some, None) - whole[rows]).max()
    assert close < 2 * tolerances.GOLDEN_LOGITS * 4


@pytest.mark.parametrize("isa", NativeBackend.available_isas())
@pytest.mark.parametrize("format", ["F32", "Q4_0", "IQ4_NL"])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_embeddings_are_the_reference(isa: str, format: str, num_tokens: int) -> None:
    rng, backend = np.random.default_rng(num_tokens), NativeBackend(2, isa)
    base, tokens = matrix(rng, format), rng.integers(0, ROWS, num_tokens).astype(np.int32)
    owners = np.sort(rng.integers(-1, 3, num_tokens)).astype(np.int32)
    parts = (low_rank(rng, (ROWS, COLS), 16), None, low_rank(rng, (ROWS, COLS), 23, bf16=True))
    rows = backend.ops().embed(Lora(placed(backend, base), parts, owners), tokens)
    exact = ReferenceOps(precision=np.float64).embed(Lora(base, parts, owners), tokens)
    # One rounding for the row, and one for each of at most 24 products that are added to it.
    assert (np.abs(rows - exact) <= 26 * tolerances.U * (np.abs(exact) + 24 * np.abs(rows - exact).max() + 20)).all()
    plain = backend.ops().embed(placed(backend, base), tokens)
    assert np.array_equal(rows[owners < 0], plain[owners < 0]) and np.array_equal(rows[owners == 1], plain[owners == 1])


@pytest.mark.parametrize("isa", NativeBackend.available_isas())
@pytest.mark.parametrize("slot", [0, 2, 3])
def test_decode_is_prefill(isa: str, slot: int) -> None:
    model = Model(isa=isa)
    whole = model.runner.logits(model.batch((20, slot)), None)
    cache = model.backend.new_cache(model.config, 2, PAGE, "f32")
    for position in range(20):
        batch = packed_batch([(position, 1)], [[0, 1]], PAGE)
        step = replace(batch, tokens=model.golden.tokens[position:position + 1], rows=np.zeros(1, np.int32),
                       adapters=np.array([slot], np.int32))
        assert np.array_equal(model.runner.logits(step, cache)[0], whole[position])


def test_steps_without_adapters_are_the_plain_program() -> None:
    model = Model()
    batch = replace(model.batch(*MIXED), adapters=None)
    expected = model.plain.logits(batch, None)
    assert np.array_equal(model.runner.logits(batch, None), expected)
    none = replace(batch, adapters=np.full(len(batch.tokens), -1, np.int32))
    assert np.array_equal(model.runner.logits(none, None), expected)
    assert np.array_equal(model.plain.logits(none, None), expected)


def test_a_slot_changes_between_steps_without_recording() -> None:
    model = Model()
    batch = model.batch((5, 0))
    before = model.runner.logits(batch, None)
    (program,) = model.runner.programs.values()
    model.table.put(0, model.prepare(model.adapters[3]))
    other = model.runner.logits(batch, None)
    assert np.array_equal(other, model.runner.logits(model.batch((5, 3)), None)) and not np.array_equal(other, before)
    model.table.put(0, None)
    with pytest.raises(ValueError, match=r"adapters\[0\] is 0, which is empty"):
        model.runner.logits(batch, None)
    model.table.put(0, model.prepare(model.adapters[0]))
    assert np.array_equal(model.runner.logits(batch, None), before)
    assert list(model.runner.programs.values()) == [program]


def test_adapters_are_prepared_and_put_while_steps_run() -> None:
    model, errors = Model(), list[BaseException]()
    batch = model.batch((5, 0), (1, 2), (9, 3))
    expected = model.runner.logits(batch, None)

    def prepare() -> None:
        try:
            for index in range(30):
                model.table.put(1, None if index % 3 == 2 else model.prepare(model.adapters[2 if index % 3 else 3]))
                model.table.put(2, model.prepare(model.adapters[2]))
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=prepare)
    thread.start()
    while thread.is_alive():
        assert np.array_equal(model.runner.logits(batch, None), expected)
    thread.join()
    assert not errors


@pytest.mark.parametrize("which", ["runner", "reference"])
@pytest.mark.parametrize(("slot", "message"), [(1, "is 1, which is empty"), (SLOTS, "is 4, allowed are -1 to 3"),
                                               (-2, "is -2, allowed are -1 to 3")])
def test_a_batch_names_slots_that_are_there(which: str, slot: int, message: str) -> None:
    model = Model()
    batch = model.batch((3, 0), (2, slot))
    with pytest.raises(ValueError, match=rf"adapters\[3\] {message}"):
        getattr(model, which).logits(batch, None)
    with pytest.raises(ValueError, match="allowed are 0 to 3"):
        model.table.put(slot if slot != 1 else 7, None)


def test_a_runner_without_a_table_refuses_adapters() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"adapters\[0\] is 0, and the program has no table"):
        model.plain.logits(model.batch((3, 0)), None)
    with pytest.raises(ValueError, match="differ in length"):
        model.runner.logits(replace(model.batch((3, 0)), adapters=np.zeros(2, np.int32)), None)


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (40, 3), (5, 5)])
def test_planned_is_what_a_step_takes(size: tuple[int, int]) -> None:
    model = Model()
    shapes = place(model.golden.weights, model.backend.shape_only)
    planned = model.backend.runner(model.config, shapes, 64,
                                   model.backend.adapters(model.config, shapes, SLOTS, MAX_RANK))
    expected = planned.planned_bytes(*size).host
    batch = replace(model.batch((size[0], 2)), rows=np.arange(size[1], dtype=np.int32))
    assert model.runner.planned_bytes(*size).host == expected
    model.runner.logits(batch, None)
    assert model.runner.work_bytes == expected
    plain = NativeRunner(model.backend, model.config, shapes).planned_bytes(*size).host
    assert expected - plain == size[0] * 3 * MAX_RANK * 4  # A x of wq, wk and wv
    model.runner.logits(replace(batch, adapters=None), None)
    assert model.runner.work_bytes == expected


def test_bfloat16_numbers_take_half_the_memory() -> None:
    model = Model()
    wide, narrow = (model.prepare(adapter(model.config, 0, 16, tuple(MODULES), bf16=bf16)) for bf16 in (False, True))
    assert model.table.nbytes(narrow) * 2 == model.table.nbytes(wide)


def test_what_does_not_fit_is_refused_by_name() -> None:
    model = Model()
    path = "layers.0.attention.wq"
    low = model.adapters[2][path]
    good = {path: replace(low, magnitude=None)}
    for table in (model.table, model.reference_table):
        table.prepare(good, {})
        for bad, gains, message in (
                ({"layers.9.attention.wq": good[path]}, {}, "layers.9.attention.wq, which takes no adapter"),
                ({"norm": good[path]}, {}, "norm, which takes no adapter"),
                ({OUTPUT: good[path]}, {}, "output has the shape"),
                ({EMBEDDING: model.adapters[0][OUTPUT]}, {EMBEDDING: np.ones(model.config.vocab_size, np.float32)},
                 "magnitudes \\(DoRA\\) on the embedding"),
                ({path: replace(good[path], a=low.a[:, 1:])}, {}, "wq has the shape"),
                ({path: LowRank(np.ones((MAX_RANK + 1, low.a.shape[1]), np.float32),
                                np.ones((len(low.b), MAX_RANK + 1), np.float32), 1.0)}, {}, "rank 25, allowed is 1"),
                ({path: LowRank(low.a[:0], low.b[:, :0], 1.0)}, {}, "rank 0, allowed is 1 to 24"),
                ({path: low}, {}, "both or neither"),
                (good, {path: np.ones(len(low.b), np.float32)}, "both or neither"),
                ({path: low}, {path: np.ones(3, np.float32)}, "gain of shape"),
                (good, {"layers.0.attention.wk": np.ones(3, np.float32)}, "wk has a gain but no adapter")):
            with pytest.raises(UnsupportedError, match=message):
                table.prepare(bad, gains)
    with pytest.raises(UnsupportedError, match="a table of 0 adapters"):
        model.backend.adapters(model.config, model.plain.weights, 0, 8)


def test_a_gain_is_the_reference_s() -> None:
    rng = np.random.default_rng(3)
    base, low = matrix(rng, "Q4_0"), low_rank(rng, (ROWS, COLS), 5, dora=True)
    whole = numbers(base, np.float64) + low.scale * low.b.astype(np.float64) @ low.a
    own = gain(lambda first, last: numbers(base, np.float32)[first:last], low)
    assert low.magnitude is not None
    assert np.allclose(own, low.magnitude / np.linalg.norm(whole, axis=1), rtol=4 * tolerances.U, atol=0)
