"""Recording of a model whose first layers the CPU computes and whose last layers a GPU: a program for each of them.

A program ends at the first layer of the GPU, and the other goes on with an input: one row of each token crosses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brise import _native
from brise.backends.native.recorder import Recorder, Value, run_step
from brise.models.batch import Batch
from brise.models.ops import Cache
from brise.models.rope import Layout
from brise.models.weights import Array, Layer, LowRank, Placed, Weight
from brise.quant.rows import take_rows


@dataclass(frozen=True)
class SplitCache:
    """A cache whose first layers lie in the host's memory and whose last layers on the device, under one page table."""

    host: _native.Cache
    device: _native.VulkanCache

    @property
    def num_pages(self) -> int:
        return self.host.num_pages

    @property
    def page_size(self) -> int:
        return self.host.page_size

    @property
    def nbytes(self) -> int:
        return self.host.nbytes + self.device.nbytes


@dataclass(frozen=True)
class TiedTable(Placed):
    """A tied embedding: as the head it lies on the device, and its rows are read from `source`, the file, one by one.

    `forget` lets the system drop the file's pages, `adapters` has the adapter of each slot, if the model takes any.
    """

    source: Weight
    forget: Callable[[], None]
    adapters: list[LowRank | None] | None = None

    def rows(self, tokens: Array, slots: Array | None) -> Array:
        """Rows of these tokens (T, D) as float32, each through the adapter of its slot."""
        rows = take_rows(self.source, tokens)
        self.forget()
        if slots is None or self.adapters is None:
            return rows
        for index, (token, slot) in enumerate(zip(tokens, slots, strict=True)):
            low = None if slot < 0 else self.adapters[slot]
            if low is not None:  # each row by itself, so that none depends on another
                rows[index] += np.float32(low.scale) * (low.b[token] @ low.a)
        return rows


@dataclass(frozen=True)
class _Turns(Value):
    """A table of rotations, which is recorded where a program first needs it."""

    inv_freq: tuple[float, ...] = ()
    factor: float = 1.0


class SplitRecorder(Recorder["_native.Recording"]):
    """The ops of the layers before `first_on_device` go into `host`, all others into `device`."""

    def __init__(self, host: _native.Program, device: _native.VulkanProgram, first_on_device: int) -> None:
        super().__init__(host)
        self.host, self.device = host, device
        self._first, self._num_layers = first_on_device, 0
        self._table: tuple[TiedTable, int] | None = None  # and its input in `host`
        self._turns: dict[tuple[tuple[float, ...], float], Value] = {}
        self._last = self._input = Value(-1)  # of `host`, and in `device`

    def finish(self, outputs: Sequence[Value]) -> None:
        self.outputs = list(outputs)
        self.device.finish([value.id for value in outputs])

    def step(self, batch: Batch, cache: Cache | None) -> None:
        assert isinstance(cache, SplitCache)
        if self._table is not None:
            table, value = self._table
            self.host.set_input(value, table.rows(batch.tokens, batch.adapters))
        run_step(self.host, batch, cache.host)
        self.device.set_input(self._input.id, self.host.read(self._last.id, len(batch.tokens)))
        run_step(self.device, replace(batch, features=None, feature_rows=None), cache.device)

    def embed(self, table: Weight, tokens: Array) -> Value:
        if not isinstance(table, TiedTable):
            return super().embed(table, tokens)
        self._table = table, self.host.input(table.shape[1])
        return Value(self._table[1])

    def take_rows(self, x: Value, rows: Array) -> Value:
        return super().take_rows(self._crossed(x), rows)

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Value:
        return _Turns(-1, 1, tuple(inv_freq), attention_factor)

    def rope(self, x: Value, table: Value, layout: Layout) -> Value:
        assert isinstance(table, _Turns)
        key = table.inv_freq, table.factor
        if key not in self._turns:
            self._turns[key] = Value(self.program.rope_table(list(table.inv_freq), table.factor))
        return super().rope(x, self._turns[key], layout)

    def attend(self, q: Value, k: Value, v: Value, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Value:
        return super().attend(q, k, v, batch, cache, self._own(layer), scale, window)

    def attend_latent(self, q: Value, kv: Value, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Value:
        return super().attend_latent(q, kv, batch, cache, self._own(layer), scale, rank)

    def layer(self, body: Callable[[Value, Layer], Value], x: Value, layer: Layer) -> Value:
        if self._num_layers == self._first:
            x = self._crossed(x)
        self._num_layers += 1
        return body(x, layer)

    def _own(self, layer: int) -> int:
        """The number of a layer in the cache of its side."""
        return layer - self._first if self.program is self.device else layer

    def _crossed(self, x: Value) -> Value:
        """The value in the program of the device, which all later ops go into."""
        if self.program is self.device:
            return x
        self.host.finish([x.id])
        self._last, self._input = x, Value(self.device.input(self.host.width(x.id)), x.heads)
        self.program = self.device
        self._turns.clear()
        return self._input
