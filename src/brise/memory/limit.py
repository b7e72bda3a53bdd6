"""The memory limit of a served model: planned before loading, checked after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, cast

from brise import settings
from brise.backends import open_planner
from brise.checkpoint.generation import Generation
from brise.engine.model import LoadedModel
from brise.errors import DeviceMemoryError, MemoryLimitError, UnsupportedError
from brise.files.fields import IgnoredKey
from brise.files.sizes import exact_size
from brise.hub.locate import find_model
from brise.memory import process, rendering, serving_plan, split_plan
from brise.memory.device_share import DeviceShare
from brise.memory.model_header import ModelHeader, read_header
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.memory.suggestions import Suggestion, hint, suggest
from brise.models.batch import PAGE_SIZE
from brise.models.ops import Planner


@dataclass(frozen=True)
class PlannedModel:
    """The memory plan of a model, and what would fit if it does not."""

    plan: ServingPlan
    suggestions: Sequence[Suggestion]
    ignored: Sequence[IgnoredKey] = ()  # keys of the model's description that change nothing
    generation: Generation = Generation()  # how its makers want it sampled

    @property
    def notes(self) -> Sequence[IgnoredKey]:
        return [key for key in self.ignored if key.is_known]

    @property
    def unknown(self) -> Sequence[IgnoredKey]:
        return [key for key in self.ignored if not key.is_known]

    def refuse_unknown(self) -> None:
        """Raises UnsupportedError for the first key of the model's description that brise does not know."""
        for key in self.unknown:
            raise UnsupportedError(f"{self.plan.model}: {key.name} is {key.shown}, a key that brise does not know",
                                   hint="without --strict it is taken for a note, since its name speaks of no numbers")

    def document(self) -> dict[str, object]:
        """The plan as JSON. docs/guides/memory.md describes the fields; a test checks that they stay."""
        plan = self.plan
        keys = {"keys": {"notes": [key.name for key in self.notes],
                         "unknown": {key.name: key.shown for key in self.unknown}}}
        own = self.generation.sampling.given
        sampling = {"sampling": {**own, "source": self.generation.source}} if own else {}
        return {
            "version": 1, "model": plan.model, "fits": plan.fits, "memory": plan.limit, "total": plan.total_bytes,
            **_device(plan),
            "weights": {"total": plan.weights_bytes, "tied": plan.is_tied, "parts": [
                {"name": part.name, "formats": list(part.formats), "parameters": part.parameters, "bytes": part.nbytes}
                for part in plan.parts]},
            "cache": {"format": plan.cache, "bytes_per_token": plan.page_bytes // PAGE_SIZE,
                      "tokens": plan.num_pages * PAGE_SIZE, "bytes": plan.cache_bytes},
            "context": {"tokens": plan.context, "parallel": plan.parallel, "largest": plan.largest_context,
                        "model": plan.max_context, "longrope_short": plan.short_context},
            "work": plan.work_bytes, "vision_work": plan.vision_bytes, "image_size": plan.image_size,
            "audio_work": plan.audio_bytes,
            "answers": plan.answers_bytes, "process": plan.process_bytes, "loading": plan.loading_bytes,
            "experts": plan.experts_bytes, "adapters": plan.adapters_bytes,
            "ways": [asdict(suggestion) for suggestion in self.suggestions], **sampling,
            **(keys if self.ignored else {})}


def _device(plan: ServingPlan) -> dict[str, object]:
    """The device of a plan, and the second total: what lies on the host and the limit does not bound."""
    share = plan.device
    if share is None:
        return {}
    return {"device": {"name": share.label, "shared": share.memory.is_shared, "free": share.free.device,
                       "bytes": share.device_bytes(plan.num_pages), "layers": share.num_on_device,
                       "of_layers": share.num_layers, "images": plan.encodes_on_device},
            "host": {"total": share.host_bytes(plan.num_pages), "memory": share.host_limit,
                     "parts": {term.name: term.nbytes for term in share.host_terms(plan.num_pages)}}}


def choose(header: ModelHeader, request: MemoryRequest, backend: Planner) -> tuple[ServingPlan, Planner]:
    """The plan with the encoder of images where it fits, and the backend that puts it there.

    On the device if all layers fit there with it, and as long a context as is asked for, or the usual one; else on the
    host, if that makes room for layers or for a longer context.
    """
    plan = split_plan.make(header, request, backend)
    wanted = request.context or min(serving_plan.DEFAULT_CONTEXT, header.config.max_context)
    if not plan.encodes_on_device or (plan.fits and plan.context >= wanted and plan.gpu_layers is None):
        return plan, backend
    on_host = backend.encoding_on_host()
    other = split_plan.make(header, request, on_host)
    return (other, on_host) if _order(other) > _order(plan) else (plan, backend)


def _order(plan: ServingPlan) -> tuple[bool, int, int]:
    """Plans in order of what they give."""
    return plan.fits, 0 if plan.device is None else plan.device.num_on_device, plan.context


def plan_serving(model: str, request: MemoryRequest, *, weights: str | None = None, threads: int | None = None,
                 device: str = "cpu") -> PlannedModel:
    """The plan of a model on this machine: a name in the store, a .gguf file or a folder. Its weights are not read.

    StoreError if there is no such model, UnsupportedError if it has no such context or image size, or the device does
    not run it; DeviceError if there is no such device.
    """
    environment = settings.read()
    located = find_model(model, environment)
    header = read_header(located.path, located.name, weights)
    backend = open_planner(threads or environment.threads, device=device)
    plan, backend = choose(header, request, backend)
    return PlannedModel(plan, suggest(header, request, plan, backend), header.ignored, header.generation)


def plan_within(path: Path, name: str, request: MemoryRequest, *, weights: str | None = None,
                threads: int | None = None, device: str = "cpu") -> ServingPlan:
    """The plan of a model that is about to be loaded. MemoryLimitError says by how much it exceeds the limit, and what
    would fit."""
    process.keep_small()
    header = read_header(path, name, weights)
    backend = open_planner(threads, device=device)
    plan, backend = choose(header, request, backend)
    if not plan.fits:
        _refuse(plan, lambda: hint(suggest(header, request, plan, backend), plan))
    return plan


def _refuse(plan: ServingPlan, what_fits: Callable[[], str]) -> NoReturn:
    """The error of a plan that does not fit."""
    assert plan.limit is not None
    share = plan.device
    asked, free = plan.lacking
    if plan.total_bytes <= plan.limit and asked:
        raise DeviceMemoryError(serving_plan.headline(plan), asked, free, plan.limit,
                                hint="other programs may hold the rest: close them, or lower --memory")
    if share is None or share.host_limit is None:
        raise MemoryLimitError(plan.total_bytes, plan.limit, serving_plan.numbers(plan), hint=what_fits())
    layers = f"{share.num_on_device} of {share.num_layers} layers on {share.label} (vram={exact_size(plan.limit)}"
    if plan.total_bytes > plan.limit:
        raise MemoryLimitError(plan.total_bytes, plan.limit, f"{serving_plan.numbers(plan)}; that is with {layers}, "
                               f"ram={exact_size(share.host_limit)})", hint=what_fits())
    numbers = rendering.numbers((term.name, term.nbytes) for term in share.host_terms(plan.num_pages))
    raise MemoryLimitError(share.host_bytes(plan.num_pages), share.host_limit,
                           f"{numbers}; that is on the host, beside {layers})", hint=what_fits())


def check_loaded(plan: ServingPlan, model: LoadedModel) -> None:
    """MemoryLimitError if the process takes more with the loaded model than was planned, so that it will exceed the
    limit."""
    assert plan.limit is not None
    process.keep_small()
    resident = process.resident_bytes()
    if plan.device is not None:  # other programs may have taken some meanwhile
        backend = cast(Planner, model.backend)
        resident = backend.taken() + (resident if plan.device.memory.is_shared else 0)
        later, free = plan.device.device_bytes(plan.num_pages) - backend.taken(), backend.available().device
        if later > free and plan.device.has_own_memory:
            raise DeviceMemoryError(f"{plan.device.label} has {rendering.size(free)} free after loading, and "
                                    f"{rendering.size(later)} are to come", later, free, plan.limit,
                                    hint="other programs may hold the rest: close them, or lower --memory")
        if plan.device.host_limit is not None:
            _check_host(plan, plan.device, model)
    needed = resident + plan.adapters_bytes + plan.running_bytes + plan.later_bytes
    if needed > plan.limit:
        raise MemoryLimitError(needed, plan.limit, f"{resident / 1e6:.1f} MB of {model.name} measured after loading, "
                               f"and {serving_plan.numbers(plan)}", hint="take a shorter context or fewer answers")


def _check_host(plan: ServingPlan, share: DeviceShare, model: LoadedModel) -> None:
    """MemoryLimitError if the process will exceed the limit of the host's memory."""
    assert share.host_limit is not None
    resident = process.resident_bytes()
    needed = resident + share.host_running(plan.num_pages)
    if needed > share.host_limit:
        numbers = rendering.numbers((term.name, term.nbytes) for term in share.host_terms(plan.num_pages))
        measured = f"{resident / 1e6:.1f} MB of {model.name} measured on the host after loading"
        raise MemoryLimitError(needed, share.host_limit, f"{measured}, and {numbers} planned",
                               hint="raise ram=, or take a shorter context")
