"""Keeping a memory promise: planned before loading, measured after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from brise import settings
from brise.backends import open_planner
from brise.engine.model import LoadedModel
from brise.errors import MemoryLimitError
from brise.hub.store import ModelStore, locate
from brise.memory import process, serving_plan, suggestions
from brise.memory.model_header import describe
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.memory.suggestions import Suggestion
from brise.models.batch import PAGE_SIZE


@dataclass(frozen=True)
class PlannedModel:
    """What a model takes, and what would fit if it does not."""

    plan: ServingPlan
    suggestions: Sequence[Suggestion]

    def document(self) -> dict[str, object]:
        """The plan as JSON; docs/memory.md says what the fields are, and a test that they stay."""
        plan = self.plan
        return {
            "version": 1, "model": plan.model, "fits": plan.fits, "memory": plan.limit, "total": plan.total_bytes,
            "weights": {"total": plan.weights_bytes, "tied": plan.is_tied, "parts": [
                {"name": part.name, "formats": list(part.formats), "parameters": part.parameters, "bytes": part.nbytes}
                for part in plan.parts]},
            "cache": {"format": plan.cache, "bytes_per_token": plan.page_bytes // PAGE_SIZE,
                      "tokens": plan.num_pages * PAGE_SIZE, "bytes": plan.cache_bytes},
            "context": {"tokens": plan.context, "parallel": plan.parallel, "largest": plan.largest_context,
                        "model": plan.max_context},
            "work": plan.work_bytes, "vision_work": plan.vision_bytes, "image_size": plan.image_size,
            "answers": plan.answers_bytes, "process": plan.base_bytes, "loading": plan.loading_bytes,
            "experts": plan.experts_bytes, "adapters": plan.adapters_bytes,
            "ways": [asdict(way) for way in self.suggestions]}


def plan_serving(model: str, request: MemoryRequest, *, weights: str | None = None,
                 threads: int | None = None) -> PlannedModel:
    """The plan of a model that lies on this machine: a name of the store, a .gguf file or a folder. Its weights are not
    read.

    StoreError for a model that is not here, UnsupportedError for one that has no such context or image.
    """
    found = settings.read()
    located = locate(model, ModelStore(found.home))
    header = describe(located.path, located.name, weights)
    backend = open_planner(threads or found.threads)
    plan = serving_plan.make(header, request, backend)
    return PlannedModel(plan, suggestions.find(header, request, plan, backend))


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
