"""Every op in plain NumPy: the specification of the ops, and the backend that others are tested against.

Legend: T tokens, D width, H query heads, K key/value heads, E numbers a head, O outputs, R rows, C keys of a
sequence, V vocabulary. It is slow on purpose: nothing here is clever, so that it can be checked by reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from brise.backends.adapter_checks import check_table
from brise.backends.encoders import EagerEncoder
from brise.backends.host import available_bytes
from brise.backends.reference.cache import ReferenceCache
from brise.backends.reference.lora import ReferenceAdapterTable, own_rows
from brise.backends.rows import mean_patches, merged_patches, windows_of_rows
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import Cache, CacheFormat, Encode, Ops, Room
from brise.models.rope import Layout
from brise.models.weights import Array, Dense, Layer, Lora, Quant, Stack, Stored, Weight, Weights
from brise.quant.dequantize import dequantize
from brise.quant.formats import FORMATS, PLAIN


@dataclass(frozen=True)
class ReferenceBackend:
    """Runs a model on ReferenceOps. Weights become float32 when they are placed, so that steps need not decode them."""

    trace: dict[str, Array] | None = None  # filled by the runner's steps: name -> copy of the value

    @property
    def name(self) -> str:
        return "reference"

    def place(self, name: str, weight: Weight) -> Weight:
        """The weight as float32; a format that cannot be decoded is refused."""
        if isinstance(weight, Stack):
            placed = [self.place(f"{name}.{index}", matrix) for index, matrix in enumerate(weight.matrices)]
            return Stack(tuple(matrix for matrix in placed if isinstance(matrix, Dense)))
        if not isinstance(weight, Dense | Quant | Stored):
            raise UnsupportedError(f"{name} has been placed in another backend already")
        known = PLAIN if isinstance(weight, Dense) else tuple(FORMATS)  # FORMATS has the plain ones too
        if weight.format not in known:
            raise UnsupportedError(f"{name} has weight format {weight.format}; "
                                   f"the reference backend reads {', '.join(known)}")
        return Dense("F32", weight.shape, numbers(weight, np.float32))

    def facts(self) -> Mapping[str, str | int]:
        """Its name alone."""
        return {"backend": self.name}

    def ops(self, trace: dict[str, Array] | None = None) -> ReferenceOps:
        """The ops on arrays and placed weights."""
        return ReferenceOps(self.trace if trace is None else trace)

    def new_expert_store(self, num_bytes: int) -> NoReturn:
        """Refuses: this backend keeps all experts."""
        raise UnsupportedError(f"expert_bytes is for the native backend; the backend {self.name} keeps all experts")

    def place_experts(self, name: str, stack: Stack, store: object, on_read: Callable[[Weight], None]) -> Weight:
        """Places all experts at once."""
        return self.place(name, stack)

    def expert_bytes(self, stack: Weight) -> int:
        """Memory of one expert as float32."""
        return 4 * math.prod(stack.shape[1:])

    def encoder(self, encode: Encode, config: Any, weights: Any) -> EagerEncoder:
        """An encoder that runs op by op."""
        return EagerEncoder(self.ops(), encode, config, weights)

    def new_cache(self, config: Config, num_pages: int, page_size: int,
                  format: CacheFormat) -> ReferenceCache:
        """An empty cache for all layers of the model."""
        return ReferenceCache(config.num_layers, config.cache_heads, config.cache_dim,
                              num_pages, page_size, format, 2 if config.latent is None else 1)

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Room:
        """Memory that `new_cache` allocates."""
        return Room(self.new_cache(config, num_pages, page_size, format).nbytes)

    def available(self) -> Room:
        """The host's memory that programs can have without swapping."""
        return Room(available_bytes())

    def adapters(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> ReferenceAdapterTable:
        """A table of empty slots."""
        check_table(num_slots, max_rank)
        return ReferenceAdapterTable(config, weights, num_slots, max_rank)

    def runner(self, config: Config, weights: Weights, max_tokens: int,
               adapters: ReferenceAdapterTable | None = None) -> ReferenceRunner:
        """A runner of the model; `max_tokens` only checks steps, because NumPy allocates as it goes."""
        table = adapters or ReferenceAdapterTable(config, weights, 0, 0)
        return ReferenceRunner(ReferenceOps(self.trace), config, table, max_tokens)


@dataclass(frozen=True)
class ReferenceRunner:
    """Runs a model on the reference ops."""

    ops: Ops
    config: Config
    adapters: ReferenceAdapterTable  # it has the weights
    max_tokens: int

    def logits(self, batch: Batch, cache: Any) -> Array:
        assert len(batch.tokens) <= self.max_tokens, (len(batch.tokens), self.max_tokens)
        return decoder.forward(self.ops, self.config, self.adapters.weights_of(batch), batch, cache)

    def hidden(self, batch: Batch, cache: Any) -> Array:
        assert len(batch.tokens) <= self.max_tokens, (len(batch.tokens), self.max_tokens)
        return decoder.hidden(self.ops, self.config, self.adapters.weights_of(batch), batch, cache)

    def cancel(self) -> None:
        """A step of NumPy runs to its end."""


@dataclass(frozen=True)
class ReferenceOps:
    """The ops (models/ops.py). With `precision` float64, they give the values that tests compare backends with."""

    trace: dict[str, Array] | None = None
    precision: type[np.floating[Any]] = np.float32
    is_recorded = False

    def embed(self, table: Weight, tokens: Array) -> Array:
        if not isinstance(table, Lora):
            return numbers(table, self.precision, rows=tokens)
        rows = self.embed(table.base, tokens)
        for own, adapter in own_rows(table, len(tokens)):
            a, b = np.asarray(adapter.a, self.precision), np.asarray(adapter.b, self.precision)
            rows[own] += self.precision(adapter.scale) * (b[np.asarray(tokens)[own]] @ a)
        return rows

    def take_rows(self, x: Array, rows: Array) -> Array:
        return x[rows]

    def put_rows(self, x: Array, features: Array | None, rows: Array | None) -> Array:
        if features is None or rows is None:
            return x
        return np.where((rows >= 0)[:, None], features[np.maximum(rows, 0)].astype(self.precision), x)

    def linear(self, x: Array, w: Weight) -> Array:
        if isinstance(w, Lora):
            return self._adapted(x, w)
        return x @ numbers(w, self.precision).T

    def _adapted(self, x: Array, w: Lora) -> Array:
        """Applies its own adapter to each token."""
        y = self.linear(x, w.base)
        for own, adapter in own_rows(w, len(x)):
            a, b = np.asarray(adapter.a, self.precision), np.asarray(adapter.b, self.precision)
            y[own] += self.precision(adapter.scale) * (x[own] @ a.T @ b.T)
            if adapter.magnitude is not None:
                whole = numbers(w.base, self.precision) + self.precision(adapter.scale) * b @ a
                y[own] *= np.asarray(adapter.magnitude, self.precision) / np.linalg.norm(whole, axis=1)
        return y

    def linears(self, x: Array, weights: Sequence[Weight]) -> tuple[Array, ...]:
        return tuple(self.linear(x, w) for w in weights)

    def bias(self, x: Array, b: Weight) -> Array:
        return x + numbers(b, self.precision)

    def add(self, x: Array, y: Array) -> Array:
        assert x.shape == y.shape, (x.shape, y.shape)
        return x + y

    def scale(self, x: Array, factor: float) -> Array:
        return x * self.precision(np.float32(factor))

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.precision(eps)) * numbers(w, self.precision)

    def layer_norm(self, x: Array, w: Weight, b: Weight, eps: float) -> Array:
        centered = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centered * centered, axis=-1, keepdims=True)
        scaled = centered / np.sqrt(variance + self.precision(eps)) * numbers(w, self.precision)
        return scaled + numbers(b, self.precision)

    def heads(self, x: Array, num_heads: int) -> Array:
        return x.reshape(len(x), num_heads, x.shape[1] // num_heads)

    def flat(self, x: Array) -> Array:
        return x.reshape(len(x), x.shape[1] * x.shape[2])

    def columns(self, x: Array, first: int, last: int) -> Array:
        return x[..., first:last]

    def concat(self, x: Array, y: Array) -> Array:
        return np.concatenate([x, y], axis=-1)

    def heads_linear(self, x: Array, w: Weight) -> Array:
        return np.einsum("the,hoe->tho", x, np.stack([numbers(matrix, self.precision) for matrix in _stack(w)]))

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Array:
        # A float32 angle at position 100 000 is off by up to 0.004 radians: hence float64 up to here.
        angles = np.outer(positions.astype(np.float64), np.asarray(inv_freq, np.float64))
        return (np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * attention_factor).astype(self.precision)

    def rope_table_2d(self, rows: Array, columns: Array, inv_freq: Sequence[float]) -> Array:
        inv_freq_E = np.asarray(inv_freq, np.float64)
        angles = np.concatenate([np.outer(rows, inv_freq_E[::2]), np.outer(columns, inv_freq_E[1::2])], axis=1)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(self.precision)

    def rope(self, x: Array, table: Array, layout: Layout) -> Array:
        width = table.shape[1]
        half = width // 2
        cos, sin = table[:, None, :half], table[:, None, half:]
        match layout:
            case "interleaved":
                first, second = slice(0, width, 2), slice(1, width, 2)
            case "half":
                first, second = slice(0, half), slice(half, width)
        a, b = x[..., first], x[..., second]
        rotated = x.copy()  # numbers beyond the table's width are not rotated
        rotated[..., first] = a * cos - b * sin
        rotated[..., second] = a * sin + b * cos
        return rotated

    def scale_queries(self, x: Array, positions: Array, beta: float, period: int) -> Array:
        scales = 1.0 + beta * np.log1p((positions // period).astype(np.float64))
        return x * scales.astype(self.precision)[:, None, None]

    def attend(self, q: Array, k: Array, v: Array, batch: Batch, cache: Cache | None, layer: int,
               scale: float, window: int | None) -> Array:
        if cache is not None:
            assert isinstance(cache, ReferenceCache), "the cache belongs to another backend"
            cache.write(layer, batch.slots, k, v)
        out = np.empty((len(q), q.shape[1] * q.shape[2]), self.precision)
        for sequence in range(len(batch.query_starts) - 1):
            own = slice(batch.query_starts[sequence], batch.query_starts[sequence + 1])
            if own.start == own.stop:
                continue
            positions = batch.positions[own]
            reach = positions if batch.reach is None else batch.reach[own]
            if cache is None:
                places = _with_parent(batch, sequence)
                keys, values, key_positions = k[places], v[places], batch.positions[places]
            else:
                keys, values, key_positions = _cached_keys(batch, sequence, positions, int(reach.max()), cache, layer,
                                                           window)
            seen = key_positions[None, :] <= reach[:, None]
            if window is not None:
                seen &= key_positions[None, :] > positions[:, None] - window
            out[own] = self._attend_one(q[own], keys, values, seen, scale)
        return out

    def _attend_one(self, q_THE: Array, k_CKE: Array, v_CKE: Array, seen_TC: Array, scale: float) -> Array:
        """Attention of one sequence, head by head: softmax of scale * q k over the visible keys, times v."""
        num_heads, num_kv_heads = q_THE.shape[1], k_CKE.shape[1]
        heads = []
        for head in range(num_heads):
            kv_head = head // (num_heads // num_kv_heads)
            scores_TC = q_THE[:, head] @ k_CKE[:, kv_head].astype(self.precision).T * self.precision(scale)
            scores_TC = np.where(seen_TC, scores_TC, -np.inf)
            weights_TC = np.exp(scores_TC - scores_TC.max(axis=1, keepdims=True))
            weights_TC /= weights_TC.sum(axis=1, keepdims=True)
            heads.append(weights_TC @ v_CKE[:, kv_head].astype(self.precision))
        return np.concatenate(heads, axis=1)

    def attend_latent(self, q: Array, kv: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Array:
        if cache is None:
            out = self.attend(q, kv, kv, batch, None, layer, scale, None)
        else:
            assert isinstance(cache, ReferenceCache) and cache.num_sides == 1, "the cache holds no latents"
            out = self.attend(q, kv, kv, batch, cache, layer, scale, None)
        return out.reshape(q.shape)[..., :rank]

    def route(self, logits: Array, per_token: int, scale: float) -> Array:
        # Experts are picked by logits: distinct logits may have equal shares after rounding.
        best = np.argsort(-logits, axis=1, kind="stable")[:, :per_token]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        gates = np.zeros_like(shares)
        np.put_along_axis(gates, best, np.take_along_axis(shares, best, 1), 1)
        return gates / (gates.sum(axis=1, keepdims=True) + self.precision(1e-20)) * self.precision(scale)

    def experts(self, x: Array, gates: Array, w1: Weight, w2: Weight, w3: Weight) -> Array:
        out = np.zeros_like(x)
        for index, (gate, down, up) in enumerate(zip(_stack(w1), _stack(w2), _stack(w3), strict=True)):
            chosen = np.flatnonzero(gates[:, index])
            if not len(chosen):
                continue
            y = self.linear(self.silu_mul(*self.linears(x[chosen], (gate, up))), down)
            out[chosen] += gates[chosen, index, None] * y
        return out

    def gelu(self, x: Array) -> Array:
        return (x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))), [float])(x)).astype(self.precision)

    def gelu_tanh(self, x: Array) -> Array:
        with np.errstate(over="ignore"):  # the cube of a large number is inf, and its tanh 1, as it should be
            inner = self.precision(math.sqrt(2 / math.pi)) * (x + self.precision(0.044715) * (x * x * x))
        return self.precision(0.5) * x * (1 + np.tanh(inner))

    def gelu_mul(self, gate: Array, up: Array) -> Array:
        return self.gelu_tanh(gate) * up

    def silu_mul(self, gate: Array, up: Array) -> Array:
        with np.errstate(over="ignore"):  # exp of a large -gate is inf, and gate / inf is 0, as it should be
            return gate / (1 + np.exp(-gate)) * up

    def slice_heads(self, x: Array, first: int, last: int) -> Array:
        return x[:, first:last]

    def join_heads(self, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts, axis=1)

    def slice_rows(self, x: Array, first: int, last: int) -> Array:
        return x[first:last]

    def join_rows(self, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts)

    def merge_patches(self, x: Array, grids: Sequence[tuple[int, int]], merge: int) -> Array:
        return merged_patches(x, grids, merge)

    def mean_patches(self, x: Array, grids: Sequence[tuple[int, int]], size: int) -> Array:
        return mean_patches(x, grids, size)

    def stack_rows(self, x: Array, count: int) -> Array:
        return x.reshape(len(x) // count, count * x.shape[1])

    def windows(self, x: Array, size: int, stride: int) -> Array:
        return windows_of_rows(x, size, stride)

    def layer(self, body: Callable[[Array, Layer], Array], x: Array, layer: Layer) -> Array:
        return body(x, layer)

    def named(self, x: Array, name: str) -> Array:
        if self.trace is not None:
            self.trace[name] = x.copy()
        return x


def _with_parent(batch: Batch, sequence: int) -> Array:
    """Indices of the tokens of a sequence, preceded by those of its parent."""
    parent = -1 if batch.parents is None else int(batch.parents[sequence])
    return np.concatenate([np.arange(*batch.query_starts[index:index + 2])
                           for index in ([sequence] if parent < 0 else [parent, sequence])])


def _cached_keys(batch: Batch, sequence: int, positions: Array, last: int, cache: ReferenceCache, layer: int,
                 window: int | None) -> tuple[Array, Array, Array]:
    """Keys and values (C, K, E) that queries at `positions` of a sequence may see, up to position `last`, and the
    positions of the keys."""
    assert batch.page_table is not None, "a batch for a cache has a page table"
    # Pages entirely before the window may belong to other sequences by now: do not read them.
    first = 0 if window is None else max(0, int(positions.min()) - window + 1)
    key_positions = np.arange(first, last + 1)
    pages = batch.page_table[sequence, key_positions // cache.page_size]
    keys, values = cache.read(layer, pages * cache.page_size + key_positions % cache.page_size)
    return keys, values, key_positions


def _stack(weight: Weight) -> tuple[Weight, ...]:
    assert isinstance(weight, Stack), "an op on a stack of matrices got another weight"
    return weight.matrices


def numbers(weight: Weight, precision: type[np.floating[Any]], rows: Array | None = None) -> Array:
    """The weight, or some rows of it, decoded to plain numbers."""
    match weight:
        case Dense(format, _, data):
            return _plain_numbers(format, data if rows is None else data[rows]).astype(precision, copy=False)
        case Quant(format, shape, data):
            return dequantize(format, data if rows is None else data[rows], shape[1]).astype(precision, copy=False)
        case Stored(shape=shape):
            if rows is None:
                return numbers(_read(weight, 0, shape[0]), precision)
            return np.concatenate([numbers(_read(weight, int(row), int(row) + 1), precision) for row in rows])
        case _:
            raise UnsupportedError(f"a weight of shape {weight.shape} has been placed in another backend")


def _read(weight: Stored, first: int, last: int) -> Dense | Quant:
    """Rows first to last of a weight in a file."""
    data = weight.rows(first, last)
    if weight.format in PLAIN:
        return Dense(weight.format, (last - first, *weight.shape[1:]), data)
    return Quant(weight.format, (last - first, weight.shape[1]), data)


def _plain_numbers(format: str, data: Array) -> Array:
    if format == "BF16":  # the upper half of a float32, kept in uint16
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32, copy=False)
