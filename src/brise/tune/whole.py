"""A model that was trained whole, as a checkpoint that can be written: the original with other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from brise.checkpoint.gguf_names import gguf_name
from brise.checkpoint.lineage import Lineage, lineage_text
from brise.checkpoint.merge import LINEAGE_KEY
from brise.checkpoint.originals import Named, Original
from brise.errors import UnsupportedError
from brise.models.weights import Array, Stored, Weight, place


def with_numbers(original: Original, numbers: Mapping[str, Array], lineage: Lineage) -> Original:
    """The same checkpoint with these float32 arrays as its weights, by path; everything else is as it was."""
    names: dict[str, Stored] = {}

    def put(path: str, weight: Weight) -> Weight:
        if path not in numbers or tuple(numbers[path].shape) != weight.shape:
            raise UnsupportedError(f"there are no trained numbers of shape {weight.shape} for {path}")
        own = numbers[path]
        stored = Stored("F32", weight.shape, lambda first, last: own[first:last])
        names[gguf_name(path, weight)] = stored
        return stored

    weights = place(original.weights, put)
    tensors = tuple(Named(tensor.name, names.get(tensor.name, tensor.weight)) for tensor in original.tensors)
    return replace(original, weights=weights, tensors=tensors,
                   metadata={**original.metadata, LINEAGE_KEY: lineage_text(lineage)})
