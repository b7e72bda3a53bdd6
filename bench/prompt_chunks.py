"""What the sizes of prompt chunks do to waiting, in virtual time: the engine over a stub model on a clock of its own.

A step takes what steps of a real model took (`STEPS`), so the result is the scheduler's alone, is the same on every
machine, and needs no model. It prints how long the whole took, the gaps between tokens, and the time to the first
token: as the engine does it, and with other times that prompts may take of a step while answers are written.

    PYTHONPATH=. python bench/prompt_chunks.py --prompt-s 0.05,0.08,0.1,1000 --requests 16 --rate 0
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

import numpy as np
from tests.engine.stub import GREEDY, stub_model

from brise.engine import scheduler
from brise.engine.engine import Engine, EngineSettings
from brise.engine.request import Request
from brise.models.batch import Batch

# Seconds of steps by tokens, and of a pair of a token and a position, on two Zen 4 cores.
STEPS: Mapping[str, tuple[Mapping[int, float], float]] = {
    "1.5B": ({1: 0.031, 2: 0.038, 4: 0.042, 8: 0.057, 32: 0.19, 512: 2.52}, 1.15e-6),
    "135M": ({1: 0.0037, 8: 0.0085, 32: 0.021, 512: 0.27}, 0.43e-6)}


@dataclass
class VirtualModel:
    """Moves the clock by what a step takes."""

    name: str
    now_s: float = 0.0

    def step(self, batch: Batch) -> None:
        curve, pair_s = STEPS[self.name]
        self.now_s += float(np.interp(len(batch.tokens), list(curve), list(curve.values())))
        self.now_s += pair_s * float((batch.positions + 1).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-s", default="0.05,0.08,0.1,1000")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: all at once")
    args = parser.parse_args()
    for name in STEPS:
        run(name, None, args.requests, args.rate)
        for prompt_s in map(float, args.prompt_s.split(",")):
            run(name, prompt_s, args.requests, args.rate)


def run(name: str, prompt_s: float | None, count: int, rate: float) -> None:
    bounds = scheduler.PROMPT_S, scheduler.MOST_PROMPT_S
    if prompt_s is not None:
        scheduler.PROMPT_S = scheduler.MOST_PROMPT_S = prompt_s
    model, chance = VirtualModel(name), random.Random(1)
    engine = Engine(stub_model(on_step=model.step, max_context=4096), EngineSettings(page_size=16, num_pages=2048),
                    lambda: model.now_s)
    engine.submit(request(chance, 0))
    while engine.has_work:  # it learns what steps cost
        engine.step()
    begun_s = at_s = model.now_s
    waiting: list[tuple[float, Request]] = []
    for number in range(count):
        waiting.append((at_s, request(chance, number)))
        at_s += chance.expovariate(rate) if rate else 0.0
    sent, times = dict[str, float](), dict[str, list[float]]()
    while waiting or engine.has_work:
        while waiting and waiting[0][0] <= model.now_s:
            due_s, one = waiting.pop(0)
            sent[engine.submit(one)] = due_s
        if not engine.has_work:
            model.now_s = waiting[0][0]
            continue
        for delta in engine.step():
            times.setdefault(delta.request_id, []).append(model.now_s)
    gaps = np.concatenate([np.diff(each) for each in times.values()])
    first = [each[0] - sent[request_id] for request_id, each in times.items()]
    scheduler.PROMPT_S, scheduler.MOST_PROMPT_S = bounds
    what = "prompts as the engine does it" if prompt_s is None else f"prompts {prompt_s:g} s of a step"
    print(f"{name}, {what}: {model.now_s - begun_s:.1f} s in all; gap p50 "
          f"{np.quantile(gaps, 0.5):.3f} p95 {np.quantile(gaps, 0.95):.3f} most {gaps.max():.3f} s; first token mean "
          f"{mean(first):.2f} p95 {np.quantile(first, 0.95):.2f} s")


def request(chance: random.Random, number: int) -> Request:
    """A prompt of 30 to 800 tokens, and an answer of 20 to 120."""
    length, answer = chance.choice([30, 60, 120, 250, 500, 800]), chance.choice([20, 40, 80, 120])
    return Request((number % 200, *(place % 200 for place in range(length))), max_tokens=answer, ignore_eos=True,
                   sampling=GREEDY)


if __name__ == "__main__":
    main()
