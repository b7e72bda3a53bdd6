"""Writes safetensors files, one tensor after the other in pieces, in shards of at most 5 GB with an index.

Layout: u64 length of the header; JSON {name: {"dtype", "shape", "data_offsets": [first, last]}}, padded with spaces to
a multiple of 8; the tensors one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from brise.checkpoint.gguf.write_file import Outgoing
from brise.models.weights import Array

SHARD_BYTES = 5 * 10**9  # what Hugging Face's own tools write


class WritableTensor(Protocol):
    """A tensor to write: an Outgoing, or one like it in a format that only safetensors has."""

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def pieces(self) -> Callable[[], Iterator[Array]]: ...


def write_safetensors(folder: Path, tensors: Sequence[Outgoing], wrote: Callable[[int], None] | None = None) -> int:
    """model.safetensors, or model-00001-of-0000N.safetensors with their index; returns the bytes of all tensors."""
    shards = _shards(tensors)
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, wrote)
    total = sum(tensor.nbytes for tensor in tensors)
    if len(shards) > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_index(folder / "model.safetensors.index.json", places, total)
    return total


def _shards(tensors: Sequence[Outgoing]) -> list[list[Outgoing]]:
    shards: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_file(path: Path, tensors: Sequence[WritableTensor], wrote: Callable[[int], None] | None = None) -> None:
    """One file of these tensors."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {"dtype": tensor.format, "shape": list(tensor.shape),
                                "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            for piece in tensor.pieces():
                data = np.ascontiguousarray(piece)
                file.write(data.data)
                if wrote is not None:
                    wrote(data.nbytes)


def _write_index(path: Path, places: Mapping[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(places)}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
