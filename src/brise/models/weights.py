"""A weight is a value, not a layer: the model hands it to `ops.linear` and never asks what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from brise.errors import UnsupportedError

Array = Any  # models/ knows no array library
T = TypeVar("T")


@dataclass(frozen=True)
class Dense:
    """Plain numbers, `format` F32, F16 or BF16 (BF16 lies in uint16); shape (out, in) or (n,)."""

    format: str
    shape: tuple[int, ...]
    data: Array


@dataclass(frozen=True)
class Quant:
    """Blocks of a GGUF format (quant/formats.py): shape (out, in), `data` uint8 (out, bytes of a row)."""

    format: str
    shape: tuple[int, int]
    data: Array


@dataclass(frozen=True)
class Stored:
    """A weight that is made from a file row by row, when a backend takes it: FP8, NVFP4, permuted, quantised.

    `rows(a, b)` gives rows a to b in `format`: what the `data` of a Dense (F32, F16, BF16) or of a Quant (a block
    format) of these rows would be. Asked again it gives the same bytes. A vector (n,) counts as n rows.
    """

    format: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], Array]


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape: those of all experts, or of all heads; shape (N, out, in)."""

    matrices: tuple[Dense | Quant | Stored, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.matrices), *self.matrices[0].shape)


@dataclass(frozen=True)
class Placed:
    """A weight in a backend's own layout. Only the backend that made it may look into `handle`."""

    shape: tuple[int, ...]
    handle: Any


@dataclass(frozen=True)
class LowRank:
    """What one adapter adds to a matrix W: y = W x + scale * B (A x) (LoRA, 2106.09685).

    With a `magnitude` m (O,) the result is multiplied by m / |rows of W + scale * B A| (DoRA, 2402.09353).
    """

    a: Array  # (r, in)
    b: Array  # (out, r)
    scale: float
    magnitude: Array | None = None


@dataclass(frozen=True)
class Lora:
    """A matrix with adapters, None where an adapter leaves it as it is; `base` keeps its own format.

    `tokens` (T,) says which adapter each row of x goes through, -1 for none; without it all go through the first.
    """

    base: Dense | Quant | Stored | Placed
    adapters: tuple[LowRank | None, ...]
    tokens: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape


Weight = Dense | Quant | Stored | Stack | Placed | Lora


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. Names are Mistral's; biases and q/k norms only where the family has them."""

    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    bq: Weight | None = None
    bk: Weight | None = None
    bv: Weight | None = None
    q_norm: Weight | None = None
    k_norm: Weight | None = None


@dataclass(frozen=True)
class LatentAttention:
    """Latent attention (DeepSeek-V2, 2405.04434), absorbed: keys and values are never made from the latent.

    H heads, D width, Q query rank, C latent rank, N unrotated and R rotated numbers of a query, V of a value.
    """

    wq_a: Weight  # (Q, D)
    q_a_norm: Weight  # (Q,)
    wq_b: Weight  # (H (N + R), Q)
    wkv_a: Weight  # (C + R, D)
    kv_a_norm: Weight  # (C,)
    wk_b: Weight  # Stack (H, C, N): an unrotated query becomes a query of the latent
    wv_b: Weight  # Stack (H, V, C): a sum of latents becomes a sum of values
    wo: Weight  # (D, H V)


@dataclass(frozen=True)
class FeedForward:
    """A gated feed-forward: w2 (activation(w1 x) * w3 x)."""

    w1: Weight  # gate
    w2: Weight  # down
    w3: Weight  # up


@dataclass(frozen=True)
class Mixture:
    """Experts that a router picks from for each token, and one that every token goes through."""

    router: Weight  # (X, D)
    w1: Weight  # Stack (X, F, D), gate
    w2: Weight  # Stack (X, D, F), down
    w3: Weight  # Stack (X, F, D), up
    shared: FeedForward | None = None


@dataclass(frozen=True)
class Layer:
    """One decoder block. The post norms are of what attention and feed-forward add, where the family has them."""

    attention_norm: Weight
    attention: Attention | LatentAttention
    ffn_norm: Weight
    feed_forward: FeedForward | Mixture
    attention_post_norm: Weight | None = None
    ffn_post_norm: Weight | None = None


@dataclass(frozen=True)
class Weights:
    """A whole decoder. A tied model has the same object as `tok_embeddings` and `output`."""

    tok_embeddings: Weight
    layers: tuple[Layer, ...]
    norm: Weight
    output: Weight


def place(tree: T, put: Callable[[str, Weight], Weight]) -> T:
    """The same tree (Weights, or any dataclass of weights) with every weight put into a backend.

    One at a time, in order, a weight that is there twice (a tied head) once. Names are paths: layers.3.attention.wq.
    """
    done: dict[int, Weight] = {}

    def put_once(name: str, weight: Weight) -> Weight:
        if id(weight) not in done:
            done[id(weight)] = put(name, weight)
        return done[id(weight)]

    placed: T = _walk("", tree, put_once)
    return placed


def _walk(name: str, node: Any, put: Callable[[str, Weight], Weight]) -> Any:
    """`node` with its weights put. Not a closure of `place`: one that calls itself is a cycle, which would keep the
    weights until the garbage collector runs."""
    match node:
        case Dense() | Quant() | Stored() | Stack() | Placed() | Lora():
            return put(name, node)
        case tuple():
            return tuple(_walk(f"{name}.{index}", item, put) for index, item in enumerate(node))
        case _ if is_dataclass(node) and not isinstance(node, type):
            prefix = f"{name}." if name else ""
            return replace(node, **{field.name: _walk(prefix + field.name, getattr(node, field.name), put)
                                    for field in fields(node)})
    return node


def weights_with_paths(tree: object) -> list[tuple[str, Weight]]:
    """Every weight of a tree with its path, in the order of `place`; one that is there twice once."""
    named: list[tuple[str, Weight]] = []

    def note(path: str, weight: Weight) -> Weight:
        named.append((path, weight))
        return weight

    place(tree, note)
    return named


def part(weight: Weight, first: int, last: int) -> Dense | Quant | Stored:
    """Rows first to last of a matrix as a weight of their own; nothing is read or copied."""
    match weight:
        case Dense(format, (_, cols), data):
            return Dense(format, (last - first, cols), data[first:last])
        case Quant(format, (_, cols), data):
            return Quant(format, (last - first, cols), data[first:last])
        case Stored(format, (_, cols), read):
            return Stored(format, (last - first, cols), lambda start, end: read(first + start, first + end))
    raise UnsupportedError(f"a {type(weight).__name__} of {len(weight.shape)} dimensions has no rows of its own; "
                           "matrices have")
