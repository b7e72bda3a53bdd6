"""Python's own share of a decode step: the time of a whole engine step without that of the model's kernels.

Scheduling, packing, sampling and text are Python and NumPy; `runner.logits` is one native call. The issue's
limit is 5 % on SmolLM2-135M.

    python bench/overhead.py smollm2.gguf
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from brise.engine.model import load
from brise.evals.speed import BenchEngine
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import Backend, Cache, CacheFormat, Room, Runner
from brise.models.weights import Array, Weight, Weights


@dataclass
class Clock:
    """Seconds inside the model, one entry a call."""

    seconds: list[float] = field(default_factory=list)


class TimedRunner:
    """A runner that takes the time of each call."""

    def __init__(self, runner: Runner, clock: Clock) -> None:
        self._runner, self._clock = runner, clock

    def logits(self, batch: Batch, cache: Cache) -> Array:
        start = time.perf_counter()
        logits = self._runner.logits(batch, cache)
        self._clock.seconds.append(time.perf_counter() - start)
        return logits

    def hidden(self, batch: Batch, cache: Cache) -> Array:
        return self._runner.hidden(batch, cache)

    def cancel(self) -> None:
        self._runner.cancel()


class TimedBackend:
    """A backend whose runners are timed; everything else is the real one's."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend, self._clock = backend, clock

    @property
    def name(self) -> str:
        return self._backend.name

    def place(self, name: str, weight: Weight) -> Weight:
        return self._backend.place(name, weight)

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache:
        return self._backend.new_cache(config, num_pages, page_size, format)

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Room:
        return self._backend.cache_bytes(config, num_pages, page_size, format)

    def runner(self, config: Config, weights: Weights, max_tokens: int) -> Runner:
        return TimedRunner(self._backend.runner(config, weights, max_tokens), self._clock)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("path", type=Path, help="a .gguf file")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=128)
    arguments.add_argument("--depth", type=int, default=32)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--sequences", type=int, default=8)
    options = arguments.parse_args()
    clock = Clock()
    model = load(options.path, threads=options.threads)
    model = replace(model, backend=TimedBackend(model.backend, clock))
    report = {str(number): _share(BenchEngine(model, number, options.depth + options.steps + 1), clock, number, options)
              for number in sorted({1, options.sequences})}
    for number, result in report.items():
        sys.stdout.write(f"{number} sequences: a step {1e3 * result['step_s']:.3f} ms, outside the model "
                         f"{1e6 * result['python_s']:.0f} us = {result['share']:.1%}\n")
    sys.stdout.write(json.dumps({"model": options.path.name, "threads": options.threads} | report) + "\n")
    return 0


def _share(subject: BenchEngine, clock: Clock, num_sequences: int, options: argparse.Namespace) -> dict[str, float]:
    """Medians over the runs, each a mean over its steps."""
    subject.decode(num_sequences, options.depth, options.steps)
    steps, inside = [], []
    for _ in range(options.runs):
        clock.seconds.clear()
        rate = subject.decode(num_sequences, options.depth, options.steps)
        num_steps = rate.tokens // num_sequences
        steps.append(rate.seconds / num_steps)
        inside.append(sum(clock.seconds[-num_steps:]) / num_steps)
    outside = median(step - model for step, model in zip(steps, inside, strict=True))
    return {"step_s": median(steps), "python_s": outside, "share": outside / median(steps)}


if __name__ == "__main__":
    raise SystemExit(main())
