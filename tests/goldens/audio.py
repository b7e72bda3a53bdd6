"""Reads tests/goldens/audio.npz, made by make_audio.py, into brise's own types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brise.models.weights import Array, Dense
from brise.models.whisper import AudioConfig, AudioLayer, AudioWeights
from tests.goldens.golden import FOLDER, GRID, Golden, read_from


@dataclass(frozen=True)
class AudioGolden:
    """A tiny Voxtral: the spectrograms of two chunks (frames, bands), their features (M, D), one after the other, and
    `text`, whose tokens hold both and whose logits are those of transformers."""

    config: AudioConfig
    weights: AudioWeights
    mels: tuple[Array, Array]
    features: Array
    text: Golden


def read_audio() -> AudioGolden:
    """The golden with the text model's rope pairs interleaved."""
    with np.load(FOLDER / "audio.npz") as file:
        arrays = dict(file)
    config = AudioConfig(**json.loads(str(arrays["audio"])))
    mels = (_numbers(arrays["mels0"]), _numbers(arrays["mels1"]))
    return AudioGolden(config, _weights(arrays, config), mels, arrays["features"], read_from(arrays, "interleaved"))


def _weights(arrays: Mapping[str, Array], config: AudioConfig) -> AudioWeights:
    def weight(name: str) -> Dense:
        rows = _numbers(arrays[f"audio.{name}"])
        return Dense("F32", rows.shape, rows)

    layers = tuple(AudioLayer(*(weight(f"layers.{index}.{name}") for name in AudioLayer.__dataclass_fields__))
                   for index in range(config.num_layers))
    whole = {name: weight(name) for name in AudioWeights.__dataclass_fields__ if name != "layers"}
    return AudioWeights(layers=layers, **whole)


def _numbers(grid: Array) -> Array:
    return (grid / GRID).astype(np.float32) if grid.dtype == np.int8 else grid
