"""A model ready to run: configuration, weights placed in a backend, tokenizer and chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brise.checkpoint.gguf import GgufFile, open_gguf
from brise.checkpoint.gguf_model import read_config, read_weights
from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.weights import Dense, Quant, Weight, Weights, place
from brise.ops.contract import Backend
from brise.text.chat import ChatTemplate
from brise.text.tokenizer import Tokenizer

Pooling = Literal["mean", "cls", "last"]

# llama.cpp's numbers of `ARCHITECTURE.pooling_type`; 0 is none, and 4 (rank) gives scores, not embeddings.
_POOLINGS: tuple[Pooling | None, ...] = (None, "mean", "cls", "last")
# Bytes of a file that are read before their pages are let go.
_READ_AHEAD = 32 << 20


@dataclass(frozen=True)
class LoadedModel:
    """What an engine runs. `digest` is the SHA-256 of the file, where the store knows it."""

    config: Config
    backend: Backend
    weights: Weights
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    pooling: Pooling | None
    name: str
    path: Path
    digest: str | None = None


def load(path: Path | str, *, backend: Literal["native", "reference"] = "native", threads: int | None = None,
         name: str | None = None, digest: str | None = None) -> LoadedModel:
    """Opens a GGUF file and places its weights; anything that the backend cannot run is refused here."""
    path = Path(path)
    gguf = open_gguf(path)
    config = read_config(gguf)
    tokenizer = Tokenizer.from_gguf(gguf.metadata)
    pooling = _pooling(gguf.metadata)
    target = _backend(backend, threads)
    weights = _place(gguf, read_weights(gguf, config), target)
    return LoadedModel(config, target, weights, tokenizer, ChatTemplate.from_gguf(gguf.metadata, tokenizer),
                       pooling, name or _name(gguf.metadata, path), path, digest)


def _place(gguf: GgufFile, weights: Weights, target: Backend) -> Weights:
    """Places one weight after the other, and lets go of the file's pages behind it: the model is in memory once."""
    num_read = 0

    def put(name: str, weight: Weight) -> Weight:
        nonlocal num_read
        placed = target.place(name, weight)
        num_read += weight.data.nbytes if isinstance(weight, Dense | Quant) else 0
        if num_read >= _READ_AHEAD:
            for tensor in gguf.tensors:
                gguf.forget(tensor)
            num_read = 0
        return placed

    return place(weights, put)


def _backend(name: Literal["native", "reference"], threads: int | None) -> Backend:
    # Each is imported only if chosen: the native one needs its compiled library, the other is for tests.
    if name == "native":
        from brise.ops.native import NativeBackend  # noqa: PLC0415

        return NativeBackend(threads or _num_cores())
    from brise.ops.reference import ReferenceBackend  # noqa: PLC0415

    return ReferenceBackend()


def _num_cores() -> int:
    """Physical cores that this process may run on: two threads on one core only wait for each other."""
    cpus = os.sched_getaffinity(0)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    if not all(path.is_file() for path in siblings):
        return len(cpus)
    return len({path.read_text() for path in siblings})


def _pooling(metadata: Mapping[str, object]) -> Pooling | None:
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if not isinstance(kind, int) or not 0 <= kind < len(_POOLINGS):
        raise UnsupportedError(f"pooling_type is {kind!r}; 0 (none), 1 (mean), 2 (cls), 3 (last) are known")
    return _POOLINGS[kind]


def _name(metadata: Mapping[str, object], path: Path) -> str:
    name = metadata.get("general.name")
    return name if isinstance(name, str) and name else path.stem
