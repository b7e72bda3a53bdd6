"""The reference backend's table of adapters: every step runs over the weights with all slots' adapters on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from brise.backends.adapter_checks import check_adapter, check_slot, matrices_with_adapters
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import adapted
from brise.models.weights import Array, Dense, Lora, LowRank, Weight, Weights, place

_BYTES = 4  # of a float32 number


@dataclass(frozen=True)
class PreparedAdapter:
    """What `prepare` gives: matrices by path. The reference works the gains out itself, from the magnitudes."""

    low_ranks: Mapping[str, LowRank]


class ReferenceAdapterTable:
    """The contract's AdapterTable over models.adapters.adapted."""

    def __init__(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> None:
        self.config, self.weights, self.num_slots, self.max_rank = config, weights, num_slots, max_rank
        self._slots: list[PreparedAdapter | None] = [None] * num_slots

    def prepare(self, low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array]) -> PreparedAdapter:
        """Checked as the contract says, and kept as it is."""
        check_adapter(matrices_with_adapters(self.config), low_ranks, gains, self.max_rank)
        return PreparedAdapter(dict(low_ranks))

    def rows(self, path: str, first: int, last: int) -> Array:
        """Rows of a matrix without its adapters."""
        found: list[Array] = []

        def look(name: str, weight: Weight) -> Weight:
            if name == path and isinstance(weight, Dense):  # as this backend places them
                found.append(weight.data[first:last])
            return weight

        place(self.weights, look)
        return found[0]

    def nbytes(self, prepared: PreparedAdapter) -> int:
        """As float32 numbers."""
        return sum(_BYTES * int(low.a.size + low.b.size + (0 if low.magnitude is None else low.magnitude.size))
                   for low in prepared.low_ranks.values())

    def put(self, slot: int, prepared: PreparedAdapter | None) -> None:
        """Fills or empties a slot."""
        check_slot(slot, self.num_slots)
        self._slots[slot] = prepared

    def weights_of(self, batch: Batch) -> Weights:
        """The weights for a step: with Loras wherever an adapter in a slot changes a matrix."""
        if batch.adapters is None:
            return self.weights
        for token, slot in enumerate(batch.adapters):
            if not -1 <= slot < self.num_slots or (slot >= 0 and self._slots[slot] is None):
                state = "which is empty" if 0 <= slot < self.num_slots else f"allowed are -1 to {self.num_slots - 1}"
                raise ValueError(f"adapters[{token}] is {slot}, {state}")
        whole = adapted(self.weights, *({} if slot is None else slot.low_ranks for slot in self._slots))

        def with_tokens(_: str, weight: Weight) -> Weight:
            return replace(weight, tokens=np.asarray(batch.adapters)) if isinstance(weight, Lora) else weight

        return place(whole, with_tokens)
