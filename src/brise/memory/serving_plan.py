"""What a model will take in memory, from the formats and shapes of its weights, before a byte of them is read.

    peak = base + adapters + weights + the larger of
             loading:  what is in memory besides while a weight is read and packed
             running:  cache + work space + vision's work space + answers
docs/memory.md describes each of them, and how a process keeps the promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from brise.engine import vision
from brise.engine.experts import routed
from brise.errors import MemoryLimitError, UnsupportedError
from brise.memory import process
from brise.memory.process import Vocabulary
from brise.models.batch import PAGE_SIZE
from brise.models.config import Config
from brise.models.ops import CacheFormat, Planner
from brise.models.pixtral import VisionConfig, VisionWeights
from brise.models.weights import Dense, Mixture, Quant, Stack, Stored, Weight, Weights, place

DEFAULT_CONTEXT = 8192
STEP_TOKENS = 512
NUM_FEATURES = 2  # encoded images that an engine under a promise keeps: the one that it reads, and one before it
STEP_ROWS = 64  # of logits in one step, or as many as there are answers at one time: what the scheduler keeps to
# Read before the file's pages are let go, and the unit in which large matrices are read.
READ_AHEAD = 32 << 20
# Copies of a row of logits that sampling makes: masked, penalised, likelihoods, sorted.
_SAMPLER_COPIES = 8
# Ids, hashes, text and events of every token in the cache; and bodies and queued requests, which `brise serve` bounds.
_TOKEN_BYTES, REQUESTS_BYTES, _QUESTION_BYTES = 256, 40_000_000, 4_000_000

PARTS = ("embedding", "attention", "feed-forward", "experts", "head", "vision", "projector")
_PROJECTOR = ("norm", "merging_layer", "w_in", "w_out", "break_row")


@dataclass(frozen=True)
class ModelHeader:
    """What a header says of a model."""

    name: str
    config: Config
    weights: Weights
    vocabulary: Vocabulary
    vision: tuple[VisionConfig, VisionWeights] | None = None
    makes_embeddings: bool = False


@dataclass(frozen=True)
class MemoryRequest:
    """What is asked for; None: as much as fits, or as the model's file has it."""

    limit: int | None = None
    context: int | None = None
    parallel: int = 1
    cache: CacheFormat = "f16"
    image_size: int | None = None
    adapters_bytes: int = 0  # of memory for adapters, in so many slots and of ranks up to that
    adapter_slots: int = 0
    adapter_rank: int = 0
    answers: int = 1  # at one time, in whatever cache there is
    usual_context: int | None = None  # where none is asked for, no more than this
    serves: bool = True  # over HTTP, with grammars; a chat needs neither
    expert_bytes: int | None = None  # of a mixture's experts that are kept, while the others stay in the file
    other_bytes: int = 0  # that the process takes for other things than this model


@dataclass(frozen=True)
class Part:
    """Weights of one kind, as they lie in memory."""

    name: str
    formats: tuple[str, ...]
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class ServingPlan:
    """The bytes of everything. `limit` is the promise, None if there is none."""

    model: str
    parts: tuple[Part, ...]
    is_tied: bool
    max_context: int
    context: int
    parallel: int
    cache: CacheFormat
    page_bytes: int
    work_bytes: int
    vision_bytes: int
    requests_bytes: int
    base_bytes: int
    to_come_bytes: int  # of the base: what is not there yet when the model has been loaded
    loading_bytes: int
    adapters_bytes: int
    image_size: int | None
    feature_bytes: int
    limit: int | None
    pages: int | None = None  # None: as many as the contexts need
    experts_bytes: int = 0  # experts that are kept, and what is read at a time of those in the file

    @property
    def weights_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def num_pages(self) -> int:
        return self.parallel * -(-self.context // PAGE_SIZE) if self.pages is None else self.pages

    @property
    def cache_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def answers_bytes(self) -> int:
        """Requests, and the tokens of answers, of which there are as many as the cache holds."""
        return self.requests_bytes + _TOKEN_BYTES * PAGE_SIZE * self.num_pages

    @property
    def fixed_bytes(self) -> int:
        """All that is there whatever the cache."""
        return self.base_bytes + self.adapters_bytes + self.weights_bytes

    @property
    def running_bytes(self) -> int:
        return self.cache_bytes + self.work_bytes + self.vision_bytes + self.answers_bytes + self.experts_bytes

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return self.fixed_bytes + max(self.loading_bytes, self.running_bytes)

    @property
    def fits(self) -> bool:
        return self.limit is None or self.total_bytes <= self.limit

    @property
    def pages_within(self) -> int:
        """How many pages the cache may have under the promise, whatever was asked for."""
        if self.limit is None or self.fixed_bytes + self.loading_bytes > self.limit:
            return self.num_pages if self.limit is None else 0
        rest = self.limit - self.fixed_bytes - self.work_bytes - self.vision_bytes - self.requests_bytes
        rest -= self.experts_bytes
        return max(rest, 0) // (self.page_bytes + _TOKEN_BYTES * PAGE_SIZE)

    def filled(self, num_contexts: int) -> ServingPlan:
        """The plan with all the cache that the promise leaves room for, up to so many contexts."""
        return replace(self, pages=min(self.pages_within, num_contexts * -(-self.context // PAGE_SIZE)))

    @property
    def largest_context(self) -> int:
        """The longest context of `parallel` answers at one time under the promise; 0 if there is none."""
        if self.limit is None:
            return self.max_context
        return min(self.pages_within // self.parallel * PAGE_SIZE, self.max_context)


def make(subject: ModelHeader, wish: MemoryRequest, backend: Planner) -> ServingPlan:
    """The plan of one wish; UnsupportedError if the model has no such context or image."""
    config = subject.config
    _check(subject, wish)
    weights, parts, loading_bytes = _weigh(subject, backend, keeps_experts=wish.expert_bytes is None)
    rows = max(STEP_ROWS, wish.parallel, wish.answers) if wish.serves else 1
    page_bytes = backend.cache_bytes(config, 1, PAGE_SIZE, wish.cache)
    plan = ServingPlan(
        model=subject.name, parts=parts, is_tied=subject.weights.output is subject.weights.tok_embeddings,
        max_context=config.max_context, context=PAGE_SIZE, parallel=wish.parallel, cache=wish.cache,
        page_bytes=page_bytes, work_bytes=_work_bytes(subject, weights, rows, wish, backend),
        vision_bytes=0 if subject.vision is None else vision_bytes(subject.vision[0], wish),
        requests_bytes=_SAMPLER_COPIES * 4 * config.vocab_size + (
            REQUESTS_BYTES if wish.serves else _QUESTION_BYTES),
        base_bytes=process.base_bytes(subject.vocabulary, serves=wish.serves) + wish.other_bytes,
        to_come_bytes=process.SLACK_BYTES // 2 + (subject.vocabulary.grammar_bytes if wish.serves else 0),
        loading_bytes=loading_bytes, adapters_bytes=wish.adapters_bytes,
        image_size=None if subject.vision is None else wish.image_size or subject.vision[0].image_size,
        feature_bytes=0 if subject.vision is None else NUM_FEATURES * feature_bytes(subject.vision[0], wish.image_size),
        limit=wish.limit, experts_bytes=_experts_bytes(subject, wish.expert_bytes))
    usual = min(DEFAULT_CONTEXT, config.max_context)
    if wish.limit is not None and plan.largest_context:
        usual = min(plan.largest_context, wish.usual_context or plan.largest_context)
    return replace(plan, context=wish.context or usual)


def check(plan: ServingPlan, ways: Callable[[], str]) -> None:
    """MemoryPromiseError with the numbers, and what would fit, if the plan breaks its promise."""
    if not plan.fits:
        assert plan.limit is not None
        raise MemoryLimitError(plan.total_bytes, plan.limit, numbers(plan), hint=ways())


def numbers(plan: ServingPlan) -> str:
    """One line with what is in the sum."""
    shown = {"weights": plan.weights_bytes, f"cache of {plan.num_pages * PAGE_SIZE} tokens": plan.cache_bytes,
             "experts": plan.experts_bytes, "work space": plan.work_bytes, "vision's work space": plan.vision_bytes,
             "answers": plan.answers_bytes, "adapters": plan.adapters_bytes, "process": plan.base_bytes}
    if plan.loading_bytes > plan.running_bytes:
        shown = {"weights": plan.weights_bytes, "loading": plan.loading_bytes, "process": plan.base_bytes}
    return ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, nbytes in shown.items() if nbytes)


def vision_bytes(config: VisionConfig, wish: MemoryRequest) -> int:
    """Work space of one square image of the largest size, and the encoded images that are kept."""
    return (vision.planned_bytes(config, wish.image_size, serves=wish.serves)
            + (1 + NUM_FEATURES) * feature_bytes(config, wish.image_size))


def feature_bytes(config: VisionConfig, image_size: int | None) -> int:
    """What becomes of such an image for the text model."""
    return 4 * (_side(config, image_size) // config.cell_size) ** 2 * config.text_width


def _side(config: VisionConfig, image_size: int | None) -> int:
    return -(-(image_size or config.image_size) // config.cell_size) * config.cell_size


def _check(subject: ModelHeader, wish: MemoryRequest) -> None:
    longest = subject.config.max_context
    if wish.context is not None and not 1 <= wish.context <= longest:
        raise UnsupportedError(f"a context of {wish.context} tokens is asked for; {subject.name} allows 1 to {longest}")
    if wish.image_size is None:
        return
    if subject.vision is None:
        raise UnsupportedError(f"an image size is asked for, and {subject.name} has no vision")
    cell, largest = subject.vision[0].cell_size, subject.vision[0].image_size
    if not cell <= wish.image_size <= largest:
        raise UnsupportedError(f"an image size of {wish.image_size} pixels is asked for; {subject.name} allows "
                               f"{cell} to {largest}")


def _experts_bytes(subject: ModelHeader, expert_bytes: int | None) -> int:
    """What experts take that are read when a token needs one: those that are kept, and pages of the file."""
    if expert_bytes is None:
        return 0
    largest = max((_read_bytes(weight.matrices[0]) for weight in routed(subject.weights)), default=0)
    if not largest:
        raise UnsupportedError(f"{expert_bytes} bytes are asked for experts, and {subject.name} has none")
    return expert_bytes + READ_AHEAD + largest


def _weigh(subject: ModelHeader, backend: Planner, *,
           keeps_experts: bool) -> tuple[Weights, tuple[Part, ...], int]:
    """Shape-only weights, their sizes by part, and how much more than these is in memory while they are loaded."""
    found: dict[str, list[tuple[Weight, int]]] = {part: [] for part in PARTS}
    placed = unread = peak = 0
    in_file = set() if keeps_experts else {id(stack) for stack in routed(subject.weights)}

    def put(prefix: str) -> Callable[[str, Weight], Weight]:
        def one(name: str, weight: Weight) -> Weight:
            nonlocal placed, unread, peak
            shaped = backend.shape_only(prefix + name, weight)
            nbytes = 0 if id(weight) in in_file else backend.nbytes(shaped)
            found[_part(prefix + name, subject.weights)].append((weight, nbytes))
            placed, unread = placed + nbytes, unread + (_read_bytes(weight) if nbytes else 0)
            peak = max(peak, placed + unread)
            unread = 0 if unread >= READ_AHEAD else unread
            return shaped
        return one

    if subject.vision is not None:  # as `load` does it: first
        place(subject.vision[1], put("vision."))
        unread = 0
    weights = place(subject.weights, put(""))
    loading = max(peak, subject.vocabulary.building_bytes) - placed  # the tokenizer is built before
    return weights, tuple(_sum(name, items) for name, items in found.items() if items), max(loading, 0)


def _read_bytes(weight: Weight) -> int:
    """Pages of a file that are in memory for it: all of it, or a block of rows of what is converted on the way."""
    match weight:
        case Dense() | Quant():
            return int(weight.data.nbytes)
        case Stack():
            return sum(map(_read_bytes, weight.matrices))
    return READ_AHEAD


def _part(name: str, weights: Weights) -> str:
    """Which part a weight belongs to, by its path."""
    match name.split("."):
        case ["vision", field, *_]:
            return "projector" if field in _PROJECTOR else "vision"
        case ["layers", index, "feed_forward", *_] if isinstance(weights.layers[int(index)].feed_forward, Mixture):
            return "experts"
        case ["layers", _, kind, *_]:
            return "attention" if kind.startswith("attention") else "feed-forward"
        case ["tok_embeddings"]:
            return "embedding"
    return "head"


def _sum(name: str, items: list[tuple[Weight, int]]) -> Part:
    formats: Mapping[str, None] = {format: None for weight, _ in items for format in _formats(weight)}
    return Part(name, tuple(formats), sum(prod(weight.shape) for weight, _ in items),
                sum(nbytes for _, nbytes in items))


def _formats(weight: Weight) -> Iterator[str]:
    """Formats of matrices; the vectors between them are small, and always F32 in memory."""
    match weight:
        case Stack():
            yield from dict.fromkeys(matrix.format for matrix in weight.matrices)
        case Dense() | Quant() | Stored() if len(weight.shape) > 1:
            yield weight.format


def _work_bytes(subject: ModelHeader, weights: Weights, rows: int, wish: MemoryRequest, backend: Planner) -> int:
    """Buffers of the program, twice the logits (the engine reads a copy), and the rows of images in a batch."""
    config = subject.config
    table = backend.adapters(config, weights, wish.adapter_slots, wish.adapter_rank) if wish.adapter_slots else None
    runner = backend.runner(config, weights, STEP_TOKENS, table)
    work = runner.planned_bytes(STEP_TOKENS, rows) + 4 * rows * config.vocab_size
    if subject.makes_embeddings:  # a program of its own, whose outputs are hidden states
        work += runner.planned_bytes(STEP_TOKENS, 1) + 8 * STEP_TOKENS * config.width
    return work + (4 * STEP_TOKENS * config.width if subject.vision else 0)
