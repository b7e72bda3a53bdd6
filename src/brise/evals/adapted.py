"""A loaded model with an adapter merged into it, matrix by matrix in float32, as training saw it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from brise.checkpoint.adapters import read_adapter
from brise.checkpoint.merge import merged
from brise.checkpoint.source import open_checkpoint
from brise.engine.model import LoadedModel
from brise.models.adapters import adapted
from brise.models.weights import Lora, Weight, place


def with_adapter(model: LoadedModel, folder: Path) -> LoadedModel:
    """The same model, changed by the adapter in `folder`; its name says so. Rows are merged as they are placed."""
    checkpoint = open_checkpoint(model.path)
    adapter = read_adapter(folder, checkpoint.config)

    def put(path: str, weight: Weight) -> Weight:
        if isinstance(weight, Lora):
            low_rank, = weight.adapters
            assert low_rank is not None, "there is only this adapter"
            weight = merged(path, weight.base, low_rank)
        return model.backend.place(path, weight)

    weights = place(adapted(checkpoint.weights(), adapter.low_ranks), put)
    checkpoint.forget()
    return replace(model, weights=weights, name=f"{model.name} + {folder.resolve().name}")
