"""Reads tests/goldens/tiny_*.npz, made by make.py, into brise's own types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brise.models.config import Config, QueryTemperature
from brise.models.rope import Layout, Linear, Llama3, Rope, Scaling, Yarn
from brise.models.weights import Array, Attention, Dense, FeedForward, Layer, Weight, Weights

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem.removeprefix("tiny_") for path in FOLDER.glob("tiny_*.npz")))
GRID = 64


@dataclass(frozen=True)
class Golden:
    """A tiny model of transformers and the logits (T, V) that it gave for `tokens` (T,)."""

    config: Config
    weights: Weights
    tokens: Array
    logits: Array


def read(name: str, layout: Layout) -> Golden:
    """The golden with rope pairs in `layout`: the same model as another file format would hold it."""
    with np.load(FOLDER / f"tiny_{name}.npz") as file:
        arrays = dict(file)
    config = _config(json.loads(str(arrays["config"])), layout)
    return Golden(config, _weights(arrays, config), arrays["tokens"], arrays["logits"])


def interleave(rows: Array, num_heads: int) -> Array:
    """Rows i and i + E/2 of each head become rows 2 i and 2 i + 1: Hugging Face's order to GGUF's."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _config(fields: dict[str, Any], layout: Layout) -> Config:
    rope = fields.pop("rope")
    temperature = fields.pop("query_temperature")
    return Config(
        **fields, query_temperature=None if temperature is None else QueryTemperature(**temperature),
        rope=Rope(rope["theta"], rope["dim"], layout, _scaling(rope["scaling"])))


def _scaling(fields: dict[str, Any] | None) -> Scaling:
    if fields is None:
        return None
    kinds: dict[str, type[Yarn] | type[Llama3] | type[Linear]] = {
        "Yarn": Yarn, "Llama3": Llama3, "Linear": Linear}
    return kinds[fields.pop("kind")](**fields)


def _weights(arrays: Mapping[str, Array], config: Config) -> Weights:
    turned = {"wq": config.num_heads, "bq": config.num_heads, "wk": config.num_kv_heads,
              "bk": config.num_kv_heads, "q_norm": 1, "k_norm": 1}

    def weight(name: str) -> Weight:
        rows = (arrays[name] / GRID).astype(np.float32)
        tail = name.rsplit(".", 1)[-1]
        if config.rope.layout == "interleaved" and tail in turned:
            rows = interleave(rows, turned[tail])
        return Dense("F32", rows.shape, rows)

    def layer(index: int) -> Layer:
        prefix = f"layers.{index}."
        own = [name for name in arrays if name.startswith(prefix)]
        named = {name.removeprefix(prefix): weight(name) for name in own}
        feed_forward = FeedForward(*(named.pop(name) for name in ("w1", "w2", "w3")))
        norms = named.pop("attention_norm"), named.pop("ffn_norm")
        return Layer(norms[0], Attention(**named), norms[1], feed_forward)

    embeddings = weight("tok_embeddings")
    return Weights(embeddings, tuple(layer(i) for i in range(config.num_layers)), weight("norm"),
                   weight("output") if "output" in arrays else embeddings)
