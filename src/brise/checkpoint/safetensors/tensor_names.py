"""Names weights of safetensors files: Hugging Face's spellings and Mistral's own.

A weight's path in brise (layers.3.attention.wq) becomes a module of the file (model.layers.3.self_attn.q_proj),
whose tensors are `module.weight` and, where it is quantised, scales beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from brise.errors import CheckpointError
from brise.models.families import FAMILIES, LAYER_TENSORS, WHOLE_TENSORS, Format


@dataclass(frozen=True)
class ModuleNames:
    """`layer` maps what follows `layers.N.`, `whole` the rest. `are_halves`: rope pairs of q and k lie as halves.

    `norms_less_one`: the file holds a norm's weight less 1.
    """

    layers: str  # what stands before a layer's number
    layer: Mapping[str, str]
    whole: Mapping[str, str]
    are_halves: bool
    norms_less_one: bool = False

    def has(self, path: str) -> bool:
        """Whether there is a name for this weight."""
        return path in self.whole if not path.startswith("layers.") else path.split(".", 2)[2] in self.layer

    def module(self, path: str) -> str:
        """The module of a weight."""
        if not path.startswith("layers."):
            return self.whole[path]
        _, number, tail = path.split(".", 2)
        return f"{self.layers}{number}.{self.layer[tail]}"

    def expert(self, path: str, index: int, name: str) -> str:
        """The module of one matrix (w1, w2, w3) of one expert of the mixture at `path`."""
        tail = path.split(".", 2)[2]
        return f"{self.module(f'{path}.experts')}.{index}.{self.layer[f'{tail}.experts.{name}']}"


def _layer_names(format: Format, *, are_mixtral: bool = False) -> Mapping[str, str]:
    """Mixtral's spelling is the second one, where there are two."""
    return MappingProxyType({path: names.of(format)[-1 if are_mixtral else 0]
                             for path, names in LAYER_TENSORS.items() if names.of(format)})


HF_LAYER, HF_MIXTRAL_LAYER = _layer_names("hf"), _layer_names("hf", are_mixtral=True)
NATIVE_LAYER, NATIVE_MIXTRAL_LAYER = _layer_names("native"), _layer_names("native", are_mixtral=True)
HF_MIXTRAL, NATIVE_MIXTRAL = ".block_sparse_moe.", ".feed_forward.experts."  # in names of tensors of these spellings
VISION_LAYER: Mapping[str, str] = MappingProxyType({
    "attention_norm": "attention_norm", "ffn_norm": "ffn_norm",
    "attention.wq": "attention.q_proj", "attention.wk": "attention.k_proj", "attention.wv": "attention.v_proj",
    "attention.wo": "attention.o_proj", "feed_forward.w1": "feed_forward.gate_proj",
    "feed_forward.w2": "feed_forward.down_proj", "feed_forward.w3": "feed_forward.up_proj"})

_NATIVE = ModuleNames("layers.", NATIVE_LAYER, MappingProxyType({
    path: names.native[0] for path, names in WHOLE_TENSORS.items()}), are_halves=False)
NATIVE_VISION = ModuleNames("vision_encoder.transformer.layers.", NATIVE_LAYER, MappingProxyType({
    "patch_conv": "vision_encoder.patch_conv", "ln_pre": "vision_encoder.ln_pre", "norm": "pre_mm_projector_norm",
    "merging_layer": "patch_merger.merging_layer", "w_in": "vision_language_adapter.w_in",
    "w_out": "vision_language_adapter.w_out"}), are_halves=False)

# Of models with a vision encoder (in files, in newer files and to transformers itself) and of those without.
HF_TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
HF_HEADS = ("lm_head", "language_model.lm_head")
HF_VISION_PREFIXES = ("", "model.")
AUDIO_TENSORS = ("audio_tower.", "model.audio_tower.", "mm_whisper_embeddings.whisper_encoder.")
AUDIO_EMBEDDING = "mm_whisper_embeddings.tok_embeddings"  # of Mistral's own files of Voxtral
VISION_TENSORS = ("vision_tower.", "model.vision_tower.", "vision_encoder.")


def native_names(tensors: Collection[str]) -> ModuleNames:
    """The spelling of a file in Mistral's own layout: the experts of Mixtral stand below feed_forward, the embedding of
    Voxtral beside its audio encoder."""
    is_mixtral = any(NATIVE_MIXTRAL in name for name in tensors)
    names = replace(_NATIVE, layer=NATIVE_MIXTRAL_LAYER) if is_mixtral else _NATIVE
    if f"{AUDIO_EMBEDDING}.weight" not in tensors:
        return names
    return replace(names, whole=MappingProxyType({**names.whole, "tok_embeddings": AUDIO_EMBEDDING}))


def hf_layer(family: str) -> Mapping[str, str]:
    """What follows the number of a layer in Hugging Face's files of a family, by the path of the weight."""
    own = FAMILIES[family].tensors
    return {**HF_LAYER, **{path: names.hf[0] for path, names in own.items() if names.hf}}


def hf_names(tensors: Collection[str], family: str, *, is_mixtral: bool = False) -> ModuleNames:
    """The spelling of a Hugging Face file of this family, seen from where its embedding is and what its experts are
    called."""
    layer = HF_MIXTRAL_LAYER if is_mixtral or any(HF_MIXTRAL in name for name in tensors) else hf_layer(family)
    for prefix in HF_TEXT_PREFIXES:
        if f"{prefix}embed_tokens.weight" in tensors:
            head = next((head for head in HF_HEADS if f"{head}.weight" in tensors), HF_HEADS[0])
            whole = {path: f"{prefix}{names.hf[0]}" for path, names in WHOLE_TENSORS.items()} | {"output": head}
            return ModuleNames(f"{prefix}layers.", layer, MappingProxyType(whole), are_halves=True,
                               norms_less_one=FAMILIES[family].has_norms_less_one)
    raise CheckpointError("the embedding is missing", field="embed_tokens.weight",
                          limit=" or ".join(f"{prefix}embed_tokens.weight" for prefix in HF_TEXT_PREFIXES))


def hf_vision_names(tensors: Collection[str]) -> ModuleNames:
    """The spelling of the vision encoder and the projector in a Hugging Face file."""
    prefix = next((prefix for prefix in HF_VISION_PREFIXES if f"{prefix}vision_tower.patch_conv.weight" in tensors), "")
    encoder, projector = f"{prefix}vision_tower", f"{prefix}multi_modal_projector"
    return ModuleNames(f"{encoder}.transformer.layers.", VISION_LAYER, MappingProxyType({
        "patch_conv": f"{encoder}.patch_conv", "ln_pre": f"{encoder}.ln_pre", "norm": f"{projector}.norm",
        "merging_layer": f"{projector}.patch_merger.merging_layer", "w_in": f"{projector}.linear_1",
        "w_out": f"{projector}.linear_2"}), are_halves=True)


def has_vision(tensors: Collection[str]) -> bool:
    """Whether there is a tensor of a vision encoder."""
    return any(name.startswith(VISION_TENSORS) for name in tensors)


def audio_prefix(tensors: Collection[str]) -> str | None:
    """What stands before the names of the audio encoder's tensors; None where there are none."""
    if not any(name.startswith(AUDIO_TENSORS) for name in tensors):
        return None
    return "model." if any(name.startswith("model.audio_tower.") for name in tensors) else ""
