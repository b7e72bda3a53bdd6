"""The plan's numbers beside what the trainer really takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from brise.backends.torch import weights as torch_weights
from brise.checkpoint.open import open_checkpoint
from brise.memory.training_plan import MemoryChoice
from brise.models.config import Config
from brise.models.weights import Weights, place
from brise.tune import adapters, probe
from brise.tune.packing import pack
from brise.tune.recipe import Method, Recipe
from brise.tune.run_plan import EngineStages, Estimator, trained_sizes
from brise.tune.train import ComputeOptions, Trainer
from tests.checkpoint.make_gguf import write_tiny
from tests.tune.small_run import rows

COMPUTE = ComputeOptions(max_tokens=1 << 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Weights]:
    checkpoint = open_checkpoint(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"))
    return checkpoint.config, checkpoint.weights()


def placed(weights: Weights, keep: Literal["dense", "packed"] = "dense") -> Weights:
    return place(weights, lambda name, weight: torch_weights.place(
        name, weight, torch.device("cpu"), torch.float32, keep))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_is_probed_is_what_a_larger_microbatch_takes(
        method: Method, checkpointing: bool, model: tuple[Config, Weights]) -> None:
    """Of the real number of layers, and of four times as many tokens; the head's part is bounded by its own probe."""
    config, weights = model
    recipe, compute = Recipe(method=method, rank=4), replace(COMPUTE, checkpointing=checkpointing)
    trainer = Trainer(config, adapters.new(placed(weights), recipe), recipe, compute, rows(50, 0))
    for parameter in trainer.trained.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    packed = pack(trainer.rows)
    real = probe.peak_of(lambda: trainer._loss(trainer._ops(trains=True),
                                               packed).backward())  # type: ignore[no-untyped-call]
    planned = probe.measure(config, weights, recipe, compute).bytes(config.num_layers, packed.num_tokens)
    head = probe.head_bytes(weights, recipe, compute, "dense")
    assert 0.8 * planned <= real <= 1.05 * (planned + head)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_trained_numbers_are_those_of_the_adapters(method: Method, model: tuple[Config, Weights]) -> None:
    _, weights = model
    recipe = Recipe(method=method, rank=3, targets=("q_proj", "down_proj"))
    made = adapters.new(placed(weights), recipe)
    assert sorted(trained_sizes(weights, recipe)) == sorted(
        parameter.numel() for parameter in made.parameters.values())


@pytest.mark.parametrize("keep", ["dense", "packed"])
def test_weights_are_planned_to_the_byte(keep: Literal["dense", "packed"], model: tuple[Config, Weights]) -> None:
    _, weights = model
    storages: dict[int, int] = {}

    def look(name: str, weight: object) -> object:
        handle = torch_weights.handle_of(weight)  # type: ignore[arg-type]
        tensor = handle if isinstance(handle, torch.Tensor) else handle.data
        storages[tensor.data_ptr()] = tensor.nbytes
        return weight

    place(placed(weights, keep), look)  # type: ignore[arg-type]
    assert probe.weights_bytes(weights, Recipe(), COMPUTE, keep) == sum(storages.values())


def test_a_plan_grows_with_tokens_and_shrinks_with_checkpointing(model: tuple[Config, Weights]) -> None:
    config, weights = model
    count = Estimator("tiny", config, weights, Recipe(rank=4), COMPUTE, EngineStages(10**8), None, 40)
    asked = MemoryChoice(2048, checkpointing=False, base_storage="dense", bits=32, rank=4)
    whole = count(asked).parts
    assert count(replace(asked, num_tokens=1024)).parts.activations < whole.activations
    assert count(replace(asked, checkpointing=True)).parts.activations < 0.7 * whole.activations
    assert count(replace(asked, rank=8)).parts.optimizer_state == 2 * whole.optimizer_state
