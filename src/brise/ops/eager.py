"""The native ops one at a time on numpy arrays, for tests and tracing: a program of one op, recorded and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from brise.models.batch import Batch
from brise.models.rope import Layout
from brise.models.weights import Array, Weight
from brise.ops import _native
from brise.ops.contract import Cache
from brise.ops.native import PAGE_SIZE, NativeBackend, Recorder, Value, packed_pages


class EagerOps:
    """The Ops contract over a NativeBackend; weights must have been placed. `trace` collects `named` values."""

    def __init__(self, backend: NativeBackend, trace: dict[str, Array] | None = None) -> None:
        self.backend, self.trace = backend, trace

    def _run(self, arrays: Sequence[Array], record: Callable[[Recorder, list[Value]], Sequence[Value]],
             batch: Batch | None = None, cache: Cache | None = None) -> list[Array]:
        """Runs one op on arrays (T, ...); results are (T, width)."""
        recorder = Recorder(self.backend)
        inputs = []
        for x in arrays:
            flat = np.ascontiguousarray(x, np.float32).reshape(len(x), int(np.prod(x.shape[1:])))
            inputs.append((Value(recorder.program.input(flat.shape[1]), x.shape[1] if x.ndim == 3 else 1), flat))
        recorder.finish(record(recorder, [value for value, _ in inputs]))
        for value, flat in inputs:
            recorder.program.set_input(value.id, flat)
        rows = len(arrays[0]) if arrays else len(batch.tokens) if batch else 0
        return recorder.run(batch or _plain(rows), cache, rows)

    def embed(self, table: Weight, tokens: Array) -> Array:
        return self._run([], lambda ops, _: [ops.embed(table, None)], _plain(len(tokens), tokens=tokens))[0]

    def take_rows(self, x: Array, rows: Array) -> Array:
        return np.asarray(x)[rows]

    def put_rows(self, x: Array, features: Array | None, rows: Array | None) -> Array:
        if features is None or rows is None:
            return x
        return np.where((rows >= 0)[:, None], features[np.maximum(rows, 0)], x)

    def linear(self, x: Array, w: Weight) -> Array:
        return self.linears(x, (w,))[0]

    def linears(self, x: Array, weights: Sequence[Weight]) -> tuple[Array, ...]:
        return tuple(self._run([x], lambda ops, v: ops.linears(v[0], weights)))

    def bias(self, x: Array, b: Weight) -> Array:
        return self._run([x], lambda ops, v: [ops.bias(v[0], b)])[0]

    def add(self, x: Array, y: Array) -> Array:
        return self._run([x, y], lambda ops, v: [ops.add(v[0], v[1])])[0].reshape(x.shape)

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        return self._run([x], lambda ops, v: [ops.rms_norm(v[0], w, eps)])[0].reshape(x.shape)

    def heads(self, x: Array, num_heads: int) -> Array:
        return x.reshape(len(x), num_heads, x.shape[1] // num_heads)

    def rope_table(self, positions: Array, turns: Sequence[float], magnitude: float) -> Array:
        return self._run([], lambda ops, _: [ops.rope_table(None, turns, magnitude)],
                         _plain(len(positions), positions=positions))[0]

    def rope(self, x: Array, table: Array, layout: Layout) -> Array:
        return self._run([x, table], lambda ops, v: [ops.rope(v[0], v[1], layout)])[0].reshape(x.shape)

    def scale_queries(self, x: Array, positions: Array, beta: float, period: int) -> Array:
        return self._run([x], lambda ops, v: [ops.scale_queries(v[0], None, beta, period)],
                         _plain(len(x), positions=positions))[0].reshape(x.shape)

    def attend(self, q: Array, k: Array, v: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Array:
        if cache is None:
            batch, num_pages = packed_pages(batch)
            cache = _native.Cache(layer + 1, num_pages, PAGE_SIZE, k.shape[1], k.shape[2], "f32")
        return self._run([q, k, v], lambda ops, x: [ops.attend(x[0], x[1], x[2], batch, cache, layer, scale, window)],
                         batch, cache)[0]

    def silu_mul(self, gate: Array, up: Array) -> Array:
        return self._run([gate, up], lambda ops, v: [ops.silu_mul(v[0], v[1])])[0]

    def named(self, x: Array, name: str) -> Array:
        if self.trace is not None:
            self.trace[name] = np.array(x)
        return x


def _plain(count: int, tokens: Array | None = None, positions: Array | None = None) -> Batch:
    """A batch that only has as many tokens as an op needs."""
    zeros = np.zeros(count, np.int32)
    return Batch(zeros if tokens is None else np.asarray(tokens, np.int32),
                 zeros if positions is None else np.asarray(positions, np.int32),
                 np.array([0, count], np.int32), np.zeros(0, np.int32))
