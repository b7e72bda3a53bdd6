"""`brise.load`: a model by its name in the store or by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from brise import settings
from brise.api.model import Model
from brise.api.options import check
from brise.api.words import python_words
from brise.backends import check_device
from brise.engine.drafts import DraftSource
from brise.engine.engine import EngineSettings
from brise.errors import RequestError
from brise.files.sizes import TwoLimits, parse_memory, parse_size
from brise.hub.locate import find_model
from brise.memory import process
from brise.memory.opening import MAX_ADAPTERS, MAX_RANK, EngineOptions, Speculate, adapter_room, open_thread
from brise.models.ops import CacheFormat
from brise.quant.recipe import MIXES

T = TypeVar("T")
Size = str | int
Word = TypeVar("Word", bound=str)
CACHES: Sequence[CacheFormat] = ("f16", "q8", "q4")
SPECULATE: Sequence[Speculate] = ("auto", "off")
# Calls that may wait: one program asks, and it holds the prompts anyway.
QUEUE = 1 << 20
USUAL = EngineSettings()


class LoadOptions(TypedDict, total=False):
    """How a model is loaded. None stands for the default; sizes are bytes, or text such as "4GB" and "3.5GiB".

    Attributes:
        context: Tokens of a prompt and its answer. Default: what the model allows; under `memory` what fits.
        parallel: Answers that are written at one time; more calls than that wait. Default: 64.
        cache: Number format of keys and values: "f16", "q8" (half of the memory) or "q4" (a third). Default: "f16".
        weights: Quantise weights in plain formats or FP8 while loading: "Q8_0", "Q4_K_M", ...
        experts: Keep so much of a mixture's experts in memory, and read the others from the file when needed.
        image_size: Longest side of an image in pixels; larger ones are made smaller.
        adapters: Folders by the names that calls give as `adapter=`; `Model.add_adapter` adds more.
        any_base: Take adapters although their lineage names another model. Default: False.
        max_adapters: Adapters in memory at one time. Default: 8.
        adapter_rank: Their largest rank. Default: 64.
        adapter_memory: Their memory. Default: not bounded; under `memory` what those in `adapters` need.
        threads: Threads of the kernels. Default: BRISE_THREADS, or one a core.
        speculate: "auto" drafts the next tokens and checks several in one step, where that is faster; answers stay the
            same. "off" computes one token a step. Default: "auto".
    """

    context: int | None
    parallel: int | None
    cache: CacheFormat | None
    weights: str | None
    experts: Size | None
    image_size: int | None
    adapters: Mapping[str, str | Path] | None
    any_base: bool | None
    max_adapters: int | None
    adapter_rank: int | None
    adapter_memory: Size | None
    threads: int | None
    speculate: Speculate | None


def load(model: str | Path, *, memory: Size | None = None, device: str = "cpu",
         **options: Unpack[LoadOptions]) -> Model:
    """Loads a model that lies on this machine; nothing is downloaded. Close it, or use it in a `with` block.

    Args:
        model: A name that `brise models` lists, the path of a .gguf file or of a folder, or hf:OWNER/REPO if that
            was pulled.
        memory: What this process may take, all of it, such as "4GB" (4 * 10^9 bytes). It is planned before a weight
            is read, and checked after it. On a GPU with memory of its own it bounds that memory. "vram=4GB,ram=8GB"
            bounds the GPU's memory and the host's: a model that does not fit into the first is split.
        device: Where the model runs: "cpu", "vulkan" (the best GPU), "vulkan:N" (by its number, or a part of its
            name), or "auto" (a GPU that holds the model, else the CPU). `Model.device` says which it is.
        **options: See `LoadOptions`.

    Raises:
        StoreError: The model is not on this machine; the hint is the line that pulls it.
        CheckpointError: A file is damaged.
        UnsupportedError: This version does not run the model, or an option of it.
        MemoryLimitError: It does not fit; the hint says what would.
        DeviceError: There is no such GPU, it lacks something, or too little of its memory is free.
        RequestError: An argument is wrong.
    """
    check(options, LoadOptions)
    check_device(device)
    defaults = settings.read()
    with python_words():
        worker = open_thread(find_model(model, defaults), replace(
            _engine_options(options, _memory(memory), defaults.threads), device=device))
    worker.start()
    return Model(worker, str(model), is_limited=memory is not None)


def _engine_options(options: LoadOptions, memory: int | TwoLimits | None, threads: int | None) -> EngineOptions:
    """All of them read and checked; `threads` is the default."""
    folders = {name: Path(path).expanduser() for name, path in (options.get("adapters") or {}).items()}
    context, image_size = options.get("context"), options.get("image_size")
    room = adapter_room(
        tuple(folders.values()), memory=memory, adapter_memory=size(options.get("adapter_memory"), "adapter_memory"),
        slots=whole(_or(options.get("max_adapters"), MAX_ADAPTERS), "max_adapters", 0, 1000),
        rank=whole(_or(options.get("adapter_rank"), MAX_RANK), "adapter_rank", 1, 1 << 16))
    weights, given_threads = options.get("weights"), options.get("threads")
    return EngineOptions(
        memory=memory, context=None if context is None else whole(context, "context", 1, 1 << 31),
        parallel=whole(_or(options.get("parallel"), USUAL.max_sequences), "parallel", 1, 4096), queue=QUEUE,
        cache=_one_of(options.get("cache") or USUAL.cache_format, "cache", CACHES),
        weights=None if weights is None else _one_of(weights, "weights", tuple(MIXES)),
        experts=size(options.get("experts"), "experts"),
        image_size=None if image_size is None else whole(image_size, "image_size", 1, 1 << 16),
        threads=threads if given_threads is None else whole(given_threads, "threads", 1, settings.MAX_THREADS),
        adapters=tuple(folders.items()), any_base=options.get("any_base") or False, adapter_room=room,
        speculate=_one_of(options.get("speculate") or "auto", "speculate", SPECULATE),
        open_sealed=_open_sealed,
        other_bytes=max(process.resident_bytes() - process.LIBRARIES_BYTES, 0))


def _open_sealed(path: Path, tokenizer: str) -> DraftSource:
    """A sealed table of drafts beside an adapter, opened with the keys of the usual store."""
    from brise.traffic.ngrams import TableOpener  # noqa: PLC0415 - only a sealed table needs it

    return TableOpener(None, settings.read().home)(path, tokenizer)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _memory(value: Size | None) -> int | TwoLimits | None:
    """A limit, or one for a GPU and one for the host."""
    if isinstance(value, str):
        try:
            return parse_memory(value)
        except ValueError as error:
            raise RequestError(f"memory is {error}", param="memory") from None
    return size(value, "memory")


def size(value: Size | None, name: str) -> int | None:
    """Bytes of a size as users give it, or a RequestError that names it."""
    if isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError as error:
            raise RequestError(f"{name} is {error}", param=name) from None
    return None if value is None else whole(value, name, 1, 1 << 60)


def whole(value: int, name: str, least: int, most: int) -> int:
    """A whole number within limits, or a RequestError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{name} is {value!r}, allowed is a whole number from {least} to {most}", param=name)
    return value


def _one_of(value: Word, name: str, allowed: Sequence[str]) -> Word:
    if value not in allowed:
        raise RequestError(f"{name} is {value!r}, allowed is {', '.join(map(repr, allowed))}", param=name)
    return value
