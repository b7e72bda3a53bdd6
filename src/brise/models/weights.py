"""A weight is a value, not a layer: the model hands it to `ops.linear` and never asks what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

Array = Any  # models/ knows no array library


@dataclass(frozen=True)
class Dense:
    """Plain numbers, `format` F32, F16 or BF16 (BF16 lies in uint16); shape (out, in) or (n,)."""

    format: str
    shape: tuple[int, ...]
    data: Array


@dataclass(frozen=True)
class Quant:
    """Blocks of a GGUF format (Q4_0 ... Q6_K): shape (out, in), `data` uint8 (out, bytes of a row)."""

    format: str
    shape: tuple[int, int]
    data: Array


@dataclass(frozen=True)
class Placed:
    """A weight in a backend's own layout. Only the backend that made it may look into `handle`."""

    shape: tuple[int, ...]
    handle: Any


Weight = Dense | Quant | Placed


@dataclass(frozen=True)
class Layer:
    """One decoder block. Names are Mistral's; biases and q/k norms only where the family has them."""

    attention_norm: Weight
    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    ffn_norm: Weight
    w1: Weight  # gate
    w2: Weight  # down
    w3: Weight  # up
    bq: Weight | None = None
    bk: Weight | None = None
    bv: Weight | None = None
    q_norm: Weight | None = None
    k_norm: Weight | None = None


@dataclass(frozen=True)
class Weights:
    """A whole decoder. A tied model has the same object as `tok_embeddings` and `output`."""

    tok_embeddings: Weight
    layers: tuple[Layer, ...]
    norm: Weight
    output: Weight


def place(weights: Weights, put: Callable[[str, Weight], Weight]) -> Weights:
    """The same tree with every weight put into a backend, one at a time, tied weights once."""
    done: dict[int, Weight] = {}

    def once(name: str, weight: Weight) -> Weight:
        if id(weight) not in done:
            done[id(weight)] = put(name, weight)
        return done[id(weight)]

    def layer(index: int, source: Layer) -> Layer:
        named = {f.name: getattr(source, f.name) for f in fields(source)}
        return replace(source, **{name: once(f"layers.{index}.{name}", weight)
                                  for name, weight in named.items() if weight is not None})

    return Weights(
        tok_embeddings=once("tok_embeddings", weights.tok_embeddings),
        layers=tuple(layer(i, source) for i, source in enumerate(weights.layers)),
        norm=once("norm", weights.norm),
        output=once("output", weights.output))
