"""Says what every configuration key is that no reader asks for: one that acts, a note, or an unknown key.

The tables are for config.json (transformers 5.23.0, older versions, the families' public repositories), Mistral's
params.json, GGUF metadata and the sections in them. A key that acts has the value with which it changes nothing, or is
refused by name. A note never changes a number. Of an unknown key the name decides: NUMERIC are the words and STEMS the
syllables of keys that change numbers; PLAIN are words of keys that do not, even with such a word beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from brise.files.fields import KeyTable, Plain
from brise.models.config import Config
from brise.models.families import FAMILIES

# Words of a name, as they stand between underscores, dots and changes of case.
PLAIN = frozenset("""
    init initializer initialization dropout pdrop droprate layerdrop loss aux jitter coef flash sdpa implementation
    impl backend fused train trained training trainer checkpointing gradient grad lr batch dtype precision fp32 fp16
    bf16 version date path dir file files url uri license author organization library hub commit revision repo
    repository tokenizer template language languages tag tags comment readme unsloth eval evaluation benchmark metric
    metrics generation sampling tensor pipeline degree tp dp pp ep plan mesh sharding distributed deepspeed megatron
    fsdp verbose seed decay optimizer note notes merged by
    """.split())
NUMERIC = frozenset("""
    cap capping logit logits rope rot ntk yarn mscale longrope freq frequency freqs sliding swa local global chunk
    chunked scale scales scaling scaler scaled scalar mult factor factors skip parallel activation activations act
    gelu relu silu swish swiglu geglu glu tanh sigmoid softmax moe router routed routing gate gated gates gating topk
    attend qkv query queries kv qk head heads sink sinks clip clipping clamp clamped embedding embeddings embed embd
    emb mamba ssm conv convolution recurrent rnn rwkv linear delta deltanet causal bidirectional position positions
    positional eps epsilon layer layers block blocks loop loops depth width hidden ffn mlp dense dim dims sparse
    sparsity indexer mup mtp nope shared sharing tied tie interval pattern lora adapter adapters rank temperature
    alpha beta gamma mix hyper altup laurel ple offset shift bits symmetric rotation hadamard quant quantization
    quantized transform sandwich nonlinearity score scoring recursion recurrence weight weights xpos mrope encoder
    mask diffusion canon mhc engram lambda meta softplus nsa moba compress compression matformer limit clipped
    """.split())
STEMS = ("softcap", "norm", "bias", "multiplier", "residual", "expert", "theta", "window", "alibi", "rotary", "attn",
         "attention")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+(?:[0-9]+(?![0-9]*[a-z]))?")
_TOKEN_IDS = ("_token_id", "_token_ids", "_token_index")


def changes_numbers(name: str) -> bool:
    """Whether a key of this name, which nobody here knows, must be thought to change what a model computes."""
    name = name[:200]
    words = {word.lower() for word in _WORD.findall(name)}
    words |= {word.rstrip("0123456789") for word in words}
    if words & PLAIN or name.endswith(_TOKEN_IDS):
        return False
    return bool(words & NUMERIC) or any(stem in word for word in words for stem in STEMS)


def _frozen(values: dict[str, tuple[Plain, ...]]) -> Mapping[str, tuple[Plain, ...]]:
    return MappingProxyType(values)


# config.json. Values with which a key changes nothing; the table of a decoder adds those that depend on its sizes.
_HF_NEUTRAL = _frozen({
    "hidden_act": ("silu", "swish"), "hidden_activation": ("silu", "swish"), "activation_function": ("silu", "swish"),
    "mlp_hidden_act": ("silu", "swish"), "activation": ("swiglu", "silu", "swish"), "rms_norm": (True,),
    "attention_bias": (False,), "mlp_bias": (False,), "rope_interleave": (False,), "rope_interleaved": (False,),
    "norm_topk_prob": (True,), "n_group": (1,), "topk_group": (1,), "scoring_func": ("softmax",),
    "topk_method": ("greedy",), "moe_layer_freq": (1,), "partial_rotary_factor": (1,), "rotary_pct": (1,),
    "rope_pct": (1,), "is_encoder_decoder": (False,), "add_cross_attention": (False,), "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,), "num_nextn_predict_layers": (0,), "position_embedding_type": ("rope", "rotary"),
    "is_causal": (True,), "causal": (True,), "use_rope": (True,), "use_rotary": (True,), "use_rms_norm": (True,),
    "norm_type": ("rms_norm", "rmsnorm"), "normalization_function": ("rmsnorm",), "pre_norm": (True,),
    "use_mrope": (False,), "use_sliding_window": (False,),
    "residual_multiplier": (1,), "embedding_multiplier": (1,), "logits_scaling": (1,), "logit_scale": (1, 0),
    "scale_emb": (1,), "residual_scale": (1, 0), "embedding_scale": (1, 0), "rope_ratio": (1,),
    "interpolate_factor": (1,), "full_attn_mod": (1,),  # of Phi-4-mini's own code
    "use_bidirectional_attention": (False,), "auto_map": (), "pruned_heads": (), "is_neox_style": (True,),
    # Flags that take a part of the model away where they are false.
    **dict.fromkeys(("causal_mask", "rotary", "use_rotary_emb", "use_rotary_embeddings", "use_glu", "glu", "gated_mlp",
                     "use_gated_mlp", "use_swiglu", "pre_ln", "final_norm", "final_layernorm", "apply_final_norm",
                     "use_final_norm", "use_residual"), (True,))})
_HF_NOTES = frozenset("""
    architectures model_type dtype torch_dtype transformers_version bos_token_id eos_token_id pad_token_id
    unk_token_id sep_token_id decoder_start_token_id initializer_range use_cache pretraining_tp max_window_layers
    qk_head_dim is_composition return_dict output_hidden_states output_attentions torchscript use_bfloat16 id2label
    label2id problem_type finetuning_task tokenizer_class prefix task_specific_params tf_legacy_loss max_length
    min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens vocab_size
    output_router_logits router_aux_loss_coef attention_dropout is_decoder is_llama_config max_sequence_length
    keys_to_ignore_at_inference attn_implementation cross_attention_hidden_size use_flash_attn residual_in_fp32
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 neftune_noise_alpha classifier_dropout hidden_dropout
    resid_pdrop embd_pdrop attn_pdrop transformers.js_config model_max_length quantization_config n_positions n_ctx
    max_seq_len max_seq_length seq_length is_matryoshka matryoshka_dimensions matryoshka_dims
    """.split())
_NOTE_PREFIXES = ("_", "unsloth_")
_HF = KeyTable(_HF_NEUTRAL, _HF_NOTES, _NOTE_PREFIXES, changes_numbers)

HF_VISION = replace(_HF, neutral=_frozen({
    **_HF_NEUTRAL, "vision_feature_layer": (-1,), "layer_norm_eps": (1e-5,), "rms_norm_eps": (1e-5,)}))
HF_WRAPPER = replace(_HF, neutral=_frozen({
    **_HF_NEUTRAL, "vision_feature_layer": (-1,), "vision_feature_select_strategy": ("full",),
    "projector_hidden_act": ("gelu",), "multimodal_projector_bias": (False,)}))
HF_AUDIO = replace(_HF, neutral=_frozen({
    **_HF_NEUTRAL, "activation_function": ("gelu",), "scale_embedding": (False,), "layer_norm_eps": (1e-5,),
    "is_causal": (False,), "causal": (False,)}))
# In a section on rope or scaling every key acts, and what is not known is refused.
HF_ROPE = KeyTable(
    _frozen({"llama_4_scaling_beta": (0,), "truncate": (True,), "factor": (1,), "attention_factor": (1,),
             "attn_factor": (1,), "extrapolation_factor": (1,), "mscale": (1,), "mscale_all_dim": (0,)}),
    ("max_position_embeddings", "original_rope_type", "finetuned"))
STRICT = KeyTable()


def hf_decoder(config: Config) -> KeyTable:
    """The keys of a decoder in a config.json, with those that say once more what its sizes say."""
    scale = config.attention_scale
    again: dict[str, tuple[Plain, ...]] = {
        name: (value,) for names, value in (
            (("num_layers", "n_layer", "n_layers"), config.num_layers), (("n_embd", "d_model", "dim"), config.width),
            (("n_head", "n_heads"), config.num_heads), (("query_pre_attn_scalar",), scale**-2),
            (("attention_multiplier", "softmax_scale", "attention_scale", "attn_scale"), scale),
            (("rotary_dim", "rotary_ndims", "rope_dim"), config.rope.dim),
            (("kv_channels", "attention_head_size", "head_size", "v_head_dim", "d_head"), config.head_dim),
            (("num_key_value_groups",), config.num_heads // config.num_kv_heads),
            (("layer_norm_eps", "layer_norm_epsilon", "norm_eps"), config.norm_eps)) for name in names}
    if config.activation == "gelu":  # two names of the approximation by tanh
        again |= dict.fromkeys(("hidden_act", "hidden_activation"), ("gelu_pytorch_tanh", "gelu_new"))
    again["original_max_position_embeddings"] = (config.max_context,)  # without LongRoPE, which reads it
    if config.latent is not None:
        # With a latent, heads of keys are made from it, and its pairs are neighbours.
        return replace(_HF, neutral=_frozen({**_HF_NEUTRAL, **again, "rope_interleave": (True,)}),
                       notes=_HF_NOTES | {"num_key_value_heads", "head_dim"})
    prefixes = (*_NOTE_PREFIXES, *FAMILIES[config.family].hf_notes)
    return replace(_HF, neutral=_frozen({**_HF_NEUTRAL, **again}), prefixes=prefixes)


# quantization_config: what concerns activations and caches, and which modules are spared (seen from their tensors).
QUANTIZATION = KeyTable(
    _frozen({"quantization_status": ("compressed", "frozen"), "fmt": ("e4m3", "float8_e4m3fn"),
             "weight_per_tensor": (True,)}),
    frozenset("""
        activation_scheme modules_to_not_convert ignore ignored_layers exclude_modules dequantize input_activations
        output_activations kv_cache_scheme kv_cache_quant_algo targets producer version global_compression_ratio
        scale_fmt run_compressed use_deep_gemm
        """.split()), ("_",), changes_numbers)

# params.json.
PARAMS = KeyTable(
    _frozen({"causal": (True,), "use_biases": (False,), "bias": (False,), "model_type": ("transformer",)}),
    ("architectures", "dtype", "max_batch_size"), ("_",), changes_numbers)
PARAMS_MOE = KeyTable(
    _frozen({"route_every_n": (1,), "num_expert_groups": (1,), "num_expert_groups_per_tok": (1,)}),
    ("expert_parallel", "expert_model_parallel"))  # how the file was trained
PARAMS_VISION = KeyTable(_frozen({
    "mm_projector_id": ("patch_merge",), "add_pre_mm_projector_layer_norm": (True,), "adapter_bias": (False,)}),
    (), ("_",), changes_numbers)

PARAMS_AUDIO = KeyTable(_frozen({
    "causal": (False,), "use_biases": (True,), "norm_eps": (1e-5,), "ffn_type": ("mlp",), "norm_type": ("layer_norm",),
    "pos_embed": ("sinusoidal",), "sliding_window": ()}), ("vocab_size", "use_cache"), ("_",), changes_numbers)
# The spectrogram of all releases, and how text and audio go together in those that are no streams.
PARAMS_SPECTROGRAM = KeyTable(_frozen({
    "sampling_rate": (16000,), "hop_length": (160,), "window_size": (400,), "frame_rate": (12.5,),
    "chunk_length_s": (30,), "transcription_format": ("instruct",)}), (), ("_",), changes_numbers)

# GGUF metadata of an architecture.
GGUF = KeyTable(
    _frozen({
        "attention.causal": (True,), "attention.max_alibi_bias": (0,), "attention.clamp_kqv": (0,),
        "attention.scale": (0,), "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,), "logit_scale": (0, 1),
        "residual_scale": (0, 1), "embedding_scale": (0, 1), "expert_count": (0,), "expert_used_count": (0,),
        "expert_shared_count": (0,), "nextn_predict_layers": (0,), "use_parallel_residual": (False,),
        "tensor_data_layout": ("Meta AI original pth",), "attention.temperature_scale": (0,),
        "rope.scaling.attn_factor": (0, 1), "rope.scaling.yarn_attn_factor": (1,),
        "rope.scaling.yarn_ext_factor": (-1, 1), "rope.scaling.yarn_log_multiplier": (0,),
        "rope.scaling.mscale_all_dim": (0,), "rope.scaling.mscale": (1,)}),
    frozenset("""
        rope.scaling.finetuned pooling_type attention.temperature_length rope.scaling.original_context_length
        rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.beta_fast rope.scaling.beta_slow
        """.split()), (), changes_numbers)
# Of an mmproj file; those that are no numbers are read separately.
GGUF_CLIP = replace(GGUF, prefixes=(
    "projector_type", "vision.projector_type", "vision.image_mean", "vision.image_std", "audio.projector_type", "has_",
    "use_"))
