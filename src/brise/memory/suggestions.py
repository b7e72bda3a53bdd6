"""What would fit where a serving plan does not: the smallest changes to the request, cheapest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from brise.checkpoint.gguf.names import gguf_name
from brise.engine.experts import routed
from brise.files.sizes import TwoLimits, memory_text
from brise.memory import rendering, split_plan
from brise.memory.model_header import ModelHeader
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.models.batch import PAGE_SIZE
from brise.models.ops import CacheFormat, Planner
from brise.models.weights import Dense, Quant, Stack, Stored, Weight, place
from brise.quant import recipe

# From the one that changes answers least to the smallest.
_CACHES: tuple[CacheFormat, ...] = ("f16", "q8", "q4")
_MIXES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
_IMAGE_SIZES = (1120, 784, 560, 280)
_LEAST_CONTEXT = 512
_RAM_STEP = 10**8


@dataclass(frozen=True)
class Suggestion:
    """A changed request that fits. Fields are None where it leaves the request as it is."""

    total_bytes: int
    context: int
    cache: CacheFormat
    weights: str | None = None
    image_size: int | None = None
    parallel: int | None = None
    experts: int | None = None  # bytes of a mixture's experts that are kept, while the others stay in the file
    memory: TwoLimits | None = None  # limits of a GPU and of the host, between which the model is split
    gpu_layers: int | None = None  # of them, on the GPU

    def text(self, plan: ServingPlan) -> str:
        """The options that differ from those of `plan`."""
        changes = [f"--parallel {self.parallel}"] if self.parallel is not None else []
        changes += [f"--image-size {self.image_size}"] if self.image_size is not None else []
        changes += [f"--cache {self.cache}"] if self.cache != plan.cache else []
        changes += [f"--context {self.context}"] if self.context != plan.context else []
        changes += [f"--experts {self.experts // 10**6}MB"] if self.experts is not None else []
        changes += [f"--memory {memory_text(self.memory)}"] if self.memory is not None else []
        changes += [f"weights in {self.weights}"] if self.weights is not None else []
        text = " with ".join((" ".join(changes[:-1]), changes[-1])) if self.weights and changes[:-1] else (
            " ".join(changes))
        share = plan.device
        return text if self.gpu_layers is None or share is None else (
            f"{text} ({self.gpu_layers} of {share.num_layers} layers on the GPU)")


def suggest(header: ModelHeader, request: MemoryRequest, plan: ServingPlan, backend: Planner) -> list[Suggestion]:
    """Requests that fit in place of the one that `plan` was made for; empty if it fits, or if nothing helps."""
    if plan.fits or request.limit is None:
        return []
    candidates = _candidates(header, replace(request, context=plan.context), backend)
    return list(dict.fromkeys(suggestion for suggestion in candidates if suggestion))


def hint(suggestions: Sequence[Suggestion], plan: ServingPlan) -> str:
    """The suggestions on one line, for an error."""
    least = replace(plan, context=_LEAST_CONTEXT, parallel=1).total_bytes
    return rendering.fitting((suggestion.text(plan), suggestion.total_bytes) for suggestion in suggestions) or (
        f"no cache, context or format that brise has fits; {_LEAST_CONTEXT} tokens of context take "
        f"{least / 1e6:.0f} MB as requested: raise the limit, or take a smaller model")


def _candidates(header: ModelHeader, request: MemoryRequest, backend: Planner) -> Iterator[Suggestion | None]:
    yield from (_suggestion(header, replace(request, cache=cache), backend) for cache in _smaller(request.cache))
    if request.parallel > 1:
        parallel = split_plan.make(header, request, backend).pages_within // -(-(request.context or 1) // PAGE_SIZE)
        if parallel:
            yield _suggestion(header, replace(request, parallel=parallel), backend, parallel=parallel)
    yield from _with_smaller_images(header, request, backend)
    for cache in (request.cache, _CACHES[-1]):
        longest = split_plan.make(header, replace(request, cache=cache), backend).largest_context
        if longest >= min(_LEAST_CONTEXT, header.config.max_context):
            yield _suggestion(header, replace(request, cache=cache, context=longest), backend)
    yield _split(header, request, backend)
    yield _with_experts_in_file(header, request, backend)
    for cache in (request.cache, _CACHES[-1]):
        in_mixes = (_suggestion(_in_mix(header, mix), replace(request, cache=cache), backend, weights=mix)
                    for mix in _smaller_mixes(header, backend))
        yield next((suggestion for suggestion in in_mixes if suggestion), None)


def _suggestion(header: ModelHeader, request: MemoryRequest, backend: Planner, *, weights: str | None = None,
                image_size: int | None = None, parallel: int | None = None) -> Suggestion | None:
    """The request as a suggestion; None if it does not fit either."""
    plan = split_plan.make(header, request, backend)
    return Suggestion(plan.total_bytes, plan.context, plan.cache, weights, image_size, parallel) if plan.fits else None


def _split(header: ModelHeader, request: MemoryRequest, backend: Planner) -> Suggestion | None:
    """The layers that the GPU's limit does not hold on the CPU, if they fit into what is free there."""
    device, free = backend.device, backend.available().host
    if device is None or device.is_shared or request.limit is None:
        return None
    plan = split_plan.make(header, replace(request, ram=free), backend)
    share = plan.device
    if not plan.fits or share is None or not share.is_split:
        return None
    ram = -(-share.host_bytes(plan.num_pages) // _RAM_STEP) * _RAM_STEP
    return Suggestion(plan.total_bytes, plan.context, plan.cache, memory=TwoLimits(request.limit, ram),
                      gpu_layers=share.num_on_device)


def _with_smaller_images(header: ModelHeader, request: MemoryRequest,
                         backend: Planner) -> Iterator[Suggestion | None]:
    """The largest images that fit, alone or with the smallest cache; if none do, with the longest context that fits."""
    if header.vision is None:
        return
    least = min(_LEAST_CONTEXT, header.config.max_context)
    largest = request.image_size or header.vision[0].image_size
    sizes = [size for size in _IMAGE_SIZES if header.vision[0].least_size <= size < largest]
    for cache in (request.cache, _CACHES[-1]):
        requests = [replace(request, cache=cache, image_size=size) for size in sizes]
        at_sizes = (_suggestion(header, smaller, backend, image_size=smaller.image_size) for smaller in requests)
        suggestion = next((fitting for fitting in at_sizes if fitting), None)
        yield suggestion
        if suggestion is None:
            contexts = ((smaller, split_plan.make(header, smaller, backend).largest_context) for smaller in requests)
            yield next((_suggestion(header, replace(smaller, context=longest), backend, image_size=smaller.image_size)
                        for smaller, longest in contexts if longest >= least), None)


def _with_experts_in_file(header: ModelHeader, request: MemoryRequest, backend: Planner) -> Suggestion | None:
    """All the room that is left on the host as room for experts, if it holds one expert of the largest layer; where the
    limit is a card's alone, what is free there."""
    if header.config.experts is None or request.expert_bytes is not None or request.limit is None:
        return None
    rooms = [(backend.nbytes(backend.shape_only("experts", stack)), stack) for stack in routed(header.weights)]
    sizes = [(room.host + room.device) // len(stack.matrices) for room, stack in rooms]
    least = split_plan.make(header, replace(request, expert_bytes=0), backend)
    spare = request.limit - least.total_bytes
    if least.device is not None and least.device.has_own_memory:
        taken = sum(term.nbytes for term in least.device.host_terms(least.num_pages))
        spare = (request.ram or backend.available().host) - taken
    experts = min(spare, sum(room.host + room.device for room, _ in rooms)) // 10**6 * 10**6
    if experts < max((sum(sizes[first:first + 3]) for first in range(0, len(sizes), 3)), default=0):
        return None
    plan = split_plan.make(header, replace(request, expert_bytes=experts), backend)
    return Suggestion(plan.total_bytes, plan.context, plan.cache, experts=experts) if plan.fits else None


def _smaller(cache: CacheFormat) -> tuple[CacheFormat, ...]:
    return _CACHES[_CACHES.index(cache) + 1:] if cache in _CACHES else ()


def _smaller_mixes(header: ModelHeader, backend: Planner) -> Iterator[str]:
    """Mixes in which the model takes less than in its own formats."""
    def weights_bytes(model: ModelHeader) -> int:
        return split_plan.make(model, MemoryRequest(), backend).weights_bytes

    unchanged = weights_bytes(header)
    yield from (mix for mix in _MIXES if weights_bytes(_in_mix(header, mix)) < unchanged)


def _in_mix(header: ModelHeader, mix: str) -> ModelHeader:
    """The header of the model that `brise quantize` would write."""
    is_tied = header.weights.output is header.weights.tok_embeddings
    config = header.config

    def format_of(name: str, weight: Weight, shape: tuple[int, ...]) -> str:
        return recipe.choose(mix, gguf_name(name, weight), shape, "F16", config.num_layers, tied=is_tied,
                             queries_per_kv=config.num_heads // config.num_kv_heads)

    def put(name: str, weight: Weight) -> Weight:
        if len(weight.shape) == 1:
            return weight
        if isinstance(weight, Stack):
            return Stack(tuple(_unread(format_of(name, weight, matrix.shape), matrix.shape)
                               for matrix in weight.matrices))
        return _unread(format_of(name, weight, weight.shape), weight.shape)

    return replace(header, weights=place(header.weights, put))


def _unread(format: str, shape: tuple[int, ...]) -> Dense | Quant | Stored:
    """A weight that has a format and a shape, and no data."""
    return Stored(format, shape, _no_rows)


def _no_rows(first: int, last: int) -> None:
    raise AssertionError("a plan reads no weights")
