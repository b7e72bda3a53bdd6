"""The GGUF name of every weight of a decoder; gguf_model.py is the other direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from brise.models.weights import Stack, Weight, Weights, place

_WHOLE: Mapping[str, str] = MappingProxyType({
    "tok_embeddings": "token_embd.weight", "norm": "output_norm.weight", "output": "output.weight"})

_IN_LAYER: Mapping[str, str] = MappingProxyType({
    "attention_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight",
    "attention.wq": "attn_q.weight", "attention.wk": "attn_k.weight", "attention.wv": "attn_v.weight",
    "attention.wo": "attn_output.weight", "attention.bq": "attn_q.bias", "attention.bk": "attn_k.bias",
    "attention.bv": "attn_v.bias", "attention.q_norm": "attn_q_norm.weight", "attention.k_norm": "attn_k_norm.weight",
    "attention.wq_a": "attn_q_a.weight", "attention.q_a_norm": "attn_q_a_norm.weight",
    "attention.wq_b": "attn_q_b.weight", "attention.wkv_a": "attn_kv_a_mqa.weight",
    "attention.kv_a_norm": "attn_kv_a_norm.weight", "attention.wk_b": "attn_k_b.weight",
    "attention.wv_b": "attn_v_b.weight",
    "feed_forward.w1": "ffn_gate.weight", "feed_forward.w2": "ffn_down.weight", "feed_forward.w3": "ffn_up.weight",
    "feed_forward.router": "ffn_gate_inp.weight", "feed_forward.shared.w1": "ffn_gate_shexp.weight",
    "feed_forward.shared.w2": "ffn_down_shexp.weight", "feed_forward.shared.w3": "ffn_up_shexp.weight"})

_EXPERTS: Mapping[str, str] = MappingProxyType({
    "feed_forward.w1": "ffn_gate_exps.weight", "feed_forward.w2": "ffn_down_exps.weight",
    "feed_forward.w3": "ffn_up_exps.weight"})


def gguf_name(path: str, weight: Weight) -> str:
    """layers.3.attention.wq as blk.3.attn_q.weight; `path` is a name that `place` gives."""
    if path in _WHOLE:
        return _WHOLE[path]
    _, layer, rest = path.split(".", 2)
    table = _EXPERTS if isinstance(weight, Stack) and rest in _EXPERTS else _IN_LAYER
    return f"blk.{layer}.{table[rest]}"


def named_weights(weights: Weights) -> Iterator[tuple[str, Weight]]:
    """Every weight under its GGUF name, in file order; a tied output once, as the embedding."""
    found: list[tuple[str, Weight]] = []

    def note(path: str, weight: Weight) -> Weight:
        found.append((gguf_name(path, weight), weight))
        return weight

    place(weights, note)
    yield from found
