"""Writes any checkpoint as a GGUF file in another format, one block of rows after the other.

It takes the memory of one block of rows and of quantising it, whatever the size of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.gguf.write_file import FILE_TYPES, QUANTIZATION_VERSION, Outgoing, write_gguf
from brise.checkpoint.read_original import Named, Original
from brise.errors import UnsupportedError
from brise.quant.formats import FORMATS, PLAIN
from brise.quant.importance import Importance
from brise.quant.recipe import choose
from brise.quant.rows import encode_rows, float_rows, format_of, matrix_shape, raw_rows

# Numbers of a block of rows: 16 MB as float32, and about four times that while it is being quantised.
BLOCK_NUMBERS = 1 << 22
BLOCK_BYTES = 20 * BLOCK_NUMBERS  # of memory, all copies together: 15.4 a number measured (F16 to Q4_K), and room

# Keys of the source file that the new file has its own of, or none.
_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment", "split.", "quantize.imatrix.")


@dataclass(frozen=True)
class Written:
    """What was written: bytes of the file and of all tensors, and how many tensors have which format."""

    path: Path
    size: int
    num_weights: int
    tensor_bytes: int
    formats: Mapping[str, int]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / self.num_weights


def write_mix(original: Original, path: Path, mix: str, importance: Importance | None = None, *,
              requantize: bool = False, threads: int = 1, wrote: Callable[[int], None] | None = None) -> Written:
    """Writes the model as GGUF in one of recipe.MIXES. Blocks are quantised again only with `requantize`."""
    if not requantize:
        refuse_blocks(original, mix)
    tensors = [outgoing(tensor, format, original.forget, importance, threads)
               for tensor, format in _plan(original, mix)]
    size = write_gguf(path, _metadata(original, mix, importance), tensors, wrote)
    return Written(path, size, sum(_count(tensor.shape) for tensor in tensors),
                   sum(tensor.nbytes for tensor in tensors), dict(Counter(tensor.format for tensor in tensors)))


def refuse_blocks(original: Original, mix: str) -> None:
    """Raises UnsupportedError if a tensor is quantised already, in another format than this mix has for it."""
    for tensor, format in _plan(original, mix):
        before = format_of(tensor.weight)
        if before != format and not FORMATS[before].is_plain:
            raise UnsupportedError(
                f"the source is quantised already: {tensor.name} has the format {before}",
                hint="take the BF16, F16 or F32 original, or give --requantize, which loses more than it had to")


def planned_bytes(original: Original, mix: str) -> int:
    """Bytes of all tensors in this mix."""
    total = 0
    for tensor, format in _plan(original, mix):
        rows, cols = matrix_shape(tensor.weight.shape)
        total += rows * FORMATS[format].row_bytes(cols)
    return total


def outgoing(tensor: Named, format: str, forget: Callable[[], None], importance: Importance | None = None,
             threads: int = 1) -> Outgoing:
    """The tensor in `format`, made block by block when it is written."""
    weight, name = tensor.weight, tensor.name
    rows, cols = matrix_shape(weight.shape)
    height = weight.shape[1] if len(weight.shape) == 3 else rows  # of one matrix of a stack
    step = max(1, BLOCK_NUMBERS // cols)
    is_copy = format_of(weight) == format

    def pieces() -> Iterator[NDArray[np.generic]]:
        for start in range(0, rows, height):
            columns = None if importance is None or is_copy else importance.columns(
                name, start // height, weight.shape)
            for first in range(start, start + height, step):
                last = min(first + step, start + height)
                yield raw_rows(weight, first, last) if is_copy else encode_rows(
                    name, format, float_rows(weight, first, last), columns, threads)
                forget()

    return Outgoing(name, format, weight.shape, pieces)


def _plan(original: Original, mix: str) -> list[tuple[Named, str]]:
    """Each tensor and the format that it gets."""
    config = original.config
    queries_per_kv = config.num_heads // config.num_kv_heads
    return [(tensor, choose(mix, tensor.name, tensor.weight.shape, format_of(tensor.weight), config.num_layers,
                            tied=original.is_tied, queries_per_kv=queries_per_kv)) for tensor in original.tensors]


def _metadata(original: Original, mix: str, importance: Importance | None) -> dict[str, object]:
    kept = {key: value for key, value in original.metadata.items() if not key.startswith(_REPLACED)}
    new: dict[str, object] = {"general.file_type": FILE_TYPES[mix]}
    if mix not in PLAIN:
        new["general.quantization_version"] = QUANTIZATION_VERSION
    if importance is not None:
        new |= {"quantize.imatrix.dataset": importance.source,
                "quantize.imatrix.entries_count": len(importance.sums)}
    return kept | new


def _count(shape: tuple[int, ...]) -> int:
    rows, cols = matrix_shape(shape)
    return rows * cols
