"""Gives the GGUF name of every weight of a decoder, from the table in models/families.py."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from brise.models.families import FAMILIES, JOINED, LAYER_TENSORS, WHOLE_TENSORS
from brise.models.weights import Stack, Weight, Weights, weights_with_paths
from brise.quant.rows import joined


def gguf_name(path: str, weight: Weight) -> str:
    """layers.3.attention.wq as blk.3.attn_q.weight; `path` is a name that `place` gives."""
    is_of_experts = isinstance(weight, Stack) and ".feed_forward." in path
    return tensor_name(path.replace("feed_forward", "feed_forward.experts") if is_of_experts else path)


def tensor_name(path: str, family: str | None = None) -> str:
    """The same for a path that says `experts` where it means the stacks of a mixture; with a family, a path of JOINED
    as well."""
    if path in WHOLE_TENSORS:
        return f"{WHOLE_TENSORS[path].gguf[0]}.weight"
    _, layer, tail = path.split(".", 2)
    if family is not None and tail in JOINED:
        return f"blk.{layer}.{FAMILIES[family].tensors[tail].gguf[0]}.weight"
    kind = "bias" if tail in ("attention.bq", "attention.bk", "attention.bv") else "weight"
    return f"blk.{layer}.{LAYER_TENSORS[tail].gguf[0]}.{kind}"


def held_weights(weights: Weights, family: str, names: Collection[str] = ()) -> list[tuple[str, Weight]]:
    """Every weight with the name of the tensor that holds it, alone or with others (families.JOINED); a tied output
    once, as the embedding. `names` are the tensors of a file, which may have apart what its family joins."""
    holders = {part: path for path in FAMILIES[family].joined("gguf") for part in JOINED[path]}
    held: list[tuple[str, Weight]] = []
    for path, weight in weights_with_paths(weights):
        prefix, tail = path.rpartition(".")[0].rpartition(".")[0], ".".join(path.split(".")[-2:])
        own, whole = gguf_name(path, weight), holders.get(tail)
        if whole is not None and tensor_name(f"{prefix}.{JOINED[whole][0]}") not in names:
            own = tensor_name(f"{prefix}.{whole}", family)
        held.append((own, weight))
    return held


def named_weights(weights: Weights, family: str) -> Iterator[tuple[str, Weight]]:
    """Every tensor of a file of these weights with its GGUF name, in file order."""
    by_name: dict[str, list[Weight]] = {}
    for name, weight in held_weights(weights, family):
        by_name.setdefault(name, []).append(weight)
    for name, parts in by_name.items():
        yield name, joined(parts)
