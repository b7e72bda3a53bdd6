"""Reads tests/goldens/tiny_*.npz, made by make.py and make_*.py, into brise's own types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brise.checkpoint.split_latent import split
from brise.models.config import Config, Experts, Latent, QueryTemperature
from brise.models.rope import Layout, Linear, Llama3, LongRope, Rope, Scaling, Yarn
from brise.models.weights import (
    Array,
    Attention,
    Dense,
    FeedForward,
    LatentAttention,
    Layer,
    Mixture,
    Stack,
    Weights,
)

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
        return read_from(dict(file), layout)


def read_from(arrays: Mapping[str, Array], layout: Layout) -> Golden:
    """The golden of one file's arrays."""
    config = _config(json.loads(str(arrays["config"])), layout)
    return Golden(config, _weights(arrays, config), arrays["tokens"], arrays["logits"])


def interleave(rows: Array, num_heads: int, dim: int | None = None) -> Array:
    """Rows i and i + E/2 of each head become rows 2 i and 2 i + 1: Hugging Face's order to GGUF's. With `dim` only the
    first so many rows of a head are rotated, and turned."""
    heads = rows.reshape(num_heads, -1, *rows.shape[1:]).copy()
    own = heads[:, :dim]
    heads[:, :dim] = own.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(own.shape)
    return np.ascontiguousarray(heads).reshape(rows.shape)


def halves(rows: Array, num_heads: int, dim: int | None = None) -> Array:
    """The inverse of `interleave`."""
    heads = rows.reshape(num_heads, -1, *rows.shape[1:]).copy()
    own = heads[:, :dim]
    heads[:, :dim] = own.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(own.shape)
    return np.ascontiguousarray(heads).reshape(rows.shape)


def _config(fields: dict[str, Any], layout: Layout) -> Config:
    rope = fields.pop("rope")
    temperature, latent, experts = (fields.pop(key, None) for key in ("query_temperature", "latent", "experts"))
    without_rope, without_window = (tuple(fields.pop(f"layers_without_{what}", ())) for what in ("rope", "window"))
    window_theta = fields.pop("window_theta", None)
    return Config(
        **fields, layers_without_rope=without_rope, layers_without_window=without_window,
        window_rope=None if window_theta is None else Rope(window_theta, rope["dim"], layout),
        query_temperature=None if temperature is None else QueryTemperature(**temperature),
        latent=None if latent is None else Latent(**latent), experts=None if experts is None else Experts(**experts),
        rope=Rope(rope["theta"], rope["dim"], layout, _scaling(rope["scaling"])))


def _scaling(fields: dict[str, Any] | None) -> Scaling:
    if fields is None:
        return None
    kinds: dict[str, type[Yarn] | type[Llama3] | type[Linear] | type[LongRope]] = {
        "Yarn": Yarn, "Llama3": Llama3, "Linear": Linear, "LongRope": LongRope}
    kind = kinds[fields.pop("kind")]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _weights(arrays: Mapping[str, Array], config: Config) -> Weights:
    def layer(index: int) -> Layer:
        prefix = f"layers.{index}."
        own = {name.removeprefix(prefix): _numbers(rows) for name, rows in arrays.items() if name.startswith(prefix)}
        norms = _dense(own.pop("attention_norm")), _dense(own.pop("ffn_norm"))
        post_norms = [_dense(own.pop(name)) if name in own else None
                      for name in ("attention_post_norm", "ffn_post_norm")]
        feed_forward = _mixture(own) if "router" in own else _feed_forward(own, "")
        attention = _attention(own, config) if config.latent is None else _latent_attention(own, config)
        return Layer(norms[0], attention, norms[1], feed_forward, *post_norms)

    table, norm = _dense(_numbers(arrays["tok_embeddings"])), _dense(_numbers(arrays["norm"]))
    output = _dense(_numbers(arrays["output"])) if "output" in arrays else table
    return Weights(table, tuple(layer(i) for i in range(config.num_layers)), norm, output)


def _attention(own: Mapping[str, Array], config: Config) -> Attention:
    """What is left of a layer; rope pairs of the file are in halves."""
    turned = {"wq": config.num_heads, "bq": config.num_heads, "wk": config.num_kv_heads,
              "bk": config.num_kv_heads, "q_norm": 1, "k_norm": 1}
    names = [name for name in Attention.__dataclass_fields__ if name in own]
    turns = config.rope.layout == "interleaved"
    rows = {name: interleave(own[name], turned[name], config.rope.dim) if turns and name in turned else own[name]
            for name in names}
    return Attention(**{name: _dense(numbers) for name, numbers in rows.items()})


def _latent_attention(own: Mapping[str, Array], config: Config) -> LatentAttention:
    """Rope pairs of the file are neighbours, as in every file of this family."""
    assert config.latent is not None
    nope, rank = config.latent.nope_dim, config.latent.rank
    wq_b = own["wq_b"].reshape(config.num_heads, config.head_dim, -1).copy()
    wkv_a = own["wkv_a"].copy()
    if config.rope.layout == "half":
        for head in wq_b:
            head[nope:] = halves(head[nope:], 1)
        wkv_a[rank:] = halves(wkv_a[rank:], 1)
    wk_b, wv_b = split(_dense(own["wkv_b"]), config.num_heads, nope, config.latent.value_dim)
    return LatentAttention(
        _dense(own["wq_a"]), _dense(own["q_a_norm"]), _dense(wq_b.reshape(own["wq_b"].shape)), _dense(wkv_a),
        _dense(own["kv_a_norm"]), wk_b, wv_b, _dense(own["wo"]))


def _feed_forward(own: Mapping[str, Array], prefix: str) -> FeedForward:
    return FeedForward(*(_dense(own[prefix + name]) for name in ("w1", "w2", "w3")))


def _mixture(own: Mapping[str, Array]) -> Mixture:
    gates, ups = np.split(own["experts.w13"], 2, axis=1)
    w1, w2, w3 = (Stack(tuple(_dense(matrix) for matrix in stack)) for stack in (gates, own["experts.w2"], ups))
    shared = _feed_forward(own, "shared.") if "shared.w1" in own else None
    return Mixture(_dense(own["router"]), w1, w2, w3, shared)


def _dense(numbers: Array) -> Dense:
    return Dense("F32", numbers.shape, np.ascontiguousarray(numbers))


def _numbers(grid: Array) -> Array:
    return (grid / GRID).astype(np.float32)
