"""Runs of a tiny model, which kill themselves: `python -m tests.tune.small_run FOLDER KILL_AT KIND ...`.

Each three words are a process of its own. KILL_AT counts its calls that change the disk or begin a step; at that call
it kills itself, 0: never. KIND: 32 or 8 bits of the optimiser, or rounds of answers of the student's own. What is
printed is how each ended: the number of its calls, or -9.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brise.backends.torch import weights as torch_weights
from brise.data.example import EncodedRow
from brise.models.weights import Array, Lora, place
from brise.tune import adapters, run_folder
from brise.tune.distill import teacher
from brise.tune.distill.on_policy import Prompt, Rounds
from brise.tune.distill.teacher import Recording
from brise.tune.options import RoundOptions
from brise.tune.parity.replay import TorchSide
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Identity
from brise.tune.session import TrainingSession
from brise.tune.train import ComputeOptions, Trainer
from brise.tune.watch import HeldOutLoss, Step
from tests.goldens import golden

IDENTITY = Identity({"rank": 4}, "b", "d")


class Silent:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.found: list[tuple[HeldOutLoss, bool]] = []
        self.saves: list[int] = []

    def stepped(self, step: Step, seconds: float) -> None:
        self.steps.append(step)

    def evaluated(self, found: HeldOutLoss, *, is_best: bool, seconds: float) -> None:
        self.found.append((found, is_best))

    def saved(self, step: int) -> None:
        self.saves.append(step)


def rows(count: int, seed: int) -> list[EncodedRow]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        tokens = rng.integers(3, 60, int(rng.integers(6, 20))).astype(np.int32)
        made.append(EncodedRow(tokens, np.arange(len(tokens)) >= 3, f"rows:{index}"))
    return made


def trainer(recipe: Recipe) -> Trainer:
    read = golden.read("llama_tied", "half")
    weights = place(read.weights, lambda name, weight: torch_weights.place(
        name, weight, torch.device("cpu"), torch.float32))
    return Trainer(read.config, adapters.new(weights, recipe), recipe, ComputeOptions(max_tokens=64), rows(20, 0),
                   rows(4, 1))


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"rank": 4, "batch_size": 8, "epochs": 3.0, "dropout": 0.2, "learning_rate": 0.01} | changes)


def feed(trainer: Trainer, folder: Path) -> Callable[[], bool]:
    """Three rounds of three steps. The student answers with noise that depends on every bit of its weights."""
    bare = place(trainer.trained.weights, lambda name, weight: weight.base if isinstance(weight, Lora) else weight)
    side = TorchSide(trainer.config, bare)
    asked = [Prompt(row.tokens[:3], row.tokens[:3], row.place, 9) for row in rows(20, 0)]

    def sample(prompts: Sequence[Prompt], seed: int) -> list[Array]:
        digest = blake2b(_bits(trainer), digest_size=8).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
        return [rng.integers(3, 60, int(rng.integers(1, 9))).astype(np.int32) for _ in prompts]

    def ready() -> bool:
        if trainer.step % 3 == 0 or trainer.rows[0].teacher is None:
            found = Rounds(asked, sample, lambda own: teacher.recorded(
                side, own, Recording(60, 8), folder / "teacher", "d", lambda count: None),
                RoundOptions(3, 12, 3), 0, folder / "answers", lambda answer: "").of(trainer.step // 3)
            assert found is not None
            trainer.rows = found.rows
        return True

    return ready


def _bits(trainer: Trainer) -> bytes:
    return b"".join(parameter.detach().numpy().tobytes() for parameter in trainer.trained.parameters.values())


def run_and_count(folder: Path, kill_at: int, kind: str) -> int:
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
    made = trainer(recipe(optimizer="adamw8", rank=64) if kind == "8" else recipe(steps=9))
    assert (kind == "8") == any(name.endswith(".root") for name in made.optimizer.tensors())
    run = run_folder.reopen(folder) or run_folder.create(folder, IDENTITY)
    session = TrainingSession(made, run, Silent(), save_every=2)
    if kind == "rounds":
        session.ready = feed(made, folder)
    session.restore()
    session.run()
    (folder / "weights.bin").write_bytes(_bits(made))
    return calls


def main(words: list[str]) -> None:
    """Importing torch takes seconds: each run is a fork, before anything has been computed."""
    torch.set_num_threads(1)
    for folder, kill_at, kind in zip(words[0::3], words[1::3], words[2::3], strict=True):
        child = os.fork()
        if not child:
            print(run_and_count(Path(folder), int(kill_at), kind), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(-os.WTERMSIG(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
