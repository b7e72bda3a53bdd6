"""config.json of Hugging Face checkpoints: the decoder, the vision tower and the quantisation that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from brise.checkpoint.config_fields import ConfigFields, Plain
from brise.checkpoint.safetensors.hf_rope import read_rope
from brise.checkpoint.safetensors.parsed_config import BREAK_TOKEN, END_TOKEN, VISION_NORM_EPS, Description
from brise.checkpoint.safetensors.quantization import scale_block
from brise.errors import UnsupportedError, bad_value
from brise.models.config import Config, Experts, Latent
from brise.models.pixtral import NUM_CHANNELS, VisionConfig

ModelType = Literal["llama", "mistral", "ministral3", "mistral4", "qwen2", "qwen3"]

# What transformers leaves out of a file because its class has the same value: the fields that change a model.
ROPE_3 = MappingProxyType({
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1})
ROPE_4 = MappingProxyType({**ROPE_3, "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192})
DENSE = MappingProxyType({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32})
DEFAULTS: Mapping[ModelType, Mapping[str, object]] = MappingProxyType({
    "llama": {**DENSE, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048,
              "rms_norm_eps": 1e-6},
    "mistral": {**DENSE, "vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8,
                "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "sliding_window": 4096},
    "ministral3": {**DENSE, "vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34,
                   "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
                   "rms_norm_eps": 1e-5, "rope_parameters": ROPE_3},
    "mistral4": {**DENSE, "vocab_size": 131072, "intermediate_size": 12288, "num_hidden_layers": 36,
                 "moe_intermediate_size": 2048, "n_shared_experts": 1, "n_routed_experts": 128,
                 "num_experts_per_tok": 4, "first_k_dense_replace": 0, "kv_lora_rank": 256, "q_lora_rank": 1024,
                 "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 128, "rms_norm_eps": 1e-6,
                 "max_position_embeddings": 1048576, "rope_parameters": ROPE_4},
    "qwen2": {**DENSE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
              "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
    "qwen3": {**DENSE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
              "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
})
VISION_DEFAULTS = MappingProxyType({
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 1024, "patch_size": 16})

# Values with which a key changes nothing, and keys that never do: notes, and what text and sampling read.
NEUTRAL: Mapping[str, tuple[Plain, ...]] = MappingProxyType({
    "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "rope_interleave": (True,),
    "norm_topk_prob": (True,), "n_group": (1,), "topk_group": (1,), "partial_rotary_factor": (1,),
    "is_decoder": (False, True), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,), "chunk_size_feed_forward": (0,), "output_router_logits": (False,),
    "num_nextn_predict_layers": (0,)})
NOTES = frozenset({
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
    "_attn_implementation_autoset", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "initializer_range", "use_cache", "tie_word_embeddings", "pretraining_tp",
    "max_window_layers", "qk_head_dim", "is_composition", "return_dict", "output_hidden_states",
    "output_attentions", "torchscript", "use_bfloat16", "pruned_heads", "id2label", "label2id", "problem_type",
    "finetuning_task", "tokenizer_class", "prefix", "task_specific_params", "tf_legacy_loss", "max_length",
    "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "vocab_size",
    "router_aux_loss_coef", "attention_dropout"})
WRAPPER_NEUTRAL: Mapping[str, tuple[Plain, ...]] = MappingProxyType({
    **NEUTRAL, "vision_feature_layer": (-1,), "projector_hidden_act": ("gelu",), "multimodal_projector_bias": (False,)})


def read_config(values: Mapping[str, object]) -> Description:
    """What the object of a config.json says; UnsupportedError names a model or key that brise does not run."""
    top = ConfigFields(values, "")
    for architecture in top.strings("architectures"):
        refuse_draft(architecture)
    block = scale_block(top.section("quantization_config")) if top.has("quantization_config") else None
    kind = top.text("model_type")
    if kind != "mistral3":
        config = _decoder(ConfigFields(values, "", DEFAULTS[_known(kind)]), _known(kind), {"quantization_config"})
        return Description(config, None, block)
    inner = top.section("text_config")
    model_type = _known(inner.text("model_type", default="mistral"))
    if block is None and inner.has("quantization_config"):
        block = scale_block(inner.section("quantization_config"))
    config = _decoder(top.section("text_config", defaults=DEFAULTS[model_type]), model_type, {"quantization_config"})
    vision = _vision(top, config) if top.has("vision_config") else None
    top.refuse_rest(WRAPPER_NEUTRAL, NOTES)
    return Description(config, vision, block)


def refuse_draft(name: str) -> None:
    """Raises for a draft model of speculative decoding, which is no model of its own."""
    if "eagle" in name.lower():
        raise UnsupportedError(f"{name} belongs to an EAGLE draft, which brise does not implement",
                               hint="load the model that the draft was made for")


def _known(kind: str) -> ModelType:
    for model_type in DEFAULTS:
        if kind == model_type:
            return model_type
    raise UnsupportedError(f"model_type is {kind!r}, allowed are {', '.join(DEFAULTS)} and mistral3")


def _decoder(fields: ConfigFields, model_type: ModelType, also_read: set[str]) -> Config:
    width, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    max_context = fields.integer("max_position_embeddings")
    latent = _latent(fields) if model_type == "mistral4" else None
    rope_dim = fields.integer("qk_rope_head_dim") if latent is not None else None
    head_dim = _head_dim(fields, width, num_heads) if rope_dim is None or latent is None else rope_dim + latent.nope_dim
    num_kv_heads = 1 if latent is not None else fields.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of the {num_heads} query heads")
    layout: Literal["half", "interleaved"] = "half" if model_type in ("qwen2", "qwen3") else "interleaved"
    rope, temperature = read_rope(fields, rope_dim or head_dim, head_dim, layout, max_context,
                                  has_temperature=model_type in ("ministral3", "mistral4"))
    num_layers = fields.integer("num_hidden_layers")
    config = Config(
        family=model_type, vocab_size=fields.integer("vocab_size"), width=width, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        ffn_width=fields.integer("intermediate_size"), norm_eps=fields.number("rms_norm_eps"), rope=rope,
        max_context=max_context, sliding_window=_window(fields, model_type, num_layers, max_context),
        query_temperature=temperature, latent=latent, experts=_experts(fields) if latent is not None else None)
    # With a latent these say what the sizes above say already: heads of keys are made from it.
    fields.refuse_rest(NEUTRAL, NOTES | also_read | ({"num_key_value_heads", "head_dim"} if latent else set()))
    return config


def _head_dim(fields: ConfigFields, width: int, num_heads: int) -> int:
    if not fields.has("head_dim") and width % num_heads:
        raise fields.wrong("num_attention_heads", f"a divisor of the width {width}")
    head_dim = fields.integer("head_dim", default=width // num_heads)
    if head_dim % 2:
        raise fields.wrong("head_dim", "an even number")
    return head_dim


def _latent(fields: ConfigFields) -> Latent:
    return Latent(fields.integer("q_lora_rank"), fields.integer("kv_lora_rank"), fields.integer("qk_nope_head_dim"),
                  fields.integer("v_head_dim"))


def _experts(fields: ConfigFields) -> Experts:
    count, per_token = fields.integer("n_routed_experts", "num_local_experts"), fields.integer("num_experts_per_tok")
    if per_token > count:
        raise fields.wrong("num_experts_per_tok", f"at most {count}, the number of experts")
    width = fields.integer("moe_intermediate_size")
    return Experts(
        count, per_token, width, shared_width=width * fields.integer("n_shared_experts", least=0),
        num_dense_layers=fields.integer("first_k_dense_replace", least=0),
        scale=fields.number("routed_scaling_factor", default=1.0))


def _window(fields: ConfigFields, model_type: ModelType, num_layers: int, max_context: int) -> int | None:
    """The sliding window if it is smaller than the context; it must be the same in all layers."""
    has_window = fields.has("sliding_window") and (
        model_type not in ("qwen2", "qwen3") or fields.flag("use_sliding_window", default=False))
    fields.flag("use_sliding_window", default=False)
    window = fields.integer("sliding_window") if has_window else None
    if window is None or window >= max_context:
        window = None
    kinds = fields.strings("layer_types")
    if model_type in ("qwen2", "qwen3") and window is not None and not kinds:
        spared = fields.integer("max_window_layers", default=28, least=0)
        kinds = ["full_attention"] * spared + ["sliding_attention"] * (num_layers - spared)
    allowed = "full_attention" if window is None else "sliding_attention"
    if set(kinds[:num_layers]) == {"full_attention"}:
        return None
    if kinds and any(kind != allowed for kind in kinds):
        raise fields.refused("layer_types" if fields.has("layer_types") else "max_window_layers",
                             f"{allowed!r} in every layer")
    return window


def _vision(top: ConfigFields, config: Config) -> VisionConfig:
    fields = top.section("vision_config", defaults=VISION_DEFAULTS)
    if fields.text("model_type", default="pixtral") != "pixtral":
        raise fields.refused("model_type", "'pixtral'")
    if fields.integer("num_channels", default=NUM_CHANNELS) != NUM_CHANNELS:
        raise fields.refused("num_channels", NUM_CHANNELS)
    width, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    theta = _vision_theta(fields)
    vision = VisionConfig(
        width=width, num_layers=fields.integer("num_hidden_layers"), num_heads=num_heads,
        head_dim=_head_dim(fields, width, num_heads), ffn_width=fields.integer("intermediate_size"),
        patch_size=fields.integer("patch_size"), image_size=fields.integer("image_size"),
        merge=top.integer("spatial_merge_size", default=2), norm_eps=VISION_NORM_EPS,
        projector_norm_eps=config.norm_eps, rope_theta=theta, text_width=config.width,
        image_token=top.integer("image_token_index", "image_token_id", default=10, least=0),
        break_token=BREAK_TOKEN, end_token=END_TOKEN)
    if vision.head_dim % 4:
        raise bad_value("vision_config.head_dim", vision.head_dim, "a multiple of 4")
    fields.refuse_rest(NEUTRAL, NOTES)
    return vision


def _vision_theta(fields: ConfigFields) -> float:
    if not fields.has("rope_parameters"):
        return fields.number("rope_theta", default=10000.0)
    rope = fields.section("rope_parameters")
    if rope.text("rope_type", "type", default="default") not in ("default", "axial"):
        raise rope.refused("rope_type", "'default' or 'axial'")
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=10000.0))
    rope.refuse_rest({}, ())
    return theta
