"""What would fit where a plan does not: the smallest steps away from what was asked, in order of what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from brise.checkpoint.gguf.names import gguf_name
from brise.engine.experts import routed
from brise.memory import serving_plan as plans
from brise.memory.serving_plan import MemoryRequest, ModelHeader, ServingPlan
from brise.models.batch import PAGE_SIZE
from brise.models.ops import CacheFormat, Planner
from brise.models.weights import Dense, Quant, Stack, Stored, Weight, place
from brise.quant import recipe

# From the one that changes answers least to the smallest.
_CACHES: tuple[CacheFormat, ...] = ("f16", "q8", "q4")
_MIXES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
_IMAGE_SIZES = (1120, 784, 560, 280)
_LEAST_CONTEXT = 512


@dataclass(frozen=True)
class Suggestion:
    """One change, or several, that makes it fit; None where nothing changes."""

    total_bytes: int
    context: int
    cache: CacheFormat
    weights: str | None = None
    image_size: int | None = None
    parallel: int | None = None
    experts: int | None = None  # bytes of a mixture's experts that are kept, the others stay in the file

    def text(self, asked: ServingPlan) -> str:
        """The options to give."""
        changes = [f"--parallel {self.parallel}"] if self.parallel is not None else []
        changes += [f"--image-size {self.image_size}"] if self.image_size is not None else []
        changes += [f"--cache {self.cache}"] if self.cache != asked.cache else []
        changes += [f"--context {self.context}"] if self.context != asked.context else []
        changes += [f"--experts {self.experts // 10**6}MB"] if self.experts is not None else []
        changes += [f"weights in {self.weights}"] if self.weights is not None else []
        return " with ".join((" ".join(changes[:-1]), changes[-1])) if self.weights and changes[:-1] else (
            " ".join(changes))


def find(subject: ModelHeader, wish: MemoryRequest, asked: ServingPlan, backend: Planner) -> list[Suggestion]:
    """The ways, none twice; empty if it fits already or nothing helps."""
    if asked.fits or wish.limit is None:
        return []
    return list(dict.fromkeys(way for way in _tries(subject, replace(wish, context=asked.context), backend) if way))


def hint(ways: Sequence[Suggestion], asked: ServingPlan) -> str:
    """One line for an error."""
    if not ways:
        least = replace(asked, context=_LEAST_CONTEXT, parallel=1).total_bytes
        return (f"no cache, context or format that brise has fits; {_LEAST_CONTEXT} tokens of context take "
                f"{least / 1e6:.0f} MB as asked: promise more, or take a smaller model")
    return "what fits: " + "; or ".join(f"{way.text(asked)} ({way.total_bytes / 1e6:.0f} MB)" for way in ways)


def _tries(subject: ModelHeader, wish: MemoryRequest, backend: Planner) -> Iterator[Suggestion | None]:
    yield from (_way(subject, replace(wish, cache=cache), backend) for cache in _smaller(wish.cache))
    if wish.parallel > 1:
        pages = plans.make(subject, wish, backend).pages_within // -(-(wish.context or 1) // PAGE_SIZE)
        if pages:
            yield _way(subject, replace(wish, parallel=pages), backend, parallel=pages)
    yield from _with_smaller_images(subject, wish, backend)
    for cache in (wish.cache, _CACHES[-1]):
        longest = plans.make(subject, replace(wish, cache=cache), backend).largest_context
        if longest >= min(_LEAST_CONTEXT, subject.config.max_context):
            yield _way(subject, replace(wish, cache=cache, context=longest), backend)
    yield _with_experts_in_file(subject, wish, backend)
    for cache in (wish.cache, _CACHES[-1]):
        ways = (_way(_in_mix(subject, mix), replace(wish, cache=cache), backend, weights=mix)
                for mix in _smaller_mixes(subject, backend))
        yield next((way for way in ways if way), None)


def _way(subject: ModelHeader, wish: MemoryRequest, backend: Planner, *, weights: str | None = None,
         image_size: int | None = None, parallel: int | None = None) -> Suggestion | None:
    plan = plans.make(subject, wish, backend)
    return Suggestion(plan.total_bytes, plan.context, plan.cache, weights, image_size, parallel) if plan.fits else None


def _with_smaller_images(subject: ModelHeader, wish: MemoryRequest,
                         backend: Planner) -> Iterator[Suggestion | None]:
    """The largest images that fit, alone or with the smallest cache, and else with the longest context beside them."""
    if subject.vision is None:
        return
    least = min(_LEAST_CONTEXT, subject.config.max_context)
    sizes = [size for size in _IMAGE_SIZES if size < (wish.image_size or subject.vision[0].image_size)]
    for cache in (wish.cache, _CACHES[-1]):
        smaller = [replace(wish, cache=cache, image_size=size) for size in sizes]
        ways = (_way(subject, one, backend, image_size=one.image_size) for one in smaller)
        yield (found := next((way for way in ways if way), None))
        if found is None:
            lengths = ((one, plans.make(subject, one, backend).largest_context) for one in smaller)
            yield next((_way(subject, replace(one, context=longest), backend, image_size=one.image_size)
                        for one, longest in lengths if longest >= least), None)


def _with_experts_in_file(subject: ModelHeader, wish: MemoryRequest, backend: Planner) -> Suggestion | None:
    """All the room that is left for experts, if a whole one of the largest layer has a place in it."""
    if subject.config.experts is None or wish.expert_bytes is not None or wish.limit is None:
        return None
    sizes = [backend.nbytes(backend.shape_only("experts", stack)) // len(stack.matrices)
             for stack in routed(subject.weights)]
    spare = wish.limit - plans.make(subject, replace(wish, expert_bytes=0), backend).total_bytes
    experts = spare // 10**6 * 10**6
    if experts < max((sum(sizes[first:first + 3]) for first in range(0, len(sizes), 3)), default=0):
        return None
    plan = plans.make(subject, replace(wish, expert_bytes=experts), backend)
    return Suggestion(plan.total_bytes, plan.context, plan.cache, experts=experts) if plan.fits else None


def _smaller(cache: CacheFormat) -> tuple[CacheFormat, ...]:
    return _CACHES[_CACHES.index(cache) + 1:] if cache in _CACHES else ()


def _smaller_mixes(subject: ModelHeader, backend: Planner) -> Iterator[str]:
    """Mixes in which the model takes less than as it is."""
    def weights_bytes(one: ModelHeader) -> int:
        return plans.make(one, MemoryRequest(), backend).weights_bytes

    now = weights_bytes(subject)
    yield from (mix for mix in _MIXES if weights_bytes(_in_mix(subject, mix)) < now)


def _in_mix(subject: ModelHeader, mix: str) -> ModelHeader:
    """The same model as `brise quantize` would write it: formats only, there is no data."""
    is_tied = subject.weights.output is subject.weights.tok_embeddings
    num_layers = subject.config.num_layers

    def format_of(name: str, weight: Weight, shape: tuple[int, ...]) -> str:
        return recipe.choose(mix, gguf_name(name, weight), shape, "F16", num_layers, tied=is_tied)

    def put(name: str, weight: Weight) -> Weight:
        if len(weight.shape) == 1:
            return weight
        if isinstance(weight, Stack):
            return Stack(tuple(_typed(format_of(name, weight, matrix.shape), matrix.shape)
                               for matrix in weight.matrices))
        return _typed(format_of(name, weight, weight.shape), weight.shape)

    return replace(subject, weights=place(subject.weights, put))


def _typed(format: str, shape: tuple[int, ...]) -> Dense | Quant | Stored:
    return Stored(format, shape, _no_rows)


def _no_rows(first: int, last: int) -> None:
    raise AssertionError("a plan reads no weights")
