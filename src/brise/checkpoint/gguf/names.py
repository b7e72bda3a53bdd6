"""Gives the GGUF name of every weight of a decoder, from the table in models/families.py."""

from __future__ import annotations

from collections.abc import Iterator

from brise.models.families import LAYER_TENSORS, WHOLE_TENSORS
from brise.models.weights import Stack, Weight, Weights, place


def gguf_name(path: str, weight: Weight) -> str:
    """layers.3.attention.wq as blk.3.attn_q.weight; `path` is a name that `place` gives."""
    is_of_experts = isinstance(weight, Stack) and ".feed_forward." in path
    return tensor_name(path.replace("feed_forward", "feed_forward.experts") if is_of_experts else path)


def tensor_name(path: str) -> str:
    """The same for a path that says `experts` where it means the stacks of a mixture."""
    if path in WHOLE_TENSORS:
        return f"{WHOLE_TENSORS[path].gguf[0]}.weight"
    _, layer, tail = path.split(".", 2)
    kind = "bias" if tail in ("attention.bq", "attention.bk", "attention.bv") else "weight"
    return f"blk.{layer}.{LAYER_TENSORS[tail].gguf[0]}.{kind}"


def named_weights(weights: Weights) -> Iterator[tuple[str, Weight]]:
    """Every weight under its GGUF name, in file order; a tied output once, as the embedding."""
    named: list[tuple[str, Weight]] = []

    def note(path: str, weight: Weight) -> Weight:
        named.append((gguf_name(path, weight), weight))
        return weight

    place(weights, note)
    yield from named
