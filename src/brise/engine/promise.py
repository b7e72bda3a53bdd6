"""Keeping a memory promise: planned before loading, measured after it."""

from __future__ import annotations

from pathlib import Path

from brise.engine import footprint, plan, plan_ways
from brise.engine.model import LoadedModel, num_cores
from brise.engine.plan import Plan, Wish
from brise.engine.subject import describe
from brise.errors import MemoryPromiseError
from brise.ops.native import NativeBackend


def make(path: Path, name: str, wish: Wish, *, weights: str | None = None, threads: int | None = None) -> Plan:
    """The plan of what will be loaded; MemoryPromiseError says by how much it is too large, and what would fit."""
    footprint.keep_small()
    subject = describe(path, name, weights)
    backend = NativeBackend(threads or num_cores())
    made = plan.make(subject, wish, backend)
    plan.check(made, lambda: plan_ways.hint(plan_ways.find(subject, wish, made, backend), made))
    return made


def hold(made: Plan, model: LoadedModel) -> None:
    """Refuses a loaded model if the process takes more with it than was planned."""
    assert made.limit is not None
    footprint.keep_small()
    resident = footprint.resident_bytes()
    needed = resident + made.adapters_bytes + made.running_bytes + made.to_come_bytes
    if needed > made.limit:
        raise MemoryPromiseError(needed, made.limit, f"{resident / 1e6:.1f} MB of {model.name} measured after loading, "
                                 f"and {plan.numbers(made)}", hint="ask for a shorter context or fewer answers")
