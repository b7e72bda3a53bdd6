"""Opens a checkpoint for quantising and exporting: every tensor under its GGUF name, and the metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import is_not
from pathlib import Path

import numpy as np

from brise.checkpoint.generation import gguf_keys
from brise.checkpoint.gguf.file import GgufFile, open_model_file
from brise.checkpoint.gguf.names import held_weights, named_weights
from brise.checkpoint.gguf.write_keys import hyperparameters, rope_tensors
from brise.checkpoint.gguf.write_tokenizer import vocabulary
from brise.checkpoint.open import Audio, Checkpoint, Kind, Vision, open_checkpoint
from brise.checkpoint.pooling import pooling_number
from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.weights import Array, Dense, Quant, Stack, Weight, Weights
from brise.quant.formats import FORMATS
from brise.quant.rows import joined


@dataclass(frozen=True)
class Named:
    """A tensor under its GGUF name."""

    name: str
    weight: Weight


@dataclass(frozen=True)
class Original:
    """An open checkpoint. `metadata` is that of a GGUF file of it; `forget` lets the system drop the files' pages.

    `tensors` are those of the text model, and all others of the same GGUF file; `vision` and `audio` are encoders.
    """

    folder: Path
    config: Config
    weights: Weights
    tensors: tuple[Named, ...]
    metadata: Mapping[str, object]
    vision: Vision | None
    forget: Callable[[], None]
    kind: Kind
    audio: Audio | None = None

    @property
    def is_tied(self) -> bool:
        return self.weights.output is self.weights.tok_embeddings

    def held_weights(self) -> list[tuple[str, Weight]]:
        """Every weight of the text model with the name of the tensor that holds it."""
        return held_weights(self.weights, self.config.family, {tensor.name for tensor in self.tensors})

    def with_weights(self, weights: Weights, own: Mapping[str, object]) -> Original:
        """The same checkpoint with other numbers in this tree, and `own` keys in its metadata."""
        parts: dict[str, list[Weight]] = {}
        for name, weight in held_weights(weights, self.config.family, {tensor.name for tensor in self.tensors}):
            parts.setdefault(name, []).append(weight)
        before: dict[str, list[Weight]] = {}
        for name, weight in self.held_weights():
            before.setdefault(name, []).append(weight)
        tensors = tuple(Named(tensor.name, joined(parts[tensor.name]))
                        if tensor.name in parts and any(map(is_not, parts[tensor.name], before[tensor.name]))
                        else tensor for tensor in self.tensors)
        there = {tensor.name for tensor in tensors}
        # The output of a tied model that is one no longer: readers know it by its tensor.
        tensors += tuple(Named(name, joined(parts[name])) for name in parts if name not in there and name not in before)
        return replace(self, weights=weights, tensors=tensors, metadata={**self.metadata, **own})


def open_original(path: Path) -> Original:
    """Opens a GGUF file or a folder with safetensors."""
    checkpoint = open_checkpoint(path)
    return _from_gguf(checkpoint) if checkpoint.kind == "gguf" else _from_safetensors(checkpoint)


def _from_gguf(checkpoint: Checkpoint) -> Original:
    """All tensors of the file, also those that the text model does not read."""
    gguf = open_model_file(checkpoint.files[0])

    def forget() -> None:
        checkpoint.forget()
        for name in gguf.tensors:
            gguf.forget(name)

    tensors = tuple(Named(name, _weight(gguf, name)) for name in gguf.tensors)
    return Original(checkpoint.folder, checkpoint.config, checkpoint.weights(), tensors, gguf.metadata,
                    checkpoint.vision, forget, "gguf", checkpoint.audio)


def _from_safetensors(checkpoint: Checkpoint) -> Original:
    weights, config = checkpoint.weights(), checkpoint.config
    tensors = [Named(name, weight) for name, weight in named_weights(weights, config.family)]
    tensors += [Named(name, Dense("F32", factors.shape, factors))
                for name, factors in rope_tensors(config.rope).items()]
    metadata = {"general.type": "model", "general.name": checkpoint.folder.resolve().name} | hyperparameters(config)
    metadata |= vocabulary(checkpoint.folder, config.vocab_size)
    metadata |= gguf_keys(checkpoint.generation.sampling)
    if checkpoint.pooling is None:
        metadata.pop("tokenizer.ggml.add_eos_token", None)  # it concerns texts that are embedded
    else:
        metadata[f"{metadata['general.architecture']}.pooling_type"] = pooling_number(checkpoint.pooling)
    return Original(checkpoint.folder, config, weights, tuple(tensors), metadata, checkpoint.vision,
                    checkpoint.forget, checkpoint.kind, checkpoint.audio)


def _weight(gguf: GgufFile, name: str) -> Weight:
    """A tensor as it lies in the file; the matrices of all experts as a stack."""
    tensor, data = gguf.tensors[name], gguf.array(name)
    if len(tensor.shape) == 3:
        count, rows, cols = tensor.shape
        matrices = np.asarray(data).reshape(count, rows, -1)
        return Stack(tuple(_matrix(tensor.format, (rows, cols), matrix) for matrix in matrices))
    if FORMATS[tensor.format].is_plain:
        return Dense(tensor.format, tensor.shape, data)
    if len(tensor.shape) != 2:
        raise UnsupportedError(f"the tensor {name} has {len(tensor.shape)} dimensions in {tensor.format}; blocks are "
                               "read in 2 and 3")
    return Quant(tensor.format, (tensor.shape[0], tensor.shape[1]), data)


def _matrix(format: str, shape: tuple[int, int], data: Array) -> Dense | Quant:
    return Dense(format, shape, data) if FORMATS[format].is_plain else Quant(format, shape, data)
