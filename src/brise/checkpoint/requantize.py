"""Quantises weights while they are loaded, one block of rows after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from brise.checkpoint.gguf.names import gguf_name
from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.weights import Array, Dense, Lora, Placed, Quant, Stack, Stored, Weight, Weights, place
from brise.quant.formats import FORMATS
from brise.quant.recipe import MIXES, choose, fitting
from brise.quant.rows import encode_rows, float_rows, format_of

T = TypeVar("T")

BLOCK_NUMBERS = 1 << 21  # numbers at a time: 8 MB as float32
READ_AHEAD = 8 << 20  # bytes that are read before the files' pages are dropped


def requantized(weights: Weights, config: Config, mix: str, forget: Callable[[], None], threads: int = 1) -> Weights:
    """Every plain matrix in the format that `brise quantize` would give it in `mix`; Q4_0, Q4_K_M and so on.

    Weights that are already blocks stay, and so do those that the mix leaves in a plain format: norms, biases,
    routers, rows that are no multiple of 32. `forget` lets the system drop the pages that were read.
    """
    if mix not in MIXES:
        raise UnsupportedError(f"weights in {mix!r} are asked for, allowed are {', '.join(MIXES)}")
    reader = _Reader(mix, forget, threads)
    is_tied = weights.output is weights.tok_embeddings

    def put(path: str, weight: Weight) -> Weight:
        if isinstance(weight, Placed | Lora) or len(weight.shape) == 1:
            return weight
        name, source = gguf_name(path, weight), format_of(weight)
        format = choose(mix, name, weight.shape, source, config.num_layers, tied=is_tied,
                        queries_per_kv=config.num_heads // config.num_kv_heads)
        if isinstance(weight, Stack):
            return Stack(tuple(reader.stored(f"{name} {index}", matrix, format)
                               for index, matrix in enumerate(weight.matrices)))
        return reader.stored(name, weight, format)

    return place(weights, put)


def requantized_encoder(weights: T, mix: str, forget: Callable[[], None], threads: int = 1) -> T:
    """An encoder of images or audio: plain matrices become Q8_0 whatever the mix of blocks, because its errors add up.
    Positions, which are added, stay."""
    if mix not in MIXES or FORMATS[MIXES[mix]].is_plain:
        return weights
    reader = _Reader("Q8_0", forget, threads)

    def put(path: str, weight: Weight) -> Weight:
        if isinstance(weight, Placed | Stack | Lora) or len(weight.shape) == 1 or path == "positions":
            return weight
        return reader.stored(path, weight, fitting("Q8_0", weight.shape[-1]))

    return place(weights, put)


class _Reader:
    """Makes quantised weights, and lets the system drop the files' pages that it has read."""

    def __init__(self, mix: str, forget: Callable[[], None], threads: int) -> None:
        self._keeps_plain = not FORMATS[MIXES[mix]].is_plain
        self._forget, self._threads, self._num_read = forget, threads, 0

    def stored(self, name: str, weight: Dense | Quant | Stored, format: str) -> Dense | Quant | Stored:
        if not FORMATS[weight.format].is_plain or format == weight.format:
            return weight
        if self._keeps_plain and FORMATS[format].is_plain:
            return weight
        return Stored(format, weight.shape, lambda first, last: self._rows(name, weight, format, first, last))

    def _rows(self, name: str, weight: Dense | Quant | Stored, format: str, first: int, last: int) -> Array:
        step = max(BLOCK_NUMBERS // weight.shape[-1], 1)
        parts = []
        for start in range(first, last, step):
            rows = float_rows(weight, start, min(start + step, last))
            parts.append(encode_rows(name, format, rows, threads=self._threads))
            self._num_read += rows.nbytes // 2
            if self._num_read >= READ_AHEAD:
                self._forget()
                self._num_read = 0
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
