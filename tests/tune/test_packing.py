"""However rows are put together, loss and gradients are those of the rows one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from brise.backends.torch import weights as torch_weights
from brise.backends.torch.ops import TorchOps
from brise.data.example import EncodedRow
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Array, Dense, Placed, Quant, Weight, Weights, place
from brise.quant.dequantize import dequantize
from brise.quant.rows import quantize
from brise.tune import adapters, losses
from brise.tune.adapters import Trained
from brise.tune.packing import MIN_SHARED, TILE, Pack, num_computed, pack, packs
from brise.tune.recipe import Recipe
from brise.tune.train import ComputeOptions, Trainer
from tests.goldens import golden
from tests.tune import families
from tests.tune.families import relative_error

# Sums of up to 100 terms in another order are off by about sqrt(100) u = 6e-7 of their size, once for each of ten
# matrices on the way; parts of a gradient cancel. Measured: 9e-7. A row of five that is lost moves it by 0.5.
SAME = 2e-5


def trained(weights: Weights) -> Trained:
    made = adapters.new(weights, Recipe(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters.values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def ran(name: str, microbatches: Sequence[Pack]) -> tuple[float, Mapping[str, Array]]:
    """Sum of losses and gradients of new adapters on the golden."""
    read = golden.read(name, "half")
    made = trained(families.placed(read.weights))
    total = 0.0
    for part in microbatches:
        hidden = decoder.hidden(TorchOps(), read.config, made.weights, part.batch)
        loss = losses.cross_entropy(hidden, made.weights.output, torch.from_numpy(part.targets))
        loss.backward()
        total += float(loss.detach())
    return total, families.gradients(made)


def assert_same(got: tuple[float, Mapping[str, Array]], wanted: tuple[float, Mapping[str, Array]]) -> None:
    assert got[0] == pytest.approx(wanted[0], rel=SAME)
    for path, grad in wanted[1].items():
        assert relative_error(got[1][path], grad) < SAME, path


def padded(rows: Sequence[EncodedRow]) -> Pack:
    """Every row as long as the longest, with tokens behind its end that nobody learns."""
    longest = max(len(row.tokens) for row in rows)
    return pack([EncodedRow(np.pad(row.tokens, (0, longest - len(row.tokens)), constant_values=12),
                            np.pad(row.is_target, (0, longest - len(row.tokens))),
                            row.place) for row in rows], shares=False)


@pytest.mark.parametrize("name", ["llama_tied", "mistral_window", "ministral3_yarn2_untied", "qwen2", "qwen3",
                                  "smollm3", "granite"])
def test_packed_is_unpacked_is_padded(name: str) -> None:
    rows = families.rows(5)
    one_by_one = ran(name, [pack([row]) for row in rows])
    assert_same(ran(name, [pack(rows)]), one_by_one)
    assert_same(ran(name, [padded(rows)]), one_by_one)


@pytest.mark.parametrize("name", ["llama_tied", "mistral_window", "ministral3_yarn2_untied", "qwen3"])
def test_a_shared_prompt_is_each_rows_own(name: str) -> None:
    rows = families.rows(4, shared=25) + families.rows(2, seed=1, shared=18) + families.rows(1, seed=2)
    assert num_computed(rows) == num_computed(rows, shares=False) - 3 * 25 - 18
    assert_same(ran(name, [pack(rows)]), ran(name, [pack([row]) for row in rows]))


def test_a_first_target_right_behind_the_shared_prompt_counts() -> None:
    rows = [EncodedRow(row.tokens, np.arange(len(row.tokens)) >= 20, row.place) for row in families.rows(3, shared=20)]
    packed = pack(rows)
    assert (packed.batch.rows < 20).sum() == 3  # the last token of the prompt predicts a first one for each
    assert_same(ran("llama_tied", [packed]), ran("llama_tied", [pack([row]) for row in rows]))


def test_learned_tokens_are_never_shared() -> None:
    row = families.rows(1, shared=20)[0]
    rows = [replace(row, is_target=np.arange(len(row.tokens)) >= 17), row]
    starts = pack(rows).batch.query_starts
    assert starts[1] == 17


def test_short_beginnings_are_not_shared() -> None:
    assert pack(families.rows(3, shared=MIN_SHARED - 1)).batch.parents is None


def test_microbatches_hold_every_row_once_and_no_more_tokens() -> None:
    rows = families.rows(20, shared=17)
    made = list(packs(rows, 80))
    assert max(part.num_tokens for part in made) <= 80
    assert sorted(row.place for part in made for row in part.rows) == sorted(row.place for row in rows)
    assert sum(len(part.targets) for part in made) == sum(row.num_targets for row in rows)


def test_a_row_that_fits_no_microbatch_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="rows:1 has .* tokens, a microbatch holds 5"):
        list(packs(families.rows(1), 5))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_bit(dropout: float) -> None:
    plain, again = (_stepped(ComputeOptions(checkpointing=on), dropout=dropout) for on in (False, True))
    for name, parameter in plain.trained.parameters.items():
        assert torch.equal(parameter, again.trained.parameters[name]), name


def test_dropout_is_a_function_of_the_seed() -> None:
    first, same, other = (_stepped(ComputeOptions(), dropout=0.3, seed=seed) for seed in (1, 1, 2))
    name = "layers.0.attention.wq.b"
    assert torch.equal(first.trained.parameters[name], same.trained.parameters[name])
    assert not torch.equal(first.trained.parameters[name], other.trained.parameters[name])


def _stepped(compute: ComputeOptions, **changes: float) -> Trainer:
    read = golden.read("llama_tied", "half")
    recipe = Recipe(rank=4, alpha=8, batch_size=4, steps=3, **changes)  # type: ignore[arg-type]
    made = Trainer(read.config, adapters.new(families.placed(read.weights), recipe), recipe,
                   replace(compute, max_tokens=50), families.rows(8))
    for _ in range(3):
        made.run_step()
    return made


@pytest.mark.parametrize("format", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_a_packed_base_is_its_dequantised_self(format: str) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(7, 256)).astype(np.float32))
    blocks = quantize(format, rng.normal(size=(40, 256)).astype(np.float32))
    bases = (Quant(format, (40, 256), blocks), Dense("F32", (40, 256), dequantize(format, blocks, 256)))
    outs = []
    for base, keep in zip(bases, ("packed", "dense"), strict=True):
        given = x.clone().requires_grad_()
        made = adapters.new(_one_layer(base, keep), Recipe(rank=4, alpha=8,
                                                           targets=("q_proj",)))  # type: ignore[arg-type]
        weight = made.weights.layers[0].attention.wq  # type: ignore[union-attr]
        y = TorchOps().linear(given, weight)
        y.square().sum().backward()
        outs.append([y.detach(), given.grad, *(parameter.grad for parameter in made.parameters.values())])
    for packed, plain in zip(*outs, strict=True):
        assert torch.equal(packed, plain)


def _one_layer(wq: Weight, keep: torch_weights.Keep) -> Weights:
    read = golden.read("llama_tied", "half").weights
    layer = replace(read.layers[0], attention=replace(read.layers[0].attention, wq=wq))  # type: ignore[type-var]
    return families.placed(replace(read, layers=(layer,)), keep)


def test_training_on_a_packed_model_is_training_on_its_dequantised_self() -> None:
    read = golden.read("qwen3", "half")
    quantised = place(read.weights, _quantised)
    plain = place(quantised, lambda name, weight: Dense("F32", weight.shape, dequantize(
        "Q8_0", weight.data, weight.shape[1])) if isinstance(weight, Quant) else weight)
    recipe = Recipe(rank=4, alpha=8, batch_size=4, steps=3)
    done = []
    for weights, keep in ((quantised, "packed"), (plain, "dense")):
        made = Trainer(read.config, adapters.new(families.placed(weights, keep), recipe), recipe,
                        # type: ignore[arg-type]
                       ComputeOptions(), families.rows(8))
        done.append(([made.run_step().loss for _ in range(3)], made.trained.parameters))
    assert done[0][0] == done[1][0]
    for name, parameter in done[0][1].items():
        assert torch.equal(parameter, done[1][1][name]), name


def _quantised(name: str, weight: Weight) -> Weight:
    if isinstance(weight, Dense) and len(weight.shape) == 2 and weight.shape[1] % 32 == 0:
        return Quant("Q8_0", (weight.shape[0], weight.shape[1]), quantize("Q8_0", weight.data))
    return weight


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 100])
def test_the_head_in_chunks_is_cross_entropy(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS", 97 * rows_at_a_time)
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((11, 48), (97, 48)))
    targets = torch.randint(0, 97, (11,), generator=generator)
    grads = []
    for loss_of in (lambda x, w: losses.cross_entropy(x, Placed((97, 48), w), targets),
                    lambda x, w: torch.nn.functional.cross_entropy(x @ w.t(), targets, reduction="sum")):
        x, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = loss_of(x, w)
        loss.backward()
        grads.append((loss.detach(), x.grad, w.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_batch_without_parents_is_a_plain_batch() -> None:
    batch: Batch = pack(families.rows(3)).batch
    assert batch.parents is None
    assert batch.positions[batch.query_starts[:-1]].tolist() == [0, 0, 0]


def test_microbatches_are_whole_tiles_where_there_is_room() -> None:
    rows = families.rows(20)
    assert [part.num_tokens % TILE for part in packs(rows, 4 * TILE)] == [0] * len(list(packs(rows, 4 * TILE)))
    batch = next(packs(rows[:1], len(rows[0].tokens) + 1)).batch
    assert len(batch.tokens) == len(rows[0].tokens) + 1, "no further than allowed"
    assert batch.query_starts[-2] == len(rows[0].tokens), "what fills is a sequence of its own"
