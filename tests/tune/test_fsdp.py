"""Two ranks under torchrun (gloo) train the same as one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from brise.errors import UnsupportedError
from brise.models.weights import Array
from brise.tune import fsdp
from brise.tune.recipe import Recipe
from tests.tune import fsdp_run

FOLDER = Path(__file__).parents[2]
RUNS = {"lora": ("lora", "dense", "off"), "again": ("lora", "dense", "on"), "dora": ("dora", "dense", "off"),
        "packed": ("lora", "packed", "off"), "full": ("full", "dense", "off")}

# A gradient is a sum over rows, taken in another order: off by about sqrt(100 tokens) u of itself, 6e-7, and so is
# the loss. AdamW divides by the gradient's own size, so a number whose gradients nearly cancel moves by up to a step
# (0.01) of another size. Measured after four steps: weights differ by 1.1e-5 at most (packed), losses by 2e-7.
LOSS, WEIGHTS = 1e-5, 5e-5
HANGS_S = 1800  # what takes seconds of CPU takes minutes beside ten other processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Mapping[str, Array], Mapping[str, Array]]]:
    """By name of the run: what one process got, and what two ranks got."""
    folder = tmp_path_factory.mktemp("spread")
    words = [word for name, settings in RUNS.items() for word in (f"{folder}/{{}}-{name}.npz", *settings)]
    threads = torch.get_num_threads()
    fsdp_run.main([word.format("one") for word in words])
    torch.set_num_threads(threads)
    _run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
          "-m", "tests.tune.fsdp_run", *(word.format("two") for word in words)])
    return {name: (_read(folder / f"one-{name}.npz"), _read(folder / f"two-{name}.npz")) for name in RUNS}


def _run(command: list[str]) -> None:
    path = os.pathsep.join([str(FOLDER), *sys.path])
    done = subprocess.run(command, cwd=FOLDER, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr[-3000:]


def _read(path: Path) -> Mapping[str, Array]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_have_the_losses_of_one(name: str, found: Mapping[str, tuple[Mapping[str, Array], ...]]) -> None:
    one, two = found[name]
    for key in ("losses", "norms", "evaluated"):
        np.testing.assert_allclose(two[key], one[key], rtol=LOSS)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_end_with_the_weights_of_one(name: str, found: Mapping[str, tuple[Mapping[str, Array], ...]]) -> None:
    one, two = found[name]
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].shape == two[key].shape, key
        assert np.abs(two[key] - one[key]).max() < WEIGHTS, key


def test_ranks_compute_each_row_once(found: Mapping[str, tuple[Mapping[str, Array], ...]]) -> None:
    one, two = found["lora"]
    np.testing.assert_array_equal(one["computed"], two["computed"])


def test_checkpointing_changes_no_bit_on_ranks(found: Mapping[str, tuple[Mapping[str, Array], ...]]) -> None:
    (_, plain), (_, again) = found["lora"], found["again"]
    for key in plain:
        np.testing.assert_array_equal(plain[key], again[key])


def test_8_bit_moments_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="adamw8"):
        fsdp.check(Recipe(optimizer="adamw8"))


def test_a_process_by_itself_is_not_launched() -> None:
    assert not fsdp.is_launched()


def test_the_run_with_blocks_has_blocks() -> None:
    _, weights = fsdp_run.model("packed")
    assert not isinstance(weights.layers[0].attention.wo.handle, torch.Tensor)  # type: ignore[union-attr]
