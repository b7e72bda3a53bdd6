"""`brise.load`: a model by its name in the store or by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from brise import settings
from brise.api.model import Model
from brise.engine.engine_thread import EngineThread
from brise.errors import RequestError, UnsupportedError
from brise.hub.store import ModelStore, locate
from brise.memory import process
from brise.memory.opening import MAX_ADAPTERS, MAX_RANK, EngineOptions, adapter_room, open_engine
from brise.memory.sizes import parse_size
from brise.models.ops import CacheFormat
from brise.quant.recipe import MIXES

Size = str | int
Word = TypeVar("Word", bound=str)
CACHES: Sequence[CacheFormat] = ("f16", "q8", "q4")
# Calls that may wait: one program asks, and it holds the prompts anyway.
QUEUE = 1 << 20
NOT_BUILT = ("vulkan",)


def load(model: str | Path, *, memory: Size | None = None, device: Literal["cpu"] = "cpu", context: int | None = None,
         parallel: int = 64, cache: CacheFormat = "f16", weights: str | None = None, experts: Size | None = None,
         image_size: int | None = None, adapters: Mapping[str, str | Path] | None = None, any_base: bool = False,
         max_adapters: int = MAX_ADAPTERS, adapter_rank: int = MAX_RANK, adapter_memory: Size | None = None,
         threads: int | None = None) -> Model:
    """Loads a model that lies on this machine; nothing is downloaded. Close it, or use it in a `with` block.

    `model` is a name that `brise models` lists, the path of a .gguf file or of a folder, or hf:OWNER/REPO if that was
    pulled. Sizes are bytes, or text such as "4GB" (4 * 10^9) and "3.5GiB".

    memory: what this process may take, all of it: planned before loading, checked after it.
    context: tokens of a prompt and its answer (default: what the model allows; under `memory` what fits).
    parallel: answers that are written at one time; more calls than that wait.
    cache: number format of keys and values, "f16", "q8" (half of the memory) or "q4" (a third).
    weights: quantise weights in plain formats or FP8 while loading: "Q8_0", "Q4_K_M", ...
    experts: keep so much of a mixture's experts in memory, and read the others from the file when they are needed.
    image_size: longest side of an image in pixels; larger ones are made smaller.
    adapters: folders by the names that calls give as `adapter=`; `add_adapter` adds more.
    any_base: take adapters although their lineage names another model.
    max_adapters, adapter_rank, adapter_memory: adapters in memory at one time, their largest rank, and their bytes
    (default: not bounded; under `memory` what those in `adapters` need).
    threads: of the kernels (default: BRISE_THREADS, or one a core).

    Raises StoreError for a model that is not here (with the line that pulls it), CheckpointError for a damaged file,
    UnsupportedError for what this version does not run, MemoryLimitError with what would fit.
    """
    _check_device(device)
    found = settings.read()
    limit = _size(memory, "memory")
    folders = {name: Path(path).expanduser() for name, path in (adapters or {}).items()}
    room = adapter_room(tuple(folders.values()), memory=limit, adapter_memory=_size(adapter_memory, "adapter_memory"),
                        slots=whole(max_adapters, "max_adapters", 0, 1000),
                        rank=whole(adapter_rank, "adapter_rank", 1, 1 << 16))
    options = EngineOptions(
        memory=limit, context=None if context is None else whole(context, "context", 1, 1 << 31),
        parallel=whole(parallel, "parallel", 1, 4096), queue=QUEUE,
        cache=_one_of(cache, "cache", CACHES),
        weights=None if weights is None else _one_of(weights, "weights", tuple(MIXES)),
        experts=_size(experts, "experts"),
        image_size=None if image_size is None else whole(image_size, "image_size", 1, 1 << 16),
        threads=found.threads if threads is None else whole(threads, "threads", 1, settings.MAX_THREADS),
        adapters=tuple(folders.items()), any_base=any_base, adapter_room=room,
        other_bytes=max(process.resident_bytes() - process.LIBRARIES_BYTES, 0))
    worker = EngineThread(open_engine(locate(str(model), ModelStore(found.home)), options))
    worker.start()
    return Model(worker, is_limited=limit is not None)


def _check_device(device: str) -> None:
    if device in NOT_BUILT:
        raise UnsupportedError(f"device is {device!r}, which is not built into this version of brise; allowed is 'cpu'")
    if device != "cpu":
        raise UnsupportedError(f"device is {device!r}; allowed is 'cpu'")


def _size(value: Size | None, name: str) -> int | None:
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
