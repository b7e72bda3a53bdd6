"""The adapter table of the reference backend: every step runs over weights that carry the adapters of all slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from brise.backends.adapter_checks import check_adapter, check_slot
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import OUTPUT, adapted, matrices, place_ends
from brise.models.weights import Array, Dense, Lora, LowRank, Weight, Weights

_BYTES = 4  # of a float32 number


@dataclass(frozen=True)
class PreparedAdapter:
    """The result of `prepare`: matrices by path. The reference computes gains itself, from the magnitudes."""

    low_ranks: Mapping[str, LowRank]


class ReferenceAdapterTable:
    """An AdapterTable (models/ops.py) over models.lora.adapted."""

    def __init__(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> None:
        self.config, self.weights, self.num_slots, self.max_rank = config, weights, num_slots, max_rank
        self._slots: list[PreparedAdapter | None] = [None] * num_slots

    def prepare(self, low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array]) -> PreparedAdapter:
        """Checks an adapter and keeps it as it is."""
        check_adapter(matrices(self.config), low_ranks, gains, self.max_rank)
        return PreparedAdapter(dict(low_ranks))

    def rows(self, path: str, first: int, last: int) -> Array:
        """Rows of a matrix without its adapters."""
        result: list[Array] = []

        def look(name: str, weight: Weight) -> Weight:
            if name == path and isinstance(weight, Dense):  # as this backend places them
                result.append(weight.data[first:last])
            return weight

        place_ends(self.weights, look)
        return result[0]

    def nbytes(self, prepared: PreparedAdapter) -> int:
        """Memory of a prepared adapter as float32."""
        return sum(_BYTES * int(low.a.size + low.b.size + (0 if low.magnitude is None else low.magnitude.size))
                   for low in prepared.low_ranks.values())

    def put(self, slot: int, prepared: PreparedAdapter | None) -> None:
        """Fills or empties a slot."""
        check_slot(slot, self.num_slots)
        self._slots[slot] = prepared

    def weights_of(self, batch: Batch) -> Weights:
        """The weights for a step, with a Lora for each matrix that an adapter in a slot changes."""
        if batch.adapters is None:
            return self.weights
        for token, slot in enumerate(batch.adapters):
            if not -1 <= slot < self.num_slots or (slot >= 0 and self._slots[slot] is None):
                state = "which is empty" if 0 <= slot < self.num_slots else f"allowed are -1 to {self.num_slots - 1}"
                raise ValueError(f"adapters[{token}] is {slot}, {state}")
        whole = adapted(self.weights, *({} if slot is None else slot.low_ranks for slot in self._slots))

        def with_tokens(path: str, weight: Weight) -> Weight:
            own = np.asarray(batch.adapters)  # the output is computed for some rows only
            return replace(weight, tokens=own[batch.rows] if path == OUTPUT else own) if isinstance(
                weight, Lora) else weight

        return place_ends(whole, with_tokens)


def own_rows(w: Lora, num_rows: int) -> Iterator[tuple[Array, LowRank]]:
    """The rows that go through each adapter."""
    tokens = np.zeros(num_rows, np.int32) if w.tokens is None else w.tokens
    for index, adapter in enumerate(w.adapters):
        own = np.flatnonzero(tokens == index)
        if adapter is not None and len(own):
            yield own, adapter
