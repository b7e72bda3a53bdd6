"""The memory plan of a served model, from the formats and shapes of its weights, before a byte of them is read.

    peak = process + adapters + weights + the larger of
             loading:  what is in memory besides the weights while one of them is read and packed
             running:  cache + work space + the encoders' work space + answers + experts
docs/guides/memory.md describes each term, and how a process keeps the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from sys import maxsize

from brise.engine import audio, lookup, vision
from brise.engine.experts import routed
from brise.errors import UnsupportedError
from brise.memory import process, rendering
from brise.memory.device_share import DeviceShare, MemorySplit
from brise.memory.model_header import ModelHeader
from brise.models.batch import PAGE_SIZE
from brise.models.ops import CacheFormat, Planner, Room
from brise.models.siglip import ImageConfig, ImageWeights
from brise.models.weights import Dense, Mixture, Quant, Stack, Stored, Weight, Weights, place
from brise.models.whisper import AudioConfig

DEFAULT_CONTEXT = 8192
STEP_TOKENS = 512
# Encoded images or chunks of audio that an engine with a memory limit keeps: the current one and the one before it.
NUM_FEATURES = 2
STEP_ROWS = 64  # of logits in one step, or one for each answer if there are more: the scheduler's own bound
# Bytes that are read before the file's pages are released, and what a matrix that is converted takes at a time.
READ_AHEAD, CONVERTED = 8 << 20, 32 << 20
# Copies of a row of logits that sampling makes: masked, with penalties, likelihoods, sorted.
_SAMPLER_COPIES = 8
# Ids, hashes, text and events of every token in the cache; bodies and queued requests, which `brise serve` bounds; and
# the one request of a chat.
_TOKEN_BYTES, REQUESTS_BYTES, _CHAT_REQUEST_BYTES = 256, 40_000_000, 4_000_000

PARTS = ("embedding", "attention", "feed-forward", "experts", "head", "vision", "audio", "projector")
_PROJECTOR = ("norm", "merging_layer", "w_in", "w_out", "break_row", "pool_norm", "projection")


@dataclass(frozen=True)
class MemoryRequest:
    """What a model shall run with. None means: as much as fits, or what the model's file says."""

    limit: int | None = None
    context: int | None = None
    parallel: int = 1
    cache: CacheFormat = "f16"
    image_size: int | None = None
    adapters_bytes: int = 0  # memory for adapters, in `adapter_slots` slots, of ranks up to `adapter_rank`
    adapter_slots: int = 0
    adapter_rank: int = 0
    answers: int = 1  # at one time, whatever the size of the cache
    usual_context: int | None = None  # the longest context that is planned unless one is given
    serves: bool = True  # over HTTP, with grammars; a chat needs neither
    expert_bytes: int | None = None  # of a mixture's experts that are kept, while the others stay in the file
    other_bytes: int = 0  # what the process takes for things other than this model
    max_draft: int = 0  # tokens that are drafted for an answer in a step; 0: none
    ram: int | None = None  # a limit of the host's memory, where `limit` is that of a card (memory/split_plan.py)


@dataclass(frozen=True)
class Part:
    """The weights of one kind, as they lie in memory."""

    name: str
    formats: tuple[str, ...]
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class ServingPlan:
    """The memory of a served model in bytes; `limit` is the memory limit, None without one.

    Of a model on a device all bytes are those that the limit bounds; `device` has the others.
    """

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
    process_bytes: int
    later_bytes: int  # of process_bytes: what is allocated only after the model has been loaded
    loading_bytes: int
    adapters_bytes: int
    image_size: int | None
    feature_bytes: int
    limit: int | None
    pages: int | None = None  # None: as many as the contexts need
    audio_bytes: int = 0  # work space of the audio encoder, and features
    short_context: int | None = None  # the longest with LongRoPE's short factors (Config.for_context)
    experts_bytes: int = 0  # experts that are kept, and what is read at a time of those that stay in the file
    token_bytes: int = _TOKEN_BYTES  # of requests, for each token in the cache
    device: DeviceShare | None = None  # None: all lies in the host's memory
    encodes_on_device: bool = False  # images

    @property
    def gpu_layers(self) -> int | None:
        """How many layers of a split model lie on the GPU; None: the model is not split."""
        return self.device.num_on_device if self.device is not None and self.device.is_split else None

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
        """Requests, and the tokens of their answers, which are at most as many as the cache holds."""
        return self.requests_bytes + self.token_bytes * PAGE_SIZE * self.num_pages

    @property
    def fixed_bytes(self) -> int:
        """Everything whose size does not depend on the cache."""
        return self.process_bytes + self.adapters_bytes + self.weights_bytes

    @property
    def running_bytes(self) -> int:
        return (self.cache_bytes + self.work_bytes + self.vision_bytes + self.audio_bytes + self.answers_bytes
                + self.experts_bytes)

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return self.fixed_bytes + max(self.loading_bytes, self.running_bytes)

    @property
    def fits(self) -> bool:
        on_host = 0 if self.device is None else self.device.lacks_on_host(self.num_pages)
        return (self.limit is None or self.total_bytes <= self.limit) and not self.lacking[0] and not on_host

    @property
    def lacking(self) -> tuple[int, int]:
        """Bytes that a device was promised to give and those that are free on it, where less is free; else zeros."""
        promised = self.total_bytes if self.limit is None else self.limit
        return (0, 0) if self.device is None else self.device.lacking(promised, self.num_pages)

    @property
    def pages_within(self) -> int:
        """How many pages the cache may have within the limit, whatever was requested."""
        if self.limit is None or self.fixed_bytes + self.loading_bytes > self.limit:
            return self.num_pages if self.limit is None else 0
        rest = self.limit - self.fixed_bytes - self.work_bytes - self.vision_bytes - self.requests_bytes
        rest -= self.experts_bytes + self.audio_bytes
        pages = max(rest, 0) // (self.page_bytes + self.token_bytes * PAGE_SIZE)
        return pages if self.device is None else self.device.pages_on_host(pages)

    def filled(self, num_contexts: int) -> ServingPlan:
        """The plan with all the cache that the limit leaves room for, up to `num_contexts` contexts."""
        return replace(self, pages=min(self.pages_within, num_contexts * -(-self.context // PAGE_SIZE)))

    @property
    def largest_context(self) -> int:
        """The longest context for each of `parallel` answers at one time within the limit; 0 if none fits."""
        if self.limit is None:
            return self.max_context
        return min(self.pages_within // self.parallel * PAGE_SIZE, self.max_context)


def make(header: ModelHeader, request: MemoryRequest, backend: Planner) -> ServingPlan:
    """The plan of a request, with the layers where the backend has them; UnsupportedError if the model has no such
    context or image size."""
    config, split = header.config, MemorySplit(backend)
    _check(header, request)
    weights, images, parts, loading = _weigh(header, split, backend, request.expert_bytes)
    rows = max(STEP_ROWS, request.parallel, request.answers) if request.serves else 1 + request.max_draft
    page = backend.cache_bytes(config, 1, PAGE_SIZE, request.cache)
    token_bytes = _TOKEN_BYTES + (lookup.TOKEN_BYTES if request.max_draft else 0)
    own_bytes = process.process_bytes(header.vocabulary, serves=request.serves) + request.other_bytes
    later_bytes = process.SLACK_BYTES // 2 + (header.vocabulary.grammar_bytes if request.serves else 0)
    requests_bytes = _SAMPLER_COPIES * 4 * config.vocab_size + (
        REQUESTS_BYTES if request.serves else _CHAT_REQUEST_BYTES)
    plan = ServingPlan(
        model=header.name, parts=parts, is_tied=header.weights.output is header.weights.tok_embeddings,
        max_context=config.max_context, context=PAGE_SIZE, parallel=request.parallel, cache=request.cache,
        page_bytes=split.bounded(page), work_bytes=_work_bytes(header, weights, rows, request, split, backend),
        vision_bytes=0 if header.vision is None or images is None else split.term(
            "images", vision_room(header.vision[0], images, request, backend)),
        encodes_on_device=header.vision is not None and backend.encodes_on_device,
        requests_bytes=split.term("requests", Room(requests_bytes)),
        process_bytes=split.term("process", Room(own_bytes)) + split.term("staging", backend.own_bytes()),
        later_bytes=split.bounded(Room(later_bytes)),
        loading_bytes=split.bounded(loading),
        adapters_bytes=split.term("adapters", backend.adapter_room(request.adapters_bytes)),
        image_size=None if header.vision is None else request.image_size or header.vision[0].image_size,
        feature_bytes=NUM_FEATURES * (
            (0 if header.vision is None else feature_bytes(header.vision[0], request.image_size))
            + (0 if header.audio is None else audio.feature_bytes(header.audio[0]))),
        audio_bytes=0 if header.audio is None else split.term("audio", Room(audio_bytes(header.audio[0], request))),
        limit=request.limit, short_context=config.short_context,
        experts_bytes=split.term("experts", Room(_experts_bytes(header, request.expert_bytes))),
        token_bytes=split.bounded(Room(token_bytes)))
    plan = replace(plan, device=split.share(config.num_layers, page, token_bytes * PAGE_SIZE, loading=loading.host,
                                            later=later_bytes, host_limit=request.ram))
    usual = min(DEFAULT_CONTEXT, config.max_context)
    if request.limit is not None and plan.largest_context:
        usual = min(plan.largest_context, request.usual_context or plan.largest_context)
    return replace(plan, context=request.context or usual)


def numbers(plan: ServingPlan) -> str:
    """What the plan's sum is made of, on one line."""
    parts = {"weights": plan.weights_bytes, f"cache of {plan.num_pages * PAGE_SIZE} tokens": plan.cache_bytes,
             "experts": plan.experts_bytes, "work space": plan.work_bytes, "vision's work space": plan.vision_bytes,
             "audio's work space": plan.audio_bytes,
             "answers": plan.answers_bytes, "adapters": plan.adapters_bytes, "process": plan.process_bytes}
    if plan.loading_bytes > plan.running_bytes:
        parts = {"weights": plan.weights_bytes, "loading": plan.loading_bytes, "process": plan.process_bytes}
    return rendering.numbers(parts.items())


def headline(plan: ServingPlan) -> str:
    """What it takes, and whether that fits."""
    total = rendering.size(plan.total_bytes)
    where = "" if plan.device is None else f" on {plan.device.label}"
    needed, free = plan.lacking
    lacks = "" if not needed else f"; {rendering.size(needed)} were promised and only {rendering.size(free)} are free"
    if plan.limit is None:
        return f"{plan.model}: {total}{where}{lacks}"
    limit, rest = rendering.size(plan.limit), rendering.size(abs(plan.limit - plan.total_bytes))
    if plan.device is not None and plan.device.host_limit is not None:
        host, ram = plan.device.host_bytes(plan.num_pages), plan.device.host_limit
        where = f"{where} and {rendering.size(host)} of {rendering.size(ram)} on the host"
        over = plan.device.lacks_on_host(plan.num_pages)
        lacks += f"; {rendering.size(over)} too much on the host" if over else ""
        rest = f"{rest} and {rendering.size(abs(ram - host))}"
    if plan.total_bytes > plan.limit:
        return (f"{plan.model}: {total}, does NOT fit into {limit}{where}: "
                f"{rendering.size(plan.total_bytes - plan.limit)} too much{lacks}")
    if lacks:
        return f"{plan.model}: {total} of {limit}{where}, does NOT fit{lacks}"
    return f"{plan.model}: {total} of {limit}{where}, fits with {rest} to spare"


def terms(plan: ServingPlan) -> list[tuple[str, str, str, int]]:
    """Letter, name, format and bytes of every term of the sum."""
    tied = {"embedding": " = head"} if plan.is_tied else {}
    rows = [(part.name[0].upper() if part.name != "experts" else "X", part.name + tied.get(part.name, ""),
             " ".join(part.formats), part.nbytes) for part in plan.parts if part.formats]
    running = [("C", "cache", f"{plan.cache}, {plan.num_pages * PAGE_SIZE} tokens", plan.cache_bytes),
               ("W", "work space", "", plan.work_bytes), ("I", "image work", "", plan.vision_bytes),
               ("S", "audio work", "", plan.audio_bytes),
               ("R", "requests", "", plan.answers_bytes), ("K", "experts kept", "", plan.experts_bytes)]
    if plan.loading_bytes > plan.running_bytes:
        running = [("L", "loading", "more than cache and work", plan.loading_bytes)]
    rows += [*running, ("T", "adapters", "", plan.adapters_bytes), ("B", "process", "", plan.process_bytes)]
    return [row for row in rows if row[3]]


def vision_room(config: ImageConfig, weights: ImageWeights, request: MemoryRequest, backend: Planner) -> Room:
    """Work space for one square image of the largest size, and the encoded images that are kept."""
    work = vision.planned_room(config, weights, backend, request.image_size, serves=request.serves)
    return work + Room((1 + NUM_FEATURES) * feature_bytes(config, request.image_size))


def audio_bytes(config: AudioConfig, request: MemoryRequest) -> int:
    """Work space for one chunk of audio, and the encoded chunks that are kept."""
    return (audio.planned_bytes(config, serves=request.serves)
            + (1 + NUM_FEATURES) * audio.feature_bytes(config))


def feature_bytes(config: ImageConfig, image_size: int | None) -> int:
    """The features of such an image, which the text model reads."""
    cells = -(-(image_size or config.image_size) // config.cell_size)
    return 4 * cells**2 * config.text_width


def _check(header: ModelHeader, request: MemoryRequest) -> None:
    longest = header.config.max_context
    if request.context is not None and not 1 <= request.context <= longest:
        raise UnsupportedError(f"a context of {request.context} tokens was requested; {header.name} allows 1 to "
                               f"{longest}")
    if request.image_size is None:
        return
    if header.vision is None:
        raise UnsupportedError(f"an image size was requested, and {header.name} has no vision")
    least, largest = header.vision[0].least_size, header.vision[0].image_size
    if not least <= request.image_size <= largest:
        raise UnsupportedError(f"an image size of {request.image_size} pixels was requested; {header.name} allows "
                               f"{least} to {largest}")


def _experts_bytes(header: ModelHeader, expert_bytes: int | None) -> int:
    """Memory of experts that are read on demand: those that are kept, and pages of the file."""
    if expert_bytes is None:
        return 0
    largest = max((_read_bytes(weight.matrices[0]) for weight in routed(header.weights)), default=0)
    if not largest:
        raise UnsupportedError(f"{expert_bytes} bytes were requested for experts, and {header.name} has none")
    return expert_bytes + READ_AHEAD + largest


def _weigh(header: ModelHeader, split: MemorySplit, backend: Planner,
           expert_bytes: int | None) -> tuple[Weights, ImageWeights | None, tuple[Part, ...], Room]:
    """Shape-only weights of decoder and vision, sizes of all by part, and what is in memory besides while they load."""
    by_part: dict[str, list[tuple[Weight, int]]] = {part: [] for part in PARTS}
    placed = unread = peak = 0
    in_file = set() if expert_bytes is None else {id(stack) for stack in routed(header.weights)}
    store = None if expert_bytes is None else backend.new_expert_store(maxsize)  # nothing is read into it

    def put(prefix: str) -> Callable[[str, Weight], Weight]:
        def one(name: str, weight: Weight) -> Weight:
            nonlocal placed, unread, peak
            if isinstance(weight, Stack) and id(weight) in in_file:
                shaped, room = backend.place_experts(name, weight, store, lambda matrix: None), Room()
            else:
                shaped = backend.shape_only(prefix + name, weight)
                room = backend.nbytes(shaped)
            by_part[_part(prefix + name, header.weights)].append((weight, split.term("weights", room)))
            placed, unread = placed + split.on_host(room), unread + (0 if room == Room() else _read_bytes(weight))
            peak = max(peak, placed + unread)
            unread = 0 if unread >= READ_AHEAD else unread
            return shaped
        return one

    images: ImageWeights | None = None
    if header.vision is not None:  # `load` places it first, too
        images = vision.place_encoder(header.vision[1], put("vision."))
        unread = 0
    if header.audio is not None:
        place(header.audio[1], put("audio."))
        unread = 0
    weights = place(header.weights, put(""))
    loading = max(peak, header.vocabulary.building_bytes) - placed  # the tokenizer is built before
    return weights, images, tuple(_sum(name, items) for name, items in by_part.items() if items), Room(max(loading, 0))


def _read_bytes(weight: Weight) -> int:
    """Pages of the file that are in memory for a weight: all of it, or a block of rows if it is converted."""
    match weight:
        case Dense() | Quant():
            return int(weight.data.nbytes)
        case Stack():
            return sum(map(_read_bytes, weight.matrices))
    return CONVERTED


def _part(name: str, weights: Weights) -> str:
    """Which part a weight belongs to, by its path."""
    match name.split("."):
        case ["vision", field, *_]:
            return "projector" if field in _PROJECTOR else "vision"
        case ["audio", field, *_]:
            return "projector" if field in ("w_in", "w_out") else "audio"
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
    """The formats of matrices; vectors are small, and always F32 in memory."""
    match weight:
        case Stack():
            yield from dict.fromkeys(matrix.format for matrix in weight.matrices)
        case Dense() | Quant() | Stored() if len(weight.shape) > 1:
            yield weight.format


def _work_bytes(header: ModelHeader, weights: Weights, rows: int, request: MemoryRequest, split: MemorySplit,
                backend: Planner) -> int:
    """Buffers of the program, the engine's copy of the logits, and the rows of images and audio in a batch."""
    config = header.config
    table = (backend.adapters(config, weights, request.adapter_slots, request.adapter_rank)
             if request.adapter_slots else None)
    runner = backend.runner(config, weights, STEP_TOKENS, table)
    work = split.term("work space", runner.planned_bytes(STEP_TOKENS, rows))
    work += split.term("logits", Room(4 * rows * config.vocab_size))
    if header.makes_embeddings:  # a program of its own, whose outputs are hidden states
        work += split.term("work space", runner.planned_bytes(STEP_TOKENS, 1) + Room(8 * STEP_TOKENS * config.width))
    features = 4 * STEP_TOKENS * config.width if header.vision or header.audio else 0
    return work + split.term("work space", Room(features))
