"""Encoders of images on a GPU: recorded once, replayed for one or several images in parts of about 50 ms.

Attention runs over a cache of one layer, which all layers use again. What the features of an image cost does not depend
on its company, and neither do their bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from brise import _native
from brise.backends.native.recorder import NO_INTS, Recorder, Value
from brise.backends.pages import packed_pages
from brise.backends.reference.ops import ReferenceOps
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.ops import Encode, Room
from brise.models.pixtral import Patches
from brise.models.siglip import ImageConfig, ImageWeights
from brise.models.weights import Array

_COPIES = 2  # of patches on the host: as they are cut out of an image, and packed


@dataclass(frozen=True)
class _Table:
    """An input with a row of rotations for each patch."""

    value: Value
    inv_freq: tuple[float, ...]


class _EncoderRecorder(Recorder[_native.VulkanProgram]):
    """The ops of an encoder as a recorder. What stands between slice_rows and join_rows runs for some rows after the
    other."""

    is_recorded = True

    def __init__(self, program: _native.VulkanProgram) -> None:
        super().__init__(program)
        self.tables: list[_Table] = []

    def rope_table_2d(self, rows: Array, columns: Array, inv_freq: Sequence[float]) -> Value:
        table = _Table(Value(self.program.input(2 * len(inv_freq))), tuple(inv_freq))
        self.tables.append(table)
        return table.value

    def slice_rows(self, x: Value, first: int, last: int) -> Value:
        self.program.begin_group()
        return x

    def join_rows(self, parts: Sequence[Value]) -> Value:
        self.program.end_group()
        [whole] = parts
        return whole

    def merge_patches(self, x: Value, grids: object, merge: int) -> Value:
        return Value(self.program.merge_patches(x.id, merge))

    def mean_patches(self, x: Value, grids: object, size: int) -> Value:
        return Value(self.program.mean_patches(x.id, size))


class VulkanEncoder:
    """An encoder of images whose weights lie on the device, or are shape-only to plan with."""

    def __init__(self, device: _native.VulkanDevice, encode: Encode, config: ImageConfig,
                 weights: ImageWeights) -> None:
        self._device, self._config = device, config
        self._recorder = _EncoderRecorder(device.program())
        self._pixels = Value(self._recorder.program.input(config.patch_values))
        nothing = Patches(self._pixels, NO_INTS, NO_INTS, (), Batch(NO_INTS, NO_INTS, NO_INTS, NO_INTS))
        ops: Any = self._recorder  # without what only audio asks for
        *_, features = encode(ops, config, weights, nothing)
        self._recorder.finish([cast(Value, features)])
        self._cache: _native.VulkanCache | None = None

    def steps(self, source: Patches) -> Iterator[Array | None]:
        """Encodes patches, one submission after the other: None until the last."""
        program = self._recorder.program
        batch, num_pages = packed_pages(source.batch)
        assert batch.page_table is not None and batch.slots is not None, "`packed_pages` gives both"
        program.set_input(self._pixels.id, source.values)
        for table in self._recorder.tables:
            program.set_input(table.value.id, ReferenceOps().rope_table_2d(source.rows, source.columns, table.inv_freq))
        num_rows = self._num_rows(source)
        program.begin(batch.tokens, batch.positions, batch.query_starts, np.zeros(num_rows, np.int32), batch.page_table,
                      batch.slots, self._cache_of(num_pages), np.array(source.grids, np.int32))
        while program.proceed():
            yield None
        yield program.read(self._recorder.outputs[0].id, num_rows)

    @property
    def work_bytes(self) -> Room:
        """Memory of the program and its cache so far."""
        device, host = self._recorder.program.work_bytes
        return Room(host, device + (0 if self._cache is None else self._cache.nbytes))

    def planned_bytes(self, source: Patches) -> Room:
        """The `work_bytes` after patches of this size, with the arrays that go up."""
        _, num_pages = packed_pages(source.batch)
        device, host = self._recorder.program.planned_bytes(len(source.batch.tokens), self._num_rows(source))
        device += self._device.cache_bytes(1, num_pages, PAGE_SIZE, self._config.num_heads, self._config.head_dim,
                                           "f32")
        tables = sum(2 * len(table.inv_freq) for table in self._recorder.tables)
        return Room(host + 4 * len(source.batch.tokens) * (_COPIES * self._config.patch_values + tables), device)

    def _num_rows(self, source: Patches) -> int:
        return len(source.batch.tokens) // (self._config.cell_size // self._config.patch_size) ** 2

    def _cache_of(self, num_pages: int) -> _native.VulkanCache:
        """A cache of so many pages or more: the largest image so far decides."""
        if self._cache is None or self._cache.num_pages < num_pages:
            self._cache = None  # its memory is free before the next one takes its own
            self._cache = _native.VulkanCache(self._device, 1, num_pages, PAGE_SIZE, self._config.num_heads,
                                              self._config.head_dim, "f32")
        return self._cache
