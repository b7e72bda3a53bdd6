"""Adapters in the native backend: a table of slots, and the weights over which a program with adapters is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise import _native
from brise.backends.adapter_checks import check_adapter, check_slot, check_table, gain
from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.lora import EMBEDDING, matrices, place_ends
from brise.models.weights import Array, Lora, LowRank, Placed, Weight, Weights


@dataclass(frozen=True)
class Target:
    """The handle of a matrix that the adapters of a table can change."""

    base: _native.Weight
    table: _native.LoraTable
    index: int


class Slots:
    """A table of adapters over matrices by path: a few for EagerOps, all of a model's for NativeAdapterTable."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], num_slots: int, max_rank: int) -> None:
        check_table(num_slots, max_rank)
        self.shapes, self.num_slots, self.max_rank = shapes, num_slots, max_rank
        self._targets = {path: index for index, path in enumerate(shapes)}
        self.table = _native.LoraTable(list(shapes.values()), num_slots, max_rank, self._targets.get(EMBEDDING, -1))

    def prepare(self, low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array]) -> _native.Adapter:
        """Packs an adapter; other Python threads and running steps continue meanwhile."""
        check_adapter(self.shapes, low_ranks, gains, self.max_rank)
        return _native.Adapter(self.table, [
            (self._targets[path], _floats(low.a), _floats(low.b), float(low.scale),
             _floats(gains[path]) if path in gains else None) for path, low in low_ranks.items()])

    def nbytes(self, prepared: _native.Adapter) -> int:
        """Memory of a prepared adapter."""
        return prepared.nbytes

    def put(self, slot: int, prepared: _native.Adapter | None) -> None:
        """Fills or empties a slot. A running step keeps the adapters that it began with."""
        check_slot(slot, self.num_slots)
        self.table.put(slot, prepared)

    def target(self, path: str, weight: Weight) -> Weight:
        """A placed matrix as a target of this table, or unchanged if the table has no such path."""
        if path not in self._targets or not isinstance(weight, Placed):
            return weight
        return Placed(weight.shape, Target(weight.handle, self.table, self._targets[path]))


class NativeAdapterTable(Slots):
    """An AdapterTable (models/ops.py); `weights` are the model's, with every matrix that takes adapters as a target."""

    def __init__(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> None:
        super().__init__(matrices(config), num_slots, max_rank)
        self._own: dict[str, Weight] = {}
        self.weights = place_ends(weights, self._keep)

    def rows(self, path: str, first: int, last: int) -> Array:
        """Rows of a matrix without its adapters."""
        return numbers(self._own[path], first, last)

    def _keep(self, path: str, weight: Weight) -> Weight:
        self._own[path] = weight
        return self.target(path, weight)


def record_linears(program: _native.Recording, x: int, weights: Sequence[Weight]) -> list[int]:
    """Records linears of placed matrices, some of which may be targets of one table."""
    handles = [handle_of(weight) for weight in weights]
    bases = [handle.base if isinstance(handle, Target) else handle for handle in handles]
    tables = [handle.table for handle in handles if isinstance(handle, Target)]
    if not tables:
        return program.linears(x, bases)
    return program.adapted_linears(x, bases, tables[0], [handle.index if isinstance(handle, Target) else -1
                                                         for handle in handles])


def record_embed(program: _native.Recording, table: Weight) -> int:
    """Records the look-up in a placed embedding, which may be a target."""
    handle = handle_of(table)
    if isinstance(handle, Target):
        return program.adapted_embed(handle.base, handle.table, handle.index)
    return program.embed(handle)


def handle_of(weight: Weight) -> _native.Weight | Target:
    """The handle of a placed matrix or vector."""
    if not isinstance(weight, Placed):
        raise UnsupportedError(f"a {type(weight).__name__} weight was not placed in the native backend")
    handle: _native.Weight | Target = weight.handle
    return handle


def numbers(weight: Weight, first: int, last: int) -> Array:
    """Rows first to last of a placed matrix as float32."""
    handle = handle_of(weight)
    out = np.empty((last - first, weight.shape[1]), np.float32)
    (handle.base if isinstance(handle, Target) else handle).rows(first, out)
    return out


def on_slots(weights: Sequence[Weight], *, embeds: bool = False,
             device: _native.VulkanDevice | None = None) -> tuple[tuple[Weight, ...], list[int] | None]:
    """The matrices of one call with its Loras as targets of a table of their own, and the `tokens` of the Loras.

    With `embeds` the one weight is an embedding. The adapters go to the `device`, if there is one.
    """
    paths = [EMBEDDING] if embeds else [str(index) for index in range(len(weights))]
    loras = {path: weight for path, weight in zip(paths, weights, strict=True) if isinstance(weight, Lora)}
    tokens = [None if lora.tokens is None else np.asarray(lora.tokens).tolist() for lora in loras.values()]
    if any(other != tokens[0] for other in tokens[1:]):
        raise UnsupportedError("the matrices of one call use different adapters for the same tokens")
    ranks = [len(low.a) for lora in loras.values() for low in lora.adapters if low is not None]
    slots = Slots({path: (lora.shape[0], lora.shape[1]) for path, lora in loras.items()},
                  max(len(lora.adapters) for lora in loras.values()), max(ranks, default=1))
    for slot in range(slots.num_slots):
        low_ranks = {path: low for path, lora in loras.items() if slot < len(lora.adapters)
                     for low in [lora.adapters[slot]] if low is not None}
        adapter = slots.prepare(low_ranks, {path: _gain(loras[path].base, low)
                                            for path, low in low_ranks.items() if low.magnitude is not None})
        if device is not None:
            device.place_adapter(adapter)
        slots.put(slot, adapter)
    return tuple(slots.target(path, weight.base) if isinstance(weight, Lora) else weight
                 for path, weight in zip(paths, weights, strict=True)), tokens[0]


def _gain(base: Weight, low: LowRank) -> Array:
    return gain(lambda first, last: numbers(base, first, last), low)


def _floats(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32)
