"""What weights are called in safetensors files: Hugging Face's two spellings, and Mistral's own.

A weight's path in brise (layers.3.attention.wq) becomes a module of the file (model.layers.3.self_attn.q_proj),
whose tensors are `module.weight` and, where it is quantised, scales beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from brise.errors import CheckpointError


@dataclass(frozen=True)
class Names:
    """`layer` maps what follows `layers.N.`, `whole` the rest. `are_halves`: rope pairs of q and k lie as halves."""

    layers: str  # what stands before a layer's number
    layer: Mapping[str, str]
    whole: Mapping[str, str]
    are_halves: bool

    def module(self, path: str) -> str:
        """The module of a weight; an expert's path is layers.N.experts.E.w1."""
        if not path.startswith("layers."):
            return self.whole[path]
        _, number, tail = path.split(".", 2)
        if tail.startswith("experts."):
            _, expert, name = tail.split(".")
            return f"{self.layers}{number}.{self.layer['experts']}.{expert}.{self.layer['experts.' + name]}"
        return f"{self.layers}{number}.{self.layer[tail]}"


# Native files say wq, w1 and so on, as brise does.
NATIVE_LAYER: Mapping[str, str] = MappingProxyType({
    **{name: name for name in (
        "attention_norm", "ffn_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
        "attention.wq_a", "attention.q_a_norm", "attention.wq_b", "attention.kv_a_norm", "attention.wkv_b",
        "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "experts")},
    "attention.wkv_a": "attention.wkv_a_with_mqa", "router": "gate",
    "experts.w1": "w1", "experts.w2": "w2", "experts.w3": "w3",
    "shared.w1": "shared_experts.w1", "shared.w2": "shared_experts.w2", "shared.w3": "shared_experts.w3"})
HF_LAYER: Mapping[str, str] = MappingProxyType({
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm", "attention.wq_a": "self_attn.q_a_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm", "attention.wq_b": "self_attn.q_b_proj",
    "attention.wkv_a": "self_attn.kv_a_proj_with_mqa", "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj", "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj", "router": "mlp.gate",
    "experts": "mlp.experts", "experts.w1": "gate_proj", "experts.w2": "down_proj", "experts.w3": "up_proj",
    "shared.w1": "mlp.shared_experts.gate_proj", "shared.w2": "mlp.shared_experts.down_proj",
    "shared.w3": "mlp.shared_experts.up_proj"})
VISION_LAYER: Mapping[str, str] = MappingProxyType({
    "attention_norm": "attention_norm", "ffn_norm": "ffn_norm",
    "attention.wq": "attention.q_proj", "attention.wk": "attention.k_proj", "attention.wv": "attention.v_proj",
    "attention.wo": "attention.o_proj", "feed_forward.w1": "feed_forward.gate_proj",
    "feed_forward.w2": "feed_forward.down_proj", "feed_forward.w3": "feed_forward.up_proj"})

NATIVE = Names("layers.", NATIVE_LAYER, MappingProxyType({
    "tok_embeddings": "tok_embeddings", "norm": "norm", "output": "output"}), are_halves=False)
NATIVE_VISION = Names("vision_encoder.transformer.layers.", NATIVE_LAYER, MappingProxyType({
    "patch_conv": "vision_encoder.patch_conv", "ln_pre": "vision_encoder.ln_pre", "norm": "pre_mm_projector_norm",
    "merging_layer": "patch_merger.merging_layer", "w_in": "vision_language_adapter.w_in",
    "w_out": "vision_language_adapter.w_out"}), are_halves=False)

# Text and vision of the files, of newer files and of what models call themselves, and of models without a tower.
HF_TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
HF_HEADS = ("lm_head", "language_model.lm_head")
HF_VISION_PREFIXES = ("", "model.")
VISION_TENSORS = ("vision_tower.", "model.vision_tower.", "vision_encoder.")


def hf_names(tensors: Collection[str]) -> Names:
    """The spelling of a Hugging Face file, seen from where its embedding is."""
    for prefix in HF_TEXT_PREFIXES:
        if f"{prefix}embed_tokens.weight" in tensors:
            head = next((head for head in HF_HEADS if f"{head}.weight" in tensors), HF_HEADS[0])
            whole = {"tok_embeddings": f"{prefix}embed_tokens", "norm": f"{prefix}norm", "output": head}
            return Names(f"{prefix}layers.", HF_LAYER, MappingProxyType(whole), are_halves=True)
    raise CheckpointError("the embedding is missing", field="embed_tokens.weight",
                          limit=" or ".join(f"{prefix}embed_tokens.weight" for prefix in HF_TEXT_PREFIXES))


def hf_vision_names(tensors: Collection[str]) -> Names:
    """The spelling of the tower and the projector in a Hugging Face file."""
    prefix = next((prefix for prefix in HF_VISION_PREFIXES if f"{prefix}vision_tower.patch_conv.weight" in tensors), "")
    tower, projector = f"{prefix}vision_tower", f"{prefix}multi_modal_projector"
    return Names(f"{tower}.transformer.layers.", VISION_LAYER, MappingProxyType({
        "patch_conv": f"{tower}.patch_conv", "ln_pre": f"{tower}.ln_pre", "norm": f"{projector}.norm",
        "merging_layer": f"{projector}.patch_merger.merging_layer", "w_in": f"{projector}.linear_1",
        "w_out": f"{projector}.linear_2"}), are_halves=True)


def has_vision(tensors: Collection[str]) -> bool:
    """Whether there is a tensor of a vision tower."""
    return any(name.startswith(VISION_TENSORS) for name in tensors)
