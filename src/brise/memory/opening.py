"""Opening of a model on disk as an engine: planned, loaded, checked against its memory limit, with its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brise import settings as environment
from brise.engine.drafts import OpenTable
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import CPU, LoadedModel, load
from brise.engine.speculation import MOST_DRAFTED
from brise.errors import DeviceError, MemoryLimitError, UnsupportedError
from brise.files.digests import Located
from brise.files.sizes import TwoLimits
from brise.hub.packed import PackedFolder
from brise.models.ops import CacheFormat

if TYPE_CHECKING:  # a chat without adapters and without a limit starts sooner
    from brise.engine.adapters import AdapterInfo
    from brise.engine.engine_thread import EngineThread
    from brise.memory.serving_plan import ServingPlan

MAX_ADAPTERS, MAX_RANK = 8, 64
_USUAL = EngineSettings()
# Whether answers are drafted (engine/speculation.py): where it pays, or never.
Speculate = Literal["auto", "off"]
CHAT_DRAFTED = 7


@dataclass(frozen=True)
class AdapterRoom:
    """Slots for adapters of ranks up to `rank`, and their memory in bytes (None: not bounded)."""

    slots: int = MAX_ADAPTERS
    rank: int = MAX_RANK
    nbytes: int | None = None


@dataclass(frozen=True)
class EngineOptions:
    """How a model is opened. Sizes are bytes; None means what the model's file says.

    `memory` is the limit of the whole process, or those of a GPU and of the host: planned before loading, checked
    after it.
    """

    memory: int | TwoLimits | None = None
    context: int | None = None
    usual_context: int | None = None  # the longest context unless `context` is given
    parallel: int = _USUAL.max_sequences
    queue: int = _USUAL.max_waiting
    cache: CacheFormat = _USUAL.cache_format
    weights: str | None = None
    experts: int | None = None
    image_size: int | None = None
    threads: int | None = None
    device: str = "cpu"  # as backends.open_planner takes it
    adapters: Sequence[tuple[str, Path]] = ()
    any_base: bool = False
    adapter_room: AdapterRoom = AdapterRoom()
    other_bytes: int = 0  # what this process takes for other things
    ngrams: Path | None = None  # a table of drafts for requests without an adapter
    open_sealed: OpenTable | None = None  # opens sealed tables of drafts; None: they are left out
    serves: bool = True  # over HTTP, with grammars; a chat has neither, and a cache for exactly `context`
    speculate: Speculate = "auto"

    @property
    def on_cpu(self) -> EngineOptions:
        """The same without a GPU."""
        memory = self.memory.ram if isinstance(self.memory, TwoLimits) else self.memory
        return replace(self, device="cpu", memory=memory)

    @property
    def max_draft(self) -> int:
        """Tokens that may be drafted for an answer in a step; a chat, whose memory is small, drafts fewer."""
        return 0 if self.speculate == "off" else MOST_DRAFTED if self.serves else CHAT_DRAFTED


@dataclass(frozen=True)
class OpeningProgress:
    """Functions that are called at each stage of opening."""

    planned: Callable[[ServingPlan], None] = lambda plan: None
    loading: Callable[[Located], None] = lambda located: None
    adapter: Callable[[AdapterInfo], None] = lambda info: None
    drafts: Callable[[str], None] = lambda note: None  # what became of the table `ngrams`
    device: Callable[[str], None] = lambda note: None  # which device runs the model, unless it is the CPU as asked


def adapter_room(paths: Sequence[Path], *, memory: int | TwoLimits | None, adapter_memory: int | None, slots: int,
                 rank: int) -> AdapterRoom:
    """The requested room; with a memory limit and without `adapter_memory`, what these adapters need."""
    from brise.engine import adapter_loading  # noqa: PLC0415 - only adapters need it

    needed = sum(map(adapter_loading.reading_bytes, paths))
    nbytes = adapter_memory if adapter_memory is not None or memory is None else needed
    return AdapterRoom(0 if nbytes == 0 else slots, rank, nbytes)


def open_engine(located: Located, options: EngineOptions, progress: OpeningProgress = OpeningProgress()) -> Engine:
    """An engine that is ready to run. MemoryLimitError, before a byte is loaded, if the plan does not fit.

    On the device "auto" a GPU that is not there, too small or does not run the model is no error: the CPU runs it.
    """
    if options.device != "auto":
        return _open(located, options, progress)
    try:
        return _open(located, options, progress)
    except (DeviceError, UnsupportedError, MemoryLimitError) as error:
        progress.device(f"not on a GPU: {str(error).splitlines()[0]}")
    return _open(located, options.on_cpu, progress)


def open_thread(located: Located, options: EngineOptions,
                progress: OpeningProgress = OpeningProgress()) -> EngineThread:
    """The engine of `open_engine` in a thread that was not started yet. On the device "auto" the CPU takes over if the
    GPU is lost: requests that run end with an error, later ones wait until the model is loaded again."""
    from brise.engine.engine_thread import EngineThread  # noqa: PLC0415 - see TYPE_CHECKING

    engine = open_engine(located, options, progress)
    is_on_cpu = options.device != "auto" or engine.model.device == CPU
    return EngineThread(engine, None if is_on_cpu else partial(_open, located, options.on_cpu, progress))


def _open(located: Located, options: EngineOptions, progress: OpeningProgress) -> Engine:
    plan = None if options.memory is None else _plan(located, options)
    progress.loading(located)
    model = load(located.path, threads=options.threads, name=located.name, digest=located.digest,
                 weights=options.weights, expert_bytes=options.experts, device=options.device,
                 gpu_layers=None if plan is None else plan.gpu_layers,
                 encodes_on_host=plan is not None and plan.device is not None and not plan.encodes_on_device,
                 packed=PackedFolder.of(environment.read())).with_image_size(options.image_size)
    if options.device != "cpu":
        progress.device(f"runs on {model.device}")
    if plan is not None:
        from brise.memory import limit  # noqa: PLC0415 - see TYPE_CHECKING

        limit.check_loaded(plan, model)
        progress.planned(plan)
    settings = _settings(options, model, plan)
    opened = model.config.for_context(settings.max_context or model.config.max_context)
    engine = Engine(replace(model, config=opened), settings)
    if options.ngrams is not None:
        progress.drafts(engine.draft_from(options.ngrams))
    for name, path in options.adapters:
        if engine.adapters is None:
            raise UnsupportedError("adapters are given, and there is room for none")
        progress.adapter(engine.adapters.add(name, path, any_base=options.any_base))
    return engine


def _settings(options: EngineOptions, model: LoadedModel, plan: ServingPlan | None) -> EngineSettings:
    room = options.adapter_room
    context = options.context
    if context is None and options.usual_context is not None:
        context = min(options.usual_context, model.config.max_context)
    settings = EngineSettings(
        max_context=context, max_sequences=options.parallel, max_waiting=options.queue, cache_format=options.cache,
        max_adapters=room.slots, max_rank=room.rank, adapter_bytes=room.nbytes, max_draft=options.max_draft,
        open_sealed=options.open_sealed)
    if plan is not None:
        return replace(settings, max_context=plan.context, num_pages=plan.num_pages, feature_bytes=plan.feature_bytes)
    if options.serves or context is None:
        return settings
    return replace(settings, num_pages=options.parallel * -(-context // settings.page_size))


def _plan(located: Located, options: EngineOptions) -> ServingPlan:
    """The plan of the model, with all the cache that fits, up to one context for each answer."""
    from brise.memory import limit, serving_plan  # noqa: PLC0415 - see TYPE_CHECKING

    room = options.adapter_room
    most, ram = (options.memory.vram, options.memory.ram) if isinstance(options.memory, TwoLimits) else (
        options.memory, None)
    return limit.plan_within(located.path, located.name, serving_plan.MemoryRequest(
        most, options.context, ram=ram, cache=options.cache, image_size=options.image_size,
        adapters_bytes=room.nbytes or 0, adapter_slots=room.slots, adapter_rank=room.rank, answers=options.parallel,
        usual_context=options.usual_context, serves=options.serves, expert_bytes=options.experts,
        other_bytes=options.other_bytes + _table_bytes(options.ngrams), max_draft=options.max_draft),
        weights=options.weights, threads=options.threads, device=options.device).filled(options.parallel)


def _table_bytes(path: Path | None) -> int:
    """UnsupportedError if there is no such file."""
    if path is None:
        return 0
    try:
        return path.stat().st_size
    except OSError as error:
        raise UnsupportedError(f"cannot read the table of n-grams {str(path)!r}: {error.strerror}") from None
