"""The native ops one at a time on NumPy arrays, for images, audio, tests and tracing: each records and runs a program.

Nothing is copied: arguments are read in place, and a result is the program's own memory, which outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from brise import _native
from brise.backends.native.lora import on_slots
from brise.backends.native.recorder import Recorder, Value
from brise.backends.pages import packed_pages
from brise.backends.rows import mean_patches, merged_patches, windows_of_rows
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.ops import Cache
from brise.models.rope import Layout
from brise.models.weights import Array, Layer, Lora, Weight

AnyRecorder = Recorder["_native.Recording"]


class EagerOps:
    """The ops of the native backend, or of a GPU, on placed weights. `trace` collects `named` values."""

    is_recorded = False

    def __init__(self, backend: _native.Backend | _native.VulkanDevice, trace: dict[str, Array] | None = None,
                 tables: _native.Backend | None = None) -> None:
        """`tables` makes tables of rotations, which a GPU does not; None: `backend` does."""
        self.backend, self.trace, self._tables = backend, trace, tables
        self._device = None if isinstance(backend, _native.Backend) else backend

    def _run(self, arrays: Sequence[Array], record: Callable[[AnyRecorder, list[Value]], Sequence[Value]],
             batch: Batch | None = None, cache: Cache | None = None, adapters: Array | None = None) -> list[Array]:
        """Runs one op on arrays (T, ...); results are (T, width)."""
        recorder: AnyRecorder = Recorder(self.backend.program())
        inputs = []
        for x in arrays:
            flat = np.ascontiguousarray(x, np.float32).reshape(len(x), int(np.prod(x.shape[1:])))
            inputs.append((Value(recorder.program.input(flat.shape[1]), x.shape[1] if x.ndim == 3 else 1), flat))
        recorder.finish(record(recorder, [value for value, _ in inputs]))
        for value, flat in inputs:
            recorder.program.set_input(value.id, flat)
        batch = replace(batch or _plain(len(arrays[0])), adapters=adapters)
        recorder.step(batch, cache)
        return [recorder.program.read(value.id, len(batch.tokens)) for value in recorder.outputs]

    def embed(self, table: Weight, tokens: Array) -> Array:
        if not isinstance(table, Lora):
            return self._run([], lambda ops, _: [ops.embed(table, None)], _plain(len(tokens), tokens=tokens))[0]
        (target,), adapters = on_slots([table], embeds=True, device=self._device)
        own = np.zeros(len(tokens), np.int32) if adapters is None else np.array(adapters, np.int32)
        return self._run([], lambda ops, _: [ops.embed(target, None)], _plain(len(tokens), tokens=tokens),
                         adapters=own)[0]

    def take_rows(self, x: Array, rows: Array) -> Array:
        return np.asarray(x)[rows]

    def put_rows(self, x: Array, features: Array | None, rows: Array | None) -> Array:
        batch = replace(_plain(len(x)), features=features, feature_rows=rows)
        return self._run([x], lambda ops, v: [ops.put_rows(v[0], None, None)], batch)[0]

    def linear(self, x: Array, w: Weight) -> Array:
        return self.linears(x, (w,))[0]

    def linears(self, x: Array, weights: Sequence[Weight]) -> tuple[Array, ...]:
        if not any(isinstance(w, Lora) for w in weights):
            return tuple(self._run([x], lambda ops, v: ops.linears(v[0], weights)))
        targets, tokens = on_slots(weights, device=self._device)
        own = np.zeros(len(x), np.int32) if tokens is None else np.array(tokens, np.int32)
        return tuple(self._run([x], lambda ops, v: ops.linears(v[0], targets), adapters=own))

    def bias(self, x: Array, b: Weight) -> Array:
        return self._run([x], lambda ops, v: [ops.bias(v[0], b)])[0]

    def add(self, x: Array, y: Array) -> Array:
        return self._run([x, y], lambda ops, v: [ops.add(v[0], v[1])])[0].reshape(x.shape)

    def scale(self, x: Array, factor: float) -> Array:
        return self._run([x], lambda ops, v: [ops.scale(v[0], factor)])[0].reshape(x.shape)

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        return self._run([x], lambda ops, v: [ops.rms_norm(v[0], w, eps)])[0].reshape(x.shape)

    def layer_norm(self, x: Array, w: Weight, b: Weight, eps: float) -> Array:
        return self._run([x], lambda ops, v: [ops.layer_norm(v[0], w, b, eps)])[0]

    def heads(self, x: Array, num_heads: int) -> Array:
        return x.reshape(len(x), num_heads, x.shape[1] // num_heads)

    def flat(self, x: Array) -> Array:
        return x.reshape(len(x), x.shape[1] * x.shape[2])

    def columns(self, x: Array, first: int, last: int) -> Array:
        if (first, last) == (0, x.shape[2]):
            return x
        return self._run([x], lambda ops, v: [ops.columns(v[0], first, last)])[0].reshape(*x.shape[:2], last - first)

    def concat(self, x: Array, y: Array) -> Array:
        out = self._run([x, y], lambda ops, v: [ops.concat(v[0], v[1])])[0]
        return out.reshape(*x.shape[:2], x.shape[2] + y.shape[2])

    def heads_linear(self, x: Array, w: Weight) -> Array:
        return self._run([x], lambda ops, v: [ops.heads_linear(v[0], w)])[0].reshape(*x.shape[:2], w.shape[1])

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Array:
        if self._tables is not None:
            return EagerOps(self._tables).rope_table(positions, inv_freq, attention_factor)
        return self._run([], lambda ops, _: [ops.rope_table(None, inv_freq, attention_factor)],
                         _plain(len(positions), positions=positions))[0]

    def rope_table_2d(self, rows: Array, columns: Array, inv_freq: Sequence[float]) -> Array:
        from brise.backends.reference.ops import ReferenceOps  # noqa: PLC0415 - only an encoder of images needs it

        return ReferenceOps().rope_table_2d(rows, columns, inv_freq)  # once per image: not worth a kernel

    def rope(self, x: Array, table: Array, layout: Layout) -> Array:
        return self._run([x, table], lambda ops, v: [ops.rope(v[0], v[1], layout)])[0].reshape(x.shape)

    def scale_queries(self, x: Array, positions: Array, beta: float, period: int) -> Array:
        return self._run([x], lambda ops, v: [ops.scale_queries(v[0], None, beta, period)],
                         _plain(len(x), positions=positions))[0].reshape(x.shape)

    def attend(self, q: Array, k: Array, v: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Array:
        if cache is None:
            return self._attend_packed(q, k, v, batch, scale, window)
        return self._run([q, k, v], lambda ops, x: [ops.attend(x[0], x[1], x[2], batch, cache, layer, scale, window)],
                         batch, cache)[0]

    def _attend_packed(self, q: Array, k: Array, v: Array, batch: Batch, scale: float, window: int | None) -> Array:
        """Runs one key/value head after the other, so that its keys are contiguous and thousands of them stay in L2."""
        batch, num_pages = packed_pages(batch)
        share = q.shape[1] // k.shape[1]
        out = np.empty_like(q)
        for head in range(k.shape[1]):
            cache = self._cache(1, num_pages, k.shape[2], 2)
            own, one = slice(head * share, (head + 1) * share), slice(head, head + 1)
            part = self.attend(q[:, own], k[:, one], v[:, one], batch, cache, 0, scale, window)
            out[:, own] = part.reshape(len(q), share, -1)
        return out.reshape(len(q), -1)

    def _cache(self, layers: int, num_pages: int, head_dim: int, sides: int) -> Cache:
        shape = (layers, num_pages, PAGE_SIZE, 1, head_dim, "f32", sides)
        return _native.Cache(*shape) if self._device is None else _native.VulkanCache(self._device, *shape)

    def attend_latent(self, q: Array, kv: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Array:
        if cache is None:
            batch, num_pages = packed_pages(batch)
            cache = self._cache(layer + 1, num_pages, kv.shape[2], 1)
        out = self._run([q, kv], lambda ops, x: [ops.attend_latent(x[0], x[1], batch, cache, layer, scale, rank)],
                        batch, cache)[0]
        return out.reshape(*q.shape[:2], rank)

    def gelu(self, x: Array) -> Array:
        return self._run([x], lambda ops, v: [ops.gelu(v[0])])[0].reshape(x.shape)

    def gelu_tanh(self, x: Array) -> Array:
        return self._run([x], lambda ops, v: [ops.gelu_tanh(v[0])])[0].reshape(x.shape)

    def route(self, logits: Array, per_token: int, scale: float) -> Array:
        return self._run([logits], lambda ops, v: [ops.route(v[0], per_token, scale)])[0]

    def experts(self, x: Array, gates: Array, w1: Weight, w2: Weight, w3: Weight) -> Array:
        return self._run([x, gates], lambda ops, v: [ops.experts(v[0], v[1], w1, w2, w3)])[0]

    def silu_mul(self, gate: Array, up: Array) -> Array:
        return self._run([gate, up], lambda ops, v: [ops.silu_mul(v[0], v[1])])[0]

    def gelu_mul(self, gate: Array, up: Array) -> Array:
        return self._run([gate, up], lambda ops, v: [ops.gelu_mul(v[0], v[1])])[0]

    def slice_heads(self, x: Array, first: int, last: int) -> Array:
        return x[:, first:last]

    def join_heads(self, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts, axis=1)

    def slice_rows(self, x: Array, first: int, last: int) -> Array:
        return x[first:last]

    def join_rows(self, parts: Sequence[Array]) -> Array:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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
            self.trace[name] = np.array(x)
        return x


def _plain(count: int, tokens: Array | None = None, positions: Array | None = None) -> Batch:
    """A batch of `count` tokens, for an op that needs no more of it."""
    zeros = np.zeros(count, np.int32)
    return Batch(zeros if tokens is None else np.asarray(tokens, np.int32),
                 zeros if positions is None else np.asarray(positions, np.int32),
                 np.array([0, count], np.int32), np.zeros(0, np.int32))
