"""Reads tests/goldens/gemma3_vision.npz, made by make_gemma3_vision.py, and writes it as folders of Hugging Face."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brise.models.weights import Array
from tests.goldens.golden import FOLDER, GRID

Spelling = Literal["saved", "old", "new"]  # by transformers 5, by versions before, and inside of transformers
IMAGE, BEGIN, END = 90, 91, 92


@dataclass(frozen=True)
class SiglipGolden:
    """A tiny Gemma 3 that sees: two images (3, height, width), their features (M, D), and logits of `tokens`, in which
    both images stand. `arrays` have the names of transformers 5."""

    config: dict[str, Any]
    arrays: dict[str, Array]
    images: tuple[Array, Array]
    tokens: Array
    features: Array
    logits: Array


def read() -> SiglipGolden:
    with np.load(FOLDER / "gemma3_vision.npz") as file:
        arrays = dict(file)
    config, tokens = json.loads(str(arrays.pop("config"))), arrays.pop("tokens")
    features, logits = arrays.pop("features"), arrays.pop("logits")
    numbers = {name: (grid / GRID).astype(np.float32) for name, grid in arrays.items()}
    images = numbers.pop("image0"), numbers.pop("image1")
    return SiglipGolden(config, numbers, images, tokens, features, logits)


def write_hf(folder: Path, golden: SiglipGolden, spelling: Spelling = "saved", dtype: str = "F32") -> Path:
    """A folder without a tokenizer."""
    from tests.checkpoint.make_folder import write_folder  # noqa: PLC0415 - which imports this package

    write_folder(folder, "model", {_spelled(name, spelling): (dtype, rows) for name, rows in golden.arrays.items()})
    (folder / "config.json").write_text(json.dumps(golden.config))
    return folder


def _spelled(name: str, spelling: Spelling) -> str:
    if spelling == "old":
        return name.replace("vision_tower.", "vision_tower.vision_model.")
    return f"model.{name.replace('language_model.model.', 'language_model.')}" if spelling == "new" else name
