"""The ops that are not linears as dispatches of shaders (native/vulkan/shaders/README.md), for rows of the case table.

A Shaders is whatever runs one: the software device at three widths (lavapipe.py), or a device of brise itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from brise.backends.native.backend import NativeBackend
from brise.backends.pages import packed_pages
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.config import Config
from brise.models.ops import Cache, CacheFormat
from brise.models.rope import Layout
from brise.models.weights import Array, Placed, Weight

CHUNK = 512  # keys
UNTOUCHED = np.float32(-12345.0)
PER_PIECE = {"f32": 4, "f16": 8, "q8": 16, "q4": 32}  # numbers of 16 bytes


class Shaders(Protocol):
    def dispatch(self, shader: str, buffers: Sequence[Array], push: bytes, groups: tuple[int, int, int],
                 constants: Sequence[int] = ()) -> list[Array]:
        """The buffers after one run of the shader."""


@dataclass
class DeviceCache:
    """Sides of layers as native/vulkan/cache_layout.h has them, in words."""

    num_pages: int
    page_size: int
    kv_heads: int
    head_dim: int
    format: CacheFormat
    sides: dict[tuple[int, int], Array] = field(default_factory=dict)  # (layer, side)

    @property
    def row_words(self) -> int:
        return 4 * -(-self.head_dim // PER_PIECE[self.format])

    @property
    def scales_at(self) -> int:
        return -(-self.num_pages * self.page_size * self.kv_heads * self.row_words // 8) * 8

    @property
    def nbytes(self) -> int:
        rows = self.num_pages * self.page_size * self.kv_heads
        scales = {"q8": rows, "q4": rows * -(-self.head_dim // 32)}.get(self.format, 0)
        return 4 * -(-(self.scales_at + scales) // 8) * 8

    def side(self, layer: int, side: int) -> Array:
        return self.sides.setdefault((layer, side), np.zeros(self.nbytes // 4, np.uint32))


@dataclass(frozen=True)
class DeviceBackend:
    """Places weights as the native backend does: tiles lie on the device byte for byte."""

    def place(self, name: str, weight: Weight) -> Weight:
        return NativeBackend().place(name, weight)

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> DeviceCache:
        return DeviceCache(num_pages, page_size, config.cache_heads, config.cache_dim, format)


@dataclass(frozen=True)
class Cut:
    """How a shader of attention shares the work: attend_cut() of native/vulkan/cache_layout.h, or another one."""

    rows: int
    tokens: int
    parts: int


def attend_cut(share: int, head_dim: int, is_decode: bool) -> Cut:
    limit = min((32768 - 2560) // 4 // (head_dim + 32 + 544), 8)
    parts = -(-share // limit)
    part = -(-share // parts)
    tokens = 1 if is_decode or parts > 1 else limit // part
    return Cut(tokens * part, tokens, parts)


@dataclass(frozen=True)
class DeviceOps:
    """One dispatch for each op. `is_decode`: attention by chunks of keys that are merged after; else as in prefill."""

    shaders: Shaders
    is_decode: bool = False
    cut: Cut | None = None

    def _run(self, shader: str, inputs: Sequence[Array], shape: tuple[int, ...], push: bytes, groups_x: int) -> Array:
        """The result of a shader whose last buffer is the result, of a row for each y."""
        out = np.full(shape, UNTOUCHED, np.float32)
        if not out.size:
            return out
        return self.shaders.dispatch(shader, [*inputs, out], push, (groups_x, shape[0], 1))[-1]

    def embed(self, table: Weight, tokens: Array) -> Array:
        assert isinstance(table, Placed)
        format, rows, cols = table.handle.shape
        push = struct.pack("5i", 0, 0, rows, cols, 0)
        return self._run(f"embed_{format.lower()}", [table.handle.bytes(), tokens], (len(tokens), cols), push,
                         -(-cols // 2048))

    def take_rows(self, x: Array, rows: Array) -> Array:
        return self._run("take_rows", [x, rows], (len(rows), x.shape[1]), struct.pack("2i", 0, x.shape[1]), _groups(x))

    def put_rows(self, x: Array, features: Array | None, rows: Array | None) -> Array:
        if features is None or rows is None:
            return x
        push = struct.pack("3i", 0, 0, x.shape[1])
        return self._run("put_rows", [x, rows, features], x.shape, push, _groups(x))

    def bias(self, x: Array, b: Weight) -> Array:
        return self._run("bias", [x, _vector(b)], x.shape, struct.pack("i", x.shape[1]), _groups(x))

    def add(self, x: Array, y: Array) -> Array:
        return self._run("add", [x, y], x.shape, struct.pack("i", x.shape[1]), _groups(x))

    def scale(self, x: Array, factor: float) -> Array:
        return self._run("scale", [x], x.shape, struct.pack("if", x.shape[1], factor), _groups(x))

    def scale_queries(self, x: Array, positions: Array, beta: float, period: int) -> Array:
        factors = (1.0 + beta * np.log1p((positions // period).astype(np.float64))).astype(np.float32)
        width = x.shape[1] * x.shape[2]
        return self._run("scale_queries", [x, factors], x.shape, struct.pack("2i", width, 0), -(-width // 256))

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        heads = x.shape[1] if x.ndim == 3 else 1
        return self._run("rms_norm", [x, _vector(w)], x.shape, struct.pack("2if", x.shape[-1], heads, eps), heads)

    def layer_norm(self, x: Array, w: Weight, b: Weight, eps: float) -> Array:
        return self._run("layer_norm", [x, _vector(w), _vector(b)], x.shape, struct.pack("if", x.shape[1], eps), 1)

    def rope(self, x: Array, table: Array, layout: Layout) -> Array:
        _, heads, head_dim = x.shape
        dim = table.shape[1]
        push = struct.pack("5i", heads, head_dim, dim, 0, layout == "interleaved")
        return self._run("rope", [x, table], x.shape, push, -(-heads * (head_dim - dim // 2) // 256))

    def silu_mul(self, gate: Array, up: Array) -> Array:
        return self._run("silu_mul", [gate, up], gate.shape, struct.pack("i", gate.shape[1]), _groups(gate))

    def gelu_mul(self, gate: Array, up: Array) -> Array:
        return self._run("gelu_mul", [gate, up], gate.shape, struct.pack("i", gate.shape[1]), _groups(gate))

    def gelu(self, x: Array) -> Array:
        return self._run("gelu", [x], x.shape, struct.pack("i", x.shape[1]), _groups(x))

    def gelu_tanh(self, x: Array) -> Array:
        return self._run("gelu_tanh", [x], x.shape, struct.pack("i", x.shape[1]), _groups(x))

    def columns(self, x: Array, first: int, last: int) -> Array:
        shape = (*x.shape[:2], last - first)
        push = struct.pack("4i", x.shape[1], x.shape[2], first, last)
        return self._run("columns", [x], shape, push, -(-shape[1] * shape[2] // 256))

    def concat(self, x: Array, y: Array) -> Array:
        shape = (*x.shape[:2], x.shape[2] + y.shape[2])
        push = struct.pack("3i", x.shape[1], x.shape[2], y.shape[2])
        return self._run("concat", [x, y], shape, push, -(-shape[1] * shape[2] // 256))

    def merge_patches(self, x: Array, grids: Sequence[tuple[int, int]], merge: int) -> Array:
        return self._squares("merge_patches", x, grids, merge, x.shape[1] * merge**2)

    def mean_patches(self, x: Array, grids: Sequence[tuple[int, int]], size: int) -> Array:
        return self._squares("mean_patches", x, grids, size, x.shape[1])

    def _squares(self, shader: str, x: Array, grids: Sequence[tuple[int, int]], size: int, width: int) -> Array:
        """A dispatch for each image."""
        out = np.full((len(x) // size**2, width), UNTOUCHED, np.float32)
        patch = 0
        for rows, columns in grids:
            push = struct.pack("5i", x.shape[1], columns, size, patch, patch // size**2)
            groups = (-(-width // 256), rows * columns // size**2, 1)
            out = self.shaders.dispatch(shader, [x, out], push, groups)[1]
            patch += rows * columns
        return out

    def windows(self, x: Array, size: int, stride: int) -> Array:
        shape = (-(-len(x) // stride), x.shape[1] * size)
        return self._run("windows", [x], shape, struct.pack("4i", *x.shape, size, stride), -(-shape[1] // 256))

    def route(self, logits: Array, per_token: int, scale: float) -> Array:
        push = struct.pack("2if", logits.shape[1], per_token, scale)
        return self._run("route", [logits], logits.shape, push, 1)

    def attend(self, q: Array, k: Array, v: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Array:
        if cache is None:
            batch, num_pages = packed_pages(batch)
            cache = DeviceCache(num_pages, PAGE_SIZE, k.shape[1], k.shape[2], "f32")
        assert isinstance(cache, DeviceCache)
        self.write(cache, layer, 0, k, batch)
        self.write(cache, layer, 1, v, batch)
        return self._attend(q, batch, cache, (layer, 1), scale, window, q.shape[2])

    def attend_latent(self, q: Array, kv: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Array:
        if cache is None:
            batch, num_pages = packed_pages(batch)
            cache = DeviceCache(num_pages, PAGE_SIZE, 1, kv.shape[2], "f32")
        assert isinstance(cache, DeviceCache)
        self.write(cache, layer, 0, kv, batch)
        return self._attend(q, batch, cache, (layer, 0), scale, None, rank).reshape(*q.shape[:2], rank)

    def write(self, cache: DeviceCache, layer: int, side: int, x: Array, batch: Batch) -> None:
        """Writes one side of the batch's tokens."""
        assert batch.slots is not None
        push = struct.pack("5i", 0, cache.kv_heads, cache.head_dim, cache.page_size, cache.scales_at)
        groups = (cache.kv_heads, len(x), 1)
        buffers = [np.ascontiguousarray(x), batch.slots, cache.side(layer, side)]
        cache.sides[layer, side] = self.shaders.dispatch(f"write_cache_{cache.format}", buffers, push, groups)[2]

    def _attend(self, q: Array, batch: Batch, cache: DeviceCache, values: tuple[int, int], scale: float,
                window: int | None, value_dim: int) -> Array:
        num_tokens, heads, head_dim = q.shape
        cut = self.cut or attend_cut(heads // cache.kv_heads, head_dim, self.is_decode)
        units = _units(batch, cut.tokens)
        reach = batch.positions if batch.reach is None else batch.reach
        first = batch.positions * 0 if window is None else np.maximum(batch.positions - window + 1, 0)
        chunks = int((reach // CHUNK - first // CHUNK).max()) + 1
        assert batch.page_table is not None
        parts = [batch.positions, reach, batch.page_table.reshape(-1), units.reshape(-1)]
        at = np.cumsum([0, *(len(part) for part in parts)])
        reach_at = -1 if batch.reach is None else int(at[1])
        push = struct.pack("12if", 0, reach_at, int(at[2]), batch.page_table.shape[1], int(at[3]), heads,
                           cache.kv_heads, cache.page_size, window or 0, cache.scales_at, cache.scales_at, chunks,
                           scale)
        step = np.concatenate(parts).astype(np.int32)
        layer = values[0]
        inputs = [np.ascontiguousarray(q), step, cache.side(layer, 0), cache.side(*values)]
        out = np.full((num_tokens, heads * value_dim), UNTOUCHED, np.float32)
        constants, y = (cut.rows, head_dim, value_dim), cache.kv_heads * cut.parts
        if not self.is_decode:
            groups = (len(units), y, 1)
            return self.shaders.dispatch(f"attend_{cache.format}", [*inputs, out], push, groups, constants)[-1]
        partial = np.full(len(units) * heads * chunks * (value_dim + 2), UNTOUCHED, np.float32)
        partial = self.shaders.dispatch(f"attend_chunks_{cache.format}", [*inputs, partial], push,
                                        (chunks, y, len(units)), constants)[-1]
        push = struct.pack("7i", 0, reach_at, int(at[3]), heads, window or 0, chunks, value_dim)
        return self.shaders.dispatch("attend_merge", [partial, step, out], push, (heads, len(units), 1))[-1]

    def heads(self, x: Array, num_heads: int) -> Array:
        return x.reshape(len(x), num_heads, x.shape[1] // num_heads)

    def flat(self, x: Array) -> Array:
        return x.reshape(len(x), x.shape[1] * x.shape[2])


def _units(batch: Batch, tokens: int) -> Array:
    """(sequence, first token, end token, 0) of at most `tokens` tokens each."""
    units = [(sequence, first, min(first + tokens, end), 0)
             for sequence, (begin, end) in enumerate(zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True))
             for first in range(begin, end, tokens)]
    return np.array(units, np.int32).reshape(-1, 4)


def _groups(x: Array) -> int:
    return -(-x.shape[1] // 256)


def _vector(weight: Weight) -> Array:
    assert isinstance(weight, Placed)
    return np.asarray(weight.handle.bytes()).view(np.float32)
