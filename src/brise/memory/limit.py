"""Keeping a memory promise: planned before loading, measured after it."""

from __future__ import annotations

from pathlib import Path

from brise.backends import open_planner
from brise.engine.model import LoadedModel
from brise.errors import MemoryLimitError
from brise.memory import process, serving_plan, suggestions
from brise.memory.model_header import describe
from brise.memory.serving_plan import MemoryRequest, ServingPlan


def make(path: Path, name: str, wish: MemoryRequest, *, weights: str | None = None,
         threads: int | None = None) -> ServingPlan:
    """The plan of what will be loaded; MemoryPromiseError says by how much it is too large, and what would fit."""
    process.keep_small()
    subject = describe(path, name, weights)
    backend = open_planner(threads)
    made = serving_plan.make(subject, wish, backend)
    serving_plan.check(made, lambda: suggestions.hint(suggestions.find(subject, wish, made, backend), made))
    return made


def hold(made: ServingPlan, model: LoadedModel) -> None:
    """Refuses a loaded model if the process takes more with it than was planned."""
    assert made.limit is not None
    process.keep_small()
    resident = process.resident_bytes()
    needed = resident + made.adapters_bytes + made.running_bytes + made.to_come_bytes
    if needed > made.limit:
        raise MemoryLimitError(needed, made.limit, f"{resident / 1e6:.1f} MB of {model.name} measured after loading, "
                               f"and {serving_plan.numbers(made)}", hint="ask for a shorter context or fewer answers")
