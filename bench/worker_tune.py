"""brise's trainer as a measured process, for tune_peft.py: the same rows, first matrices and settings as PEFT's."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from brise import __version__
from brise.backends.torch import weights as torch_weights
from brise.checkpoint.open import open_checkpoint
from brise.data.example import EncodedRow
from brise.models.lora import MODULES
from brise.models.weights import Weight, place
from brise.tune import adapters
from brise.tune.recipe import Recipe
from brise.tune.train import ComputeOptions, Trainer
from tune_work import Settings, Work, first_a, read
from worker import answer, peak_bytes


@dataclass
class Given(Trainer):
    """The trainer on a given order of rows in place of its own."""

    work: Work = field(kw_only=True)

    def rows_of(self, step: int) -> list[EncodedRow]:
        return [self.rows[int(index)] for index in self.work.order[step]]


def trainer(model: Path, work: Work, settings: Settings, compute: ComputeOptions, keep: torch_weights.Keep) -> Given:
    """Ready for the first step."""
    checkpoint = open_checkpoint(model)

    def put(name: str, weight: Weight) -> Weight:
        placed = torch_weights.place(name, weight, compute.device, compute.dtype, keep)
        checkpoint.forget()
        return placed

    weights = place(checkpoint.weights(), put)
    steps, batch = work.order.shape
    recipe = Recipe(rank=settings.rank, alpha=settings.alpha, learning_rate=settings.learning_rate,
                    schedule="constant", warmup=0.0, betas=settings.betas, eps=settings.eps, clip=0.0,
                    batch_size=batch, steps=steps)
    trained = adapters.new(weights, recipe)
    targets = {path: name for name, path in MODULES.items()}
    for name, parameter in trained.parameters.items():
        _, layer, path = name.split(".", 2)
        if path.endswith(".a"):
            parameter.data = torch.from_numpy(first_a(int(layer), targets[path.removesuffix(".a")], *parameter.shape))
    rows = [EncodedRow(tokens, is_target, f"work:{index}") for index, (tokens, is_target) in enumerate(work.rows)]
    return Given(checkpoint.config, trained, recipe, compute, rows, work=work)


def measured(trainer: Given, steps: int) -> dict[str, object]:
    """Trains, and says how long it took."""
    start, cpu_start = time.perf_counter(), time.process_time()
    done = [trainer.run_step() for _ in range(steps)]
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start,
            "tokens": sum(step.tokens for step in done), "computed": sum(step.computed for step in done),
            "examples": sum(step.examples for step in done), "losses": [step.loss for step in done],
            "peak_bytes": peak_bytes()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, default=2048, help="computed tokens of a microbatch")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--packed", action="store_true", help="blocks of a GGUF stay blocks")
    parser.add_argument("--no-sharing", action="store_true", help="compute every prompt by itself")
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    compute = ComputeOptions(dtype=torch.bfloat16 if given.bf16 else torch.float32, max_tokens=given.max_tokens,
                               checkpointing=given.checkpointing, shares_prompts=not given.no_sharing)
    ready = trainer(given.model, read(given.work), Settings(), compute, "packed" if given.packed else "dense")
    answer({"ready": True, "version": __version__, "loaded_bytes": peak_bytes()})
    for line in sys.stdin:
        answer(measured(ready, int(line)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
