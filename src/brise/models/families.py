"""Describes the model families: what the block of each has, and what every file format calls its sizes and tensors.

A family that shares the block of another is one row of FAMILIES. Readers and writers of GGUF, of Hugging Face's folders
and of Mistral's own all use these tables; checkpoint/read_decoder.py makes a model from them.
Sources: transformers 5.23.0 (classes and their defaults), llama.cpp's and `gguf`'s names, Mistral's params.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal

from brise.errors import UnsupportedError
from brise.models.config import Activation, Config, Experts
from brise.models.rope import Layout

Format = Literal["gguf", "hf", "native"]  # native: Mistral's own, params.json and consolidated.safetensors
# What YaRN does besides scaling frequencies. "plain": cos and sin are multiplied by 0.1 ln(factor) + 1. "mscale": the
# keys mscale and mscale_all_dim change that factor. "softmax": there is no factor, and the one that llama.cpp puts on
# the softmax scale must be undone.
YarnKeys = Literal["plain", "mscale", "softmax"]


@dataclass(frozen=True)
class Names:
    """What one thing is called in each format; the first of several spellings is written, () where there is none."""

    gguf: tuple[str, ...]
    hf: tuple[str, ...]
    native: tuple[str, ...]

    def of(self, format: Format) -> tuple[str, ...]:
        match format:
            case "gguf":
                return self.gguf
            case "hf":
                return self.hf
            case "native":
                return self.native


def _tensor(gguf: str, hf: str, native: str = "") -> Names:
    return Names((gguf,) if gguf else (), (hf,), (native,) if native else ())


# Matrices that some families' files hold as one: the rows of the first, then those of the next.
JOINED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "attention.wq_wk_wv": ("attention.wq", "attention.wk", "attention.wv"),
    "feed_forward.w1_w3": ("feed_forward.w1", "feed_forward.w3")})


@dataclass(frozen=True)
class ModelFamily:
    """One family. `hf_class` is transformers' name of it without ForCausalLM.

    `rope_layout` is the order of rope pairs in memory and in GGUF. Hugging Face's folders have halves, except for
    latent attention, whose pairs are neighbours in every file.
    """

    gguf_architecture: str
    rope_layout: Layout
    hf_class: str
    hf_defaults: Mapping[str, object]  # what transformers leaves out of a file, because its class has the same value
    hf_constants: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))  # written, never changed
    native_keys: tuple[str, ...] | None = None  # of a params.json of this family, one of them; (): none
    has_qkv_bias: bool = False
    has_head_norms: bool = False  # of queries and keys
    has_latent_attention: bool = False
    has_experts: bool = False  # with latent attention they have a width of their own, else that of a feed-forward
    has_query_temperature: bool = False
    has_window: bool = False  # sliding, the same in all layers
    window_spares_layers: bool = False  # with use_sliding_window; no GGUF file says which
    yarn: YarnKeys = "plain"
    other_gguf_architectures: tuple[str, ...] = ()  # read as well, never written
    no_rope_interval: int | None = None  # every such layer has no rotary positions; GGUF has no key for it
    full_interval: int | None = None  # every such layer sees all tokens, the others have a window and another rope
    theta: float = 10000.0  # rotary base where a config.json has none
    window_theta: float = 10000.0  # of the layers with a window, where they have a rope of their own
    activation: Activation = "silu"
    has_post_norms: bool = False  # of what attention and feed-forward add
    has_norms_less_one: bool = False  # Hugging Face's files hold weight - 1; GGUF and memory hold the weight
    scales_embedding: bool = False  # by the root of the width
    has_stretched_context: bool = False  # the context that files state is the one with linear scaling
    has_partial_rotary: bool = False  # a file may say that only the first part of a head is rotated
    has_multipliers: bool = False  # of embeddings, softmax, residual stream and logits; rotary positions may be missing
    hf_layer_types: bool = False  # its class has other layers than attention, and experts, unless a file says otherwise
    hf_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # its own, by the paths of KEYS
    hf_notes: tuple[str, ...] = ()  # what names of keys begin with that are there for layers it does not have
    # Its own names, over LAYER_TENSORS. A path of JOINED says that its files hold these matrices as one.
    tensors: Mapping[str, Names] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def gguf_architectures(self) -> tuple[str, ...]:
        """Every name of the family in GGUF files; the first is written."""
        return self.gguf_architecture, *self.other_gguf_architectures

    def joined(self, format: Format) -> Mapping[str, str]:
        """The names of the matrices that files of this format hold as one, by their paths in JOINED."""
        return {path: self.tensors[path].of(format)[0] for path in JOINED
                if path in self.tensors and self.tensors[path].of(format)}

    def layers_without_rope(self, num_layers: int) -> tuple[int, ...]:
        """The layers without rotary positions, unless a file says otherwise."""
        interval = self.no_rope_interval
        return () if interval is None else tuple(range(interval - 1, num_layers, interval))

    def full_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers that see all tokens beside layers with a window, unless a file says otherwise."""
        interval = self.full_interval
        return () if interval is None else tuple(range(interval - 1, num_layers, interval))


_DENSE = MappingProxyType({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32})
_GRANITE = MappingProxyType({
    **_DENSE, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0})
_ROPE_3 = MappingProxyType({
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1})
_ROPE_4 = MappingProxyType({**_ROPE_3, "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192})

# By Config.family, which is `model_type` of a config.json.
FAMILIES: Mapping[str, ModelFamily] = MappingProxyType({
    "llama": ModelFamily(
        gguf_architecture="llama", rope_layout="interleaved", hf_class="Llama",
        hf_defaults={
            **_DENSE, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6},
        hf_constants={"attention_bias": False, "mlp_bias": False}),
    "mistral": ModelFamily(
        gguf_architecture="llama", rope_layout="interleaved", hf_class="Mistral",
        hf_defaults={
            **_DENSE, "vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "sliding_window": 4096},
        native_keys=(), has_window=True),
    "ministral3": ModelFamily(
        gguf_architecture="mistral3", rope_layout="interleaved", hf_class="Ministral3",
        hf_defaults={
            **_DENSE, "vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5,
            "rope_parameters": _ROPE_3},
        native_keys=("yarn", "llama_4_scaling"), has_query_temperature=True, has_window=True, yarn="mscale"),
    "mixtral": ModelFamily(
        gguf_architecture="llama", rope_layout="interleaved", hf_class="Mixtral",
        hf_defaults={
            **_DENSE, "vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 1e6,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
        native_keys=("moe",), has_experts=True, has_window=True),
    "mistral4": ModelFamily(
        gguf_architecture="mistral4", rope_layout="interleaved", hf_class="Mistral4",
        hf_defaults={
            **_DENSE, "vocab_size": 131072, "intermediate_size": 12288, "num_hidden_layers": 36,
            "moe_intermediate_size": 2048, "n_shared_experts": 1, "n_routed_experts": 128, "num_experts_per_tok": 4,
            "first_k_dense_replace": 0, "kv_lora_rank": 256, "q_lora_rank": 1024, "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 64, "v_head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 1048576,
            "rope_parameters": _ROPE_4},
        hf_constants={"rope_interleave": True, "attention_bias": False},
        native_keys=("kv_lora_rank",), has_latent_attention=True, has_experts=True, has_query_temperature=True,
        yarn="softmax", other_gguf_architectures=("deepseek2",)),
    "qwen2": ModelFamily(
        gguf_architecture="qwen2", rope_layout="half", hf_class="Qwen2",
        hf_defaults={
            **_DENSE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
        hf_constants={"use_sliding_window": False}, has_qkv_bias=True, window_spares_layers=True),
    "qwen3": ModelFamily(
        gguf_architecture="qwen3", rope_layout="half", hf_class="Qwen3",
        hf_defaults={
            **_DENSE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
        hf_constants={"use_sliding_window": False}, has_head_norms=True, window_spares_layers=True),
    "smollm3": ModelFamily(
        gguf_architecture="smollm3", rope_layout="interleaved", hf_class="SmolLM3",
        hf_defaults={
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_theta": 2e6, "no_rope_layer_interval": 4},
        hf_constants={"attention_bias": False, "mlp_bias": False, "use_sliding_window": False},
        window_spares_layers=True, no_rope_interval=4),
    "phi3": ModelFamily(  # and Phi-4-mini
        gguf_architecture="phi3", rope_layout="half", hf_class="Phi3",
        hf_defaults={
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5},
        has_window=True, has_partial_rotary=True, hf_notes=("auto_map",),  # of code that transformers has by now
        tensors={"attention.wq_wk_wv": _tensor("attn_qkv", "self_attn.qkv_proj"),
                 "feed_forward.w1_w3": _tensor("ffn_up", "mlp.gate_up_proj")}),
    "granite": ModelFamily(
        gguf_architecture="granite", rope_layout="interleaved", hf_class="Granite",
        hf_defaults={**_GRANITE, "intermediate_size": 11008},
        hf_constants={"attention_bias": False, "mlp_bias": False}, has_multipliers=True,
        other_gguf_architectures=("granitehybrid",)),  # of dense Granite 4, by older converters
    # Granite 4 without Mamba layers and without experts: the block of Granite, under names of its own.
    "granitemoehybrid": ModelFamily(
        gguf_architecture="granite", rope_layout="interleaved", hf_class="GraniteMoeHybrid",
        hf_defaults={**_GRANITE, "shared_intermediate_size": 1024, "num_local_experts": 8, "num_experts_per_tok": 2},
        hf_constants={"attention_bias": False, "num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 1},
        has_multipliers=True, hf_layer_types=True, hf_keys={"ffn_width": "shared_intermediate_size"},
        hf_notes=("mamba_", "time_step_", "intermediate_size"),
        tensors={"feed_forward.w1_w3": _tensor("", "shared_mlp.input_linear"),
                 "feed_forward.w2": _tensor("ffn_down", "shared_mlp.output_linear")}),
    "gemma3_text": ModelFamily(
        gguf_architecture="gemma3", rope_layout="half", hf_class="Gemma3",
        hf_defaults={
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096},
        hf_constants={"attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"},
        has_head_norms=True, has_window=True, full_interval=6, activation="gelu", has_post_norms=True,
        has_norms_less_one=True, scales_embedding=True, has_stretched_context=True, theta=1e6,
        tensors={"attention_post_norm": _tensor("post_attention_norm", "post_attention_layernorm"),
                 "ffn_norm": _tensor("ffn_norm", "pre_feedforward_layernorm"),
                 "ffn_post_norm": _tensor("post_ffw_norm", "post_feedforward_layernorm")}),
})


# Numbers of a Config by the path of their attribute. Formats differ in how they say the rest (rope, windows).
KEYS: Mapping[str, Names] = MappingProxyType({
    "vocab_size": Names(("vocab_size",), ("vocab_size",), ("vocab_size",)),
    "num_layers": Names(("block_count",), ("num_hidden_layers",), ("n_layers",)),
    "max_context": Names(("context_length",), ("max_position_embeddings",), ("max_position_embeddings", "max_seq_len")),
    "width": Names(("embedding_length",), ("hidden_size",), ("dim",)),
    "ffn_width": Names(("feed_forward_length",), ("intermediate_size",), ("hidden_dim",)),
    "num_heads": Names(("attention.head_count",), ("num_attention_heads",), ("n_heads",)),
    "num_kv_heads": Names(("attention.head_count_kv",), ("num_key_value_heads",), ("n_kv_heads",)),
    "head_dim": Names(("attention.key_length",), ("head_dim",), ("head_dim",)),
    "norm_eps": Names(("attention.layer_norm_rms_epsilon",), ("rms_norm_eps",), ("norm_eps",)),
    "embedding_scale": Names(("embedding_scale",), ("embedding_multiplier",), ()),
    "residual_scale": Names(("residual_scale",), ("residual_multiplier",), ()),
    "attention_scale": Names(("attention.scale",), ("attention_multiplier",), ()),
    "logits_divisor": Names(("logit_scale",), ("logits_scaling",), ()),
    "rope.dim": Names(("rope.dimension_count",), ("qk_rope_head_dim",), ("qk_rope_head_dim",)),
    "latent.query_rank": Names(("attention.q_lora_rank",), ("q_lora_rank",), ("q_lora_rank",)),
    "latent.rank": Names(("attention.kv_lora_rank",), ("kv_lora_rank",), ("kv_lora_rank",)),
    "latent.nope_dim": Names((), ("qk_nope_head_dim",), ("qk_nope_head_dim",)),
    "latent.value_dim": Names(("attention.value_length_mla",), ("v_head_dim",), ("v_head_dim",)),
    "experts.count": Names(("expert_count",), ("n_routed_experts", "num_local_experts"), ("num_experts",)),
    "experts.per_token": Names(("expert_used_count",), ("num_experts_per_tok",), ("num_experts_per_tok",)),
    "experts.width": Names(("expert_feed_forward_length",), ("moe_intermediate_size",), ("expert_hidden_dim",)),
    "experts.num_shared": Names(("expert_shared_count",), ("n_shared_experts",), ("num_shared_experts",)),
    "experts.num_dense_layers": Names(("leading_dense_block_count",), ("first_k_dense_replace",),
                                      ("first_k_dense_replace",)),
    "experts.scale": Names(("expert_weights_scale",), ("routed_scaling_factor",), ("routed_scale",)),
})


MULTIPLIERS = ("embedding_scale", "residual_scale", "logits_divisor")  # fields of the Config


def keys_of(family: str, path: str, format: Format) -> tuple[str, ...]:
    """What a format calls a number of the config of this family; the first is written."""
    own = FAMILIES[family].hf_keys
    return (own[path],) if format == "hf" and path in own else KEYS[path].of(format)


def written_keys(config: Config, format: Format, *paths: str) -> dict[str, Any]:
    """These numbers of the config under the names of a format."""
    return {keys_of(config.family, path, format)[0]: attrgetter(path)(config) for path in paths}


def num_shared(experts: Experts, holds: str) -> int:
    """The width of the shared expert in widths of the others."""
    shared = experts.shared_width // experts.width
    if shared * experts.width != experts.shared_width:
        raise UnsupportedError(f"the shared expert is {experts.shared_width} wide; {holds} multiples of the experts' "
                               f"{experts.width}")
    return shared


# What follows the number of a layer: blk.N, model.layers.N and layers.N. A weight is the tensor NAME.weight, a bias
# NAME.bias. By the path in models/weights.py; `experts` are the stacks of a mixture.
LAYER_TENSORS: Mapping[str, Names] = MappingProxyType({
    "attention_norm": _tensor("attn_norm", "input_layernorm", "attention_norm"),
    "ffn_norm": _tensor("ffn_norm", "post_attention_layernorm", "ffn_norm"),
    "attention_post_norm": Names(("post_attention_norm",), (), ()),  # Hugging Face's names are the family's own
    "ffn_post_norm": Names(("post_ffw_norm",), (), ()),
    "attention.wq": _tensor("attn_q", "self_attn.q_proj", "attention.wq"),
    "attention.wk": _tensor("attn_k", "self_attn.k_proj", "attention.wk"),
    "attention.wv": _tensor("attn_v", "self_attn.v_proj", "attention.wv"),
    "attention.wo": _tensor("attn_output", "self_attn.o_proj", "attention.wo"),
    "attention.bq": _tensor("attn_q", "self_attn.q_proj"),
    "attention.bk": _tensor("attn_k", "self_attn.k_proj"),
    "attention.bv": _tensor("attn_v", "self_attn.v_proj"),
    "attention.q_norm": _tensor("attn_q_norm", "self_attn.q_norm"),
    "attention.k_norm": _tensor("attn_k_norm", "self_attn.k_norm"),
    "attention.wq_a": _tensor("attn_q_a", "self_attn.q_a_proj", "attention.wq_a"),
    "attention.q_a_norm": _tensor("attn_q_a_norm", "self_attn.q_a_layernorm", "attention.q_a_norm"),
    "attention.wq_b": _tensor("attn_q_b", "self_attn.q_b_proj", "attention.wq_b"),
    "attention.wkv_a": _tensor("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", "attention.wkv_a_with_mqa"),
    "attention.kv_a_norm": _tensor("attn_kv_a_norm", "self_attn.kv_a_layernorm", "attention.kv_a_norm"),
    "attention.wkv_b": _tensor("attn_kv_b", "self_attn.kv_b_proj", "attention.wkv_b"),  # wk_b and wv_b in one
    "attention.wk_b": Names(("attn_k_b",), (), ()),
    "attention.wv_b": Names(("attn_v_b",), (), ()),
    "feed_forward.w1": _tensor("ffn_gate", "mlp.gate_proj", "feed_forward.w1"),
    "feed_forward.w3": _tensor("ffn_up", "mlp.up_proj", "feed_forward.w3"),
    "feed_forward.w2": _tensor("ffn_down", "mlp.down_proj", "feed_forward.w2"),
    "feed_forward.router": Names(("ffn_gate_inp",), ("mlp.gate", "block_sparse_moe.gate"),
                                 ("gate", "feed_forward.gate")),  # the second spellings are Mixtral's
    "feed_forward.experts": Names((), ("mlp.experts", "block_sparse_moe.experts"), ("experts", "feed_forward.experts")),
    "feed_forward.experts.w1": Names(("ffn_gate_exps",), ("gate_proj", "w1"), ("w1",)),  # after `experts`, a number
    "feed_forward.experts.w3": Names(("ffn_up_exps",), ("up_proj", "w3"), ("w3",)),
    "feed_forward.experts.w2": Names(("ffn_down_exps",), ("down_proj", "w2"), ("w2",)),
    "feed_forward.experts.w1_w3": Names(("ffn_gate_up_exps",), (), ()),  # the rows of w1, then those of w3
    "feed_forward.shared.w1": _tensor("ffn_gate_shexp", "mlp.shared_experts.gate_proj", "shared_experts.w1"),
    "feed_forward.shared.w3": _tensor("ffn_up_shexp", "mlp.shared_experts.up_proj", "shared_experts.w3"),
    "feed_forward.shared.w2": _tensor("ffn_down_shexp", "mlp.shared_experts.down_proj", "shared_experts.w2"),
})
# Whisper's encoder in Voxtral, likewise, after a.blk.N, audio_tower.layers.N and
# mm_whisper_embeddings.whisper_encoder.transformer.layers.N; NAME.bias where the path ends in _bias or begins with b.
AUDIO_LAYER_TENSORS: Mapping[str, Names] = MappingProxyType({
    "attention_norm": _tensor("ln1", "self_attn_layer_norm", "attention_norm"),
    "wq": _tensor("attn_q", "self_attn.q_proj", "attention.wq"),
    "wk": _tensor("attn_k", "self_attn.k_proj", "attention.wk"),
    "wv": _tensor("attn_v", "self_attn.v_proj", "attention.wv"),
    "wo": _tensor("attn_out", "self_attn.out_proj", "attention.wo"),
    "ffn_norm": _tensor("ln2", "final_layer_norm", "ffn_norm"),
    "w1": _tensor("ffn_up", "fc1", "feed_forward.w1"),
    "w2": _tensor("ffn_down", "fc2", "feed_forward.w2")})
# Of encoder and projector, by their full names. Mistral's own files have no positions: they are sinusoids.
AUDIO_TENSORS: Mapping[str, Names] = MappingProxyType({
    "conv1": _tensor("a.conv1d.1", "audio_tower.conv1", "mm_whisper_embeddings.whisper_encoder.conv_layers.0"),
    "conv2": _tensor("a.conv1d.2", "audio_tower.conv2", "mm_whisper_embeddings.whisper_encoder.conv_layers.1"),
    "positions": _tensor("a.position_embd", "audio_tower.embed_positions"),
    "norm": _tensor("a.post_ln", "audio_tower.layer_norm", "mm_whisper_embeddings.whisper_encoder.transformer.norm"),
    "w_in": _tensor("mm.a.mlp.1", "multi_modal_projector.linear_1",
                    "mm_whisper_embeddings.audio_language_projection.0"),
    "w_out": _tensor("mm.a.mlp.2", "multi_modal_projector.linear_2",
                     "mm_whisper_embeddings.audio_language_projection.2")})
AUDIO_LAYERS = Names(("a.blk",), ("audio_tower.layers",),
                     ("mm_whisper_embeddings.whisper_encoder.transformer.layers",))


WHOLE_TENSORS: Mapping[str, Names] = MappingProxyType({
    "tok_embeddings": _tensor("token_embd", "embed_tokens", "tok_embeddings"),
    "norm": _tensor("output_norm", "norm", "norm"),
    "output": _tensor("output", "lm_head", "output")})

# SigLIP's encoder and Gemma 3's projector, in an mmproj file and in Hugging Face's folders, where a prefix may stand
# before a name. A bias has the name of its weight; the projection has no `.weight` in the folders.
SIGLIP_TENSORS: Mapping[str, Names] = MappingProxyType({
    "patch_conv": _tensor("v.patch_embd", "vision_tower.embeddings.patch_embedding"),
    "positions": _tensor("v.position_embd", "vision_tower.embeddings.position_embedding"),
    "layers": _tensor("v.blk", "vision_tower.encoder.layers"),
    "norm": _tensor("v.post_ln", "vision_tower.post_layernorm"),
    "pool_norm": _tensor("mm.soft_emb_norm", "multi_modal_projector.mm_soft_emb_norm"),
    "projection": _tensor("mm.input_projection", "multi_modal_projector.mm_input_projection_weight")})
SIGLIP_LAYER_TENSORS: Mapping[str, Names] = MappingProxyType({
    "attention_norm": _tensor("ln1", "layer_norm1"), "ffn_norm": _tensor("ln2", "layer_norm2"),
    "wq": _tensor("attn_q", "self_attn.q_proj"), "wk": _tensor("attn_k", "self_attn.k_proj"),
    "wv": _tensor("attn_v", "self_attn.v_proj"), "wo": _tensor("attn_out", "self_attn.out_proj"),
    "w1": _tensor("ffn_up", "mlp.fc1"), "w2": _tensor("ffn_down", "mlp.fc2")})
