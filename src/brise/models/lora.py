"""Puts low-rank adapters on a decoder: which matrices may have one, and the weights with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.families import LAYER_TENSORS, WHOLE_TENSORS
from brise.models.weights import Lora, LowRank, Stack, Weight, Weights, place

# PEFT's short names of the matrices that may be changed (the last part of Hugging Face's), and their paths in a layer.
MODULES: Mapping[str, str] = MappingProxyType({
    LAYER_TENSORS[path].hf[0].rsplit(".", 1)[-1]: path for path in (
        "attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w3",
        "feed_forward.w2")})

# The same of the matrices before and after the layers.
ENDS: Mapping[str, str] = MappingProxyType({
    WHOLE_TENSORS[path].hf[0]: path for path in ("tok_embeddings", "output")})
EMBEDDING, OUTPUT = ENDS.values()
NAMES = (*MODULES, *ENDS)

# By path: layers.3.attention.wq. An embedding has one row for each token, like the output: b has the tokens' rows.
LowRanks = Mapping[str, LowRank]


def targets(config: Config, modules: tuple[str, ...] = tuple(MODULES)) -> Mapping[str, tuple[int, int]]:
    """Path -> (out, in) of every matrix that these modules of NAMES name; UnsupportedError if the model lacks one.

    Latent attention and routed experts take no adapters; the dense layers before experts do.
    """
    shapes = matrix_shapes(config)
    out: dict[str, tuple[int, int]] = {}
    for index in range(config.num_layers):
        for module in modules:
            if module in MODULES and _has(config, index, MODULES[module]):
                out[f"layers.{index}.{MODULES[module]}"] = shapes[MODULES[module]]
    out |= {path: (config.vocab_size, config.width) for module, path in ENDS.items() if module in modules}
    for module in modules:
        if module not in NAMES:
            raise UnsupportedError(f"an adapter is asked for on {module!r}, allowed are {', '.join(NAMES)}")
        if module in MODULES and not any(path.endswith(MODULES[module]) for path in out):
            what = "experts" if MODULES[module].startswith("feed_forward") else "latent attention"
            raise UnsupportedError(f"an adapter is asked for on {module!r}, and this model has {what} there, which "
                                   "takes none")
    return MappingProxyType(out)


def matrices(config: Config) -> Mapping[str, tuple[int, int]]:
    """Path -> (out, in) of every matrix of the model that takes an adapter."""
    has_attention = config.latent is None
    has_feed_forward = config.experts is None or config.experts.num_dense_layers > 0
    return targets(config, (*(module for module, path in MODULES.items()
                              if (has_attention if path.startswith("attention.") else has_feed_forward)), *ENDS))


def module_of(path: str) -> str:
    """PEFT's short name of a matrix: q_proj for layers.3.attention.wq, lm_head for output."""
    tail = path.split(".", 2)[2] if path.startswith("layers.") else path
    return next(module for module, own in (*MODULES.items(), *ENDS.items()) if own == tail)


def is_end(path: str) -> bool:
    """Whether this is the embedding or the output head."""
    return path in ENDS.values()


def place_ends(weights: Weights, put: Callable[[str, Weight], Weight]) -> Weights:
    """As weights.place, but a tied matrix is put twice, as embedding and as output: an adapter may change one of them.

    It stays tied where both give the same object.
    """
    placed = place(weights, put)
    return replace(placed, output=put(OUTPUT, weights.output)) if weights.output is weights.tok_embeddings else placed


def adapted(weights: Weights, *adapters: LowRanks) -> Weights:
    """The same weights, unplaced or placed, with every matrix that an adapter names as a Lora.

    With several adapters a Lora has one place for each, in this order, None where one leaves the matrix as it is.
    """
    left = {path for adapter in adapters for path in adapter}

    def put(path: str, weight: Weight) -> Weight:
        own = tuple(adapter.get(path) for adapter in adapters)
        if all(low_rank is None for low_rank in own):
            return weight
        left.discard(path)
        if isinstance(weight, Lora | Stack):
            raise UnsupportedError(f"{path} is a {type(weight).__name__}; an adapter goes on a single plain matrix")
        for low_rank in own:
            if low_rank is not None:
                check_shape(path, low_rank, weight.shape)
        return Lora(weight, own)

    out = place_ends(weights, put)
    if left:
        raise UnsupportedError(f"the adapter changes {min(left)}, which this model does not have",
                               hint="it was made for another model")
    return out


def check_shape(path: str, low_rank: LowRank, shape: tuple[int, ...]) -> None:
    """Raises UnsupportedError unless the adapter fits a matrix of this shape."""
    a, b = tuple(low_rank.a.shape), tuple(low_rank.b.shape)
    fits = len(a) == len(b) == 2 and a[0] == b[1] and (b[0], a[1]) == shape
    if not fits or (low_rank.magnitude is not None and tuple(low_rank.magnitude.shape) != shape[:1]):
        raise UnsupportedError(f"{path} has the shape {shape}, an adapter for it has A {a} and B {b}",
                               hint="it was made for another model")
    if path == EMBEDDING and low_rank.magnitude is not None:
        raise UnsupportedError("the adapter has magnitudes (DoRA) on the embedding; allowed are A and B alone",
                               hint="train it without DoRA, or leave embed_tokens out")


def matrix_shapes(config: Config) -> Mapping[str, tuple[int, int]]:
    """(out, in) of the matrices of a plain block: grouped-query attention and a SwiGLU feed-forward."""
    width, q, kv = config.width, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {"attention.wq": (q, width), "attention.wk": (kv, width), "attention.wv": (kv, width),
            "attention.wo": (width, q), "feed_forward.w1": (config.ffn_width, width),
            "feed_forward.w3": (config.ffn_width, width), "feed_forward.w2": (width, config.ffn_width)}


def _has(config: Config, index: int, tail: str) -> bool:
    if tail.startswith("attention."):
        return config.latent is None
    return config.experts is None or index < config.experts.num_dense_layers
