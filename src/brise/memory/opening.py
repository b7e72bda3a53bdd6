"""An engine from a model on disk: planned, loaded, held to its memory limit, with its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brise.engine import adapter_loading
from brise.engine.adapters import AdapterInfo
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import load
from brise.errors import UnsupportedError
from brise.files.digests import Located
from brise.memory import limit
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.models.ops import CacheFormat

MAX_ADAPTERS, MAX_RANK = 8, 64
_USUAL = EngineSettings()


@dataclass(frozen=True)
class AdapterRoom:
    """Slots for adapters of ranks up to `rank`, and bytes of memory; None: not bounded."""

    slots: int = MAX_ADAPTERS
    rank: int = MAX_RANK
    nbytes: int | None = None


@dataclass(frozen=True)
class EngineOptions:
    """How a model is opened for many requests at one time. Sizes are bytes; None: as the model's file has it.

    `memory` is what the whole process may take: planned before loading, checked after it.
    """

    memory: int | None = None
    context: int | None = None
    parallel: int = _USUAL.max_sequences
    queue: int = _USUAL.max_waiting
    cache: CacheFormat = _USUAL.cache_format
    weights: str | None = None
    experts: int | None = None
    image_size: int | None = None
    threads: int | None = None
    adapters: Sequence[tuple[str, Path]] = ()
    any_base: bool = False
    adapter_room: AdapterRoom = AdapterRoom()
    other_bytes: int = 0  # that this process takes for other things


@dataclass(frozen=True)
class OpeningProgress:
    """Hears of each stage of opening."""

    planned: Callable[[ServingPlan], None] = lambda plan: None
    loading: Callable[[Located], None] = lambda located: None
    adapter: Callable[[AdapterInfo], None] = lambda info: None


def adapter_room(paths: Sequence[Path], *, memory: int | None, adapter_memory: int | None, slots: int,
                 rank: int) -> AdapterRoom:
    """The room that is asked for; under a memory limit and without `adapter_memory` what these adapters need."""
    needed = sum(map(adapter_loading.reading_bytes, paths))
    nbytes = adapter_memory if adapter_memory is not None or memory is None else needed
    return AdapterRoom(0 if nbytes == 0 else slots, rank, nbytes)


def open_engine(located: Located, options: EngineOptions, progress: OpeningProgress = OpeningProgress()) -> Engine:
    """The engine, which does not run yet; MemoryLimitError before a byte is loaded if the plan does not fit."""
    room = options.adapter_room
    plan = None if options.memory is None else _plan(located, options)
    progress.loading(located)
    model = load(located.path, threads=options.threads, name=located.name, digest=located.digest,
                 weights=options.weights, expert_bytes=options.experts).with_image_size(options.image_size)
    settings = EngineSettings(
        max_context=options.context, max_sequences=options.parallel, max_waiting=options.queue,
        cache_format=options.cache, max_adapters=room.slots, max_rank=room.rank, adapter_bytes=room.nbytes)
    if plan is not None:
        plan = plan.filled(options.parallel)
        limit.check_loaded(plan, model)
        progress.planned(plan)
        settings = replace(settings, max_context=plan.context, num_pages=plan.num_pages,
                           feature_bytes=plan.feature_bytes)
    engine = Engine(model, settings)
    for name, path in options.adapters:
        if engine.adapters is None:
            raise UnsupportedError("adapters are given, and there is room for none")
        progress.adapter(engine.adapters.add(name, path, any_base=options.any_base))
    return engine


def _plan(located: Located, options: EngineOptions) -> ServingPlan:
    room = options.adapter_room
    return limit.plan_within(located.path, located.name, MemoryRequest(
        options.memory, options.context, cache=options.cache, image_size=options.image_size,
        adapters_bytes=room.nbytes or 0, adapter_slots=room.slots, adapter_rank=room.rank, answers=options.parallel,
        expert_bytes=options.experts, other_bytes=options.other_bytes), weights=options.weights,
        threads=options.threads)
