"""Trains a tiny model on the ranks of torchrun, or alone, and writes what came out: OUT METHOD KEEP CHECKPOINTING ...

Each four words are a run of their own. Rank 0 writes OUT: the loss of each step, the evaluation, what was trained.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from brise.backends.torch.weights import Keep, handle_of
from brise.backends.torch.weights import place as place_weight
from brise.models.weights import Array, Quant, Weight, Weights, place
from brise.quant.rows import quantize
from brise.tune import adapters, fsdp
from brise.tune.process_group import whole_of
from brise.tune.recipe import Method, Recipe
from brise.tune.train import ComputeOptions, Trainer
from tests.goldens import golden
from tests.tune import families

STEPS = 4
RANK = 3  # does not go into two equal parts, and neither does the vocabulary of 97


def model(keep: Keep) -> tuple[golden.Golden, Weights]:
    """With `keep` "packed" its matrices of the layers are Q8_0 where they can be."""
    read = golden.read("qwen3", "half")

    def put(name: str, weight: Weight) -> Weight:
        if keep == "packed" and weight.shape[-1] % 32 == 0 and len(weight.shape) == 2:
            assert not isinstance(weight, Quant)
            weight = Quant("Q8_0", weight.shape, quantize("Q8_0", weight.data))  # type: ignore[union-attr,arg-type]
        return place_weight(name, weight, torch.device("cpu"), torch.float32, keep)

    return read, place(read.weights, put)


def train(path: Path, method: Method, keep: Keep, group: fsdp.ProcessGroup | None, *, checkpointing: bool) -> None:
    read, weights = model(keep)
    # Five rows: two ranks get three and two, in microbatches of one or two, and the last batch has one row.
    recipe = Recipe(method=method, rank=RANK, alpha=6, learning_rate=0.01, batch_size=5, steps=STEPS, clip=0.5)
    trained = adapters.new(weights, recipe)
    compute = ComputeOptions(max_tokens=40, checkpointing=checkpointing)
    rows, held_out = families.rows(11), families.rows(3, seed=1)
    if group is not None:
        ranks = fsdp.Spread(trained, group)
        trainer = Trainer(read.config, ranks.trained, recipe, compute, rows, held_out, ranks)
    else:
        trainer = Trainer(read.config, trained, recipe, compute, rows, held_out)
    steps = [trainer.run_step() for _ in range(STEPS)]
    evaluated = trainer.evaluate()
    found = {name: tensor.numpy() for name, tensor in whole_of(trainer.trained, trainer.ranks).items()}
    if group is not None:
        _check_gathered(ranks, read, found)
    if trainer.ranks.rank == 0:
        np.savez(path, losses=[step.loss for step in steps], norms=[step.gradient_norm for step in steps],
                 computed=[step.computed for step in steps], evaluated=evaluated, **found)


def _check_gathered(ranks: fsdp.Spread, read: golden.Golden, found: Mapping[str, Array]) -> None:
    """Rank 0 gets the whole model: what was trained, and the base as it was."""
    whole = ranks.gathered()
    assert (whole is None) == (ranks.rank > 0)
    if whole is None:
        return
    assert whole.parameters.keys() == found.keys()
    for name, parameter in whole.parameters.items():
        np.testing.assert_array_equal(parameter.detach().numpy(), found[name])
    norm = handle_of(whole.weights.norm)
    assert isinstance(norm, torch.Tensor)
    if "norm" not in found:
        np.testing.assert_array_equal(norm.detach().numpy(), read.weights.norm.data)  # type: ignore[union-attr]


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    group = fsdp.ProcessGroup(torch.device("cpu")) if fsdp.is_launched() else None
    for path, method, keep, checkpointing in zip(words[0::4], words[1::4], words[2::4], words[3::4], strict=True):
        train(Path(path), method, keep, group, checkpointing=checkpointing == "on")  # type: ignore[arg-type]
    if group is not None:
        group.leave()
        threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
        assert not [name for name in threads if "gloo" in name], threads


if __name__ == "__main__":
    main(sys.argv[1:])
