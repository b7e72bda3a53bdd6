"""Adapters of a model that lies on a CPU and a GPU: a table for the matrices of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from brise import _native
from brise.backends.adapter_checks import check_adapter
from brise.backends.native.lora import Slots, numbers
from brise.backends.vulkan.split_recorder import TiedTable
from brise.models.config import Config
from brise.models.lora import EMBEDDING, matrices, place_ends
from brise.models.weights import Array, LowRank, Weight, Weights


@dataclass(frozen=True)
class SplitAdapter:
    """An adapter packed for both sides; of a tied embedding, whose rows come from the file, as plain numbers."""

    host: _native.Adapter
    device: _native.Adapter
    embedding: LowRank | None


class SplitAdapterTable:
    """An AdapterTable (models/ops.py); `is_on_host` says of a path on which side its matrix lies."""

    def __init__(self, device: _native.VulkanDevice, config: Config, weights: Weights, num_slots: int, max_rank: int,
                 is_on_host: Callable[[str], bool]) -> None:
        self._device, self._shapes = device, matrices(config)
        self.num_slots, self.max_rank, self._is_on_host = num_slots, max_rank, is_on_host
        self._is_tied = isinstance(weights.tok_embeddings, TiedTable)
        apart = {path for path in self._shapes if path == EMBEDDING and self._is_tied}
        self._sides = [Slots({path: shape for path, shape in self._shapes.items()
                              if path not in apart and is_on_host(path) == is_host}, num_slots, max_rank)
                       for is_host in (True, False)]
        self._embeddings: list[LowRank | None] = [None] * num_slots
        self._own: dict[str, Weight] = {}
        self.weights = place_ends(weights, self._keep)

    def prepare(self, low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array]) -> SplitAdapter:
        """Packs an adapter and takes the device's part of it there; running steps continue meanwhile."""
        check_adapter(self._shapes, low_ranks, gains, self.max_rank)
        host, device = (slots.prepare({path: low for path, low in low_ranks.items() if path in slots.shapes},
                                      {path: gain for path, gain in gains.items() if path in slots.shapes})
                        for slots in self._sides)
        self._device.place_adapter(device)
        embedding = None
        if self._is_tied and EMBEDDING in low_ranks:
            low = low_ranks[EMBEDDING]
            embedding = replace(low, a=_floats(low.a), b=_floats(low.b))
        return SplitAdapter(host, device, embedding)

    def rows(self, path: str, first: int, last: int) -> Array:
        """Rows of a matrix without its adapters, from where it lies."""
        return numbers(self._own[path], first, last)

    def nbytes(self, prepared: SplitAdapter) -> int:
        """Memory of a prepared adapter on both sides."""
        low = prepared.embedding
        embedding = 0 if low is None else int(low.a.nbytes + low.b.nbytes)
        return prepared.host.nbytes + prepared.device.nbytes + embedding

    def put(self, slot: int, prepared: SplitAdapter | None) -> None:
        """Fills or empties a slot of both sides. Between steps."""
        for slots, adapter in zip(self._sides, (None, None) if prepared is None else (prepared.host, prepared.device),
                                  strict=True):
            slots.put(slot, adapter)
        self._embeddings[slot] = None if prepared is None else prepared.embedding

    def _keep(self, path: str, weight: Weight) -> Weight:
        self._own[path] = weight
        if path == EMBEDDING and isinstance(weight, TiedTable):
            return replace(weight, adapters=self._embeddings)
        host, device = self._sides
        return (host if self._is_on_host(path) else device).target(path, weight)


def _floats(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)
