"""Runs of a tiny model, which kill themselves: `python -m tests.tune.small_run FOLDER KILL_AT BITS ...`.

Each three words are a process of its own. KILL_AT counts its calls that change the disk or begin a step; at that call
it kills itself, 0: never. What is printed is how each ended: the number of its calls, or -9.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brise.models.weights import place
from brise.ops import torch_weights
from brise.tune import adapters, run_folder
from brise.tune.example import Row
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Identity
from brise.tune.session import Evaluation, Session
from brise.tune.train import Machinery, Step, Trainer
from tests.goldens import golden

IDENTITY = Identity({"rank": 4}, "b", "d")


class Silent:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.found: list[tuple[Evaluation, bool]] = []
        self.saves: list[int] = []

    def stepped(self, step: Step, seconds: float) -> None:
        self.steps.append(step)

    def evaluated(self, found: Evaluation, *, is_best: bool, seconds: float) -> None:
        self.found.append((found, is_best))

    def saved(self, step: int) -> None:
        self.saves.append(step)


def rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        tokens = rng.integers(3, 60, int(rng.integers(6, 20))).astype(np.int32)
        made.append(Row(tokens, np.arange(len(tokens)) >= 3, f"rows:{index}"))
    return made


def trainer(recipe: Recipe) -> Trainer:
    read = golden.read("llama_tied", "half")
    weights = place(read.weights, lambda name, weight: torch_weights.place(
        name, weight, torch.device("cpu"), torch.float32))
    return Trainer(read.config, adapters.new(weights, recipe), recipe, Machinery(max_tokens=64), rows(20, 0),
                   rows(4, 1))


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"rank": 4, "batch_size": 8, "epochs": 3.0, "dropout": 0.2, "learning_rate": 0.01} | changes)


def run_and_count(folder: Path, kill_at: int, bits: str) -> int:
    """One run from where it stands; how many calls it made."""
    calls = 0

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call

    for name in ("fsync", "rename", "unlink", "rmdir"):
        setattr(os, name, killing(getattr(os, name)))
    Trainer.run_step = killing(Trainer.run_step)  # type: ignore[method-assign]
    # Of rank 64 some tensors are large enough for 8 bits.
    made = trainer(recipe(optimizer="adamw8", rank=64) if bits == "8" else recipe())
    assert (bits == "8") == any(name.endswith(".root") for name in made.optimizer.tensors())
    run = run_folder.reopen(folder) or run_folder.create(folder, IDENTITY)
    session = Session(made, run, Silent(), save_every=2)
    session.restore()
    session.run()
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in made.trained.parameters.values())
    (folder / "weights.bin").write_bytes(weights)
    return calls


def main(words: list[str]) -> None:
    """Importing torch takes seconds: each run is a fork, before anything has been computed."""
    torch.set_num_threads(1)
    for folder, kill_at, bits in zip(words[0::3], words[1::3], words[2::3], strict=True):
        child = os.fork()
        if not child:
            print(run_and_count(Path(folder), int(kill_at), bits), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(-os.WTERMSIG(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
