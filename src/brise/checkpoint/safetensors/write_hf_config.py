"""Writes a decoder and its encoder as a config.json for transformers; read_hf_config.py reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from brise.errors import UnsupportedError
from brise.models.config import Config, Experts
from brise.models.families import FAMILIES, MULTIPLIERS, num_shared, written_keys
from brise.models.pixtral import NUM_CHANNELS, VisionConfig
from brise.models.rope import (
    Factors,
    Linear,
    Llama3,
    LongRope,
    Rope,
    Yarn,
    frequencies,
    long_rope_attention_factor,
)
from brise.models.siglip import ImageConfig, SiglipConfig
from brise.models.whisper import AudioConfig

DTYPES: Mapping[str, str] = MappingProxyType({"BF16": "bfloat16", "F16": "float16", "F32": "float32"})
# Of every Llama 3 whose rope has factors; the original context is 8192, others are looked for.
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0
_LLAMA3_CONTEXTS = tuple(1 << power for power in range(4, 21))


def description(config: Config, vision: ImageConfig | None, audio: AudioConfig | None, dtype: str,
                tokens: Mapping[str, int | None], *, tied: bool) -> dict[str, object]:
    """config.json; `tokens` has bos, eos and padding ids."""
    ids = {"bos_token_id": tokens["bos"], "eos_token_id": tokens["eos"], "pad_token_id": tokens["padding"]}
    text = _text(config, tied=tied) | ids
    if audio is not None:
        return {
            "architectures": ["VoxtralForConditionalGeneration"], "dtype": DTYPES[dtype], "model_type": "voxtral",
            "audio_token_id": audio.audio_token, "projector_hidden_act": "gelu", "tie_word_embeddings": tied,
            "text_config": text, "audio_config": _audio(audio)}
    if vision is None:
        return {"architectures": [f"{FAMILIES[config.family].hf_class}ForCausalLM"], "dtype": DTYPES[dtype]} | text
    if isinstance(vision, SiglipConfig):
        return {"architectures": ["Gemma3ForConditionalGeneration"], "dtype": DTYPES[dtype], "model_type": "gemma3",
                "tie_word_embeddings": tied, **_siglip_tokens(vision), "text_config": text,
                "vision_config": _siglip(vision)}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"], "dtype": DTYPES[dtype], "model_type": "mistral3",
        "image_token_index": vision.image_token, "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
        "spatial_merge_size": vision.merge, "vision_feature_layer": -1, "tie_word_embeddings": tied,
        "text_config": text, "vision_config": _vision(vision)}


def _text(config: Config, *, tied: bool) -> dict[str, object]:
    family = FAMILIES[config.family]
    keys: dict[str, object] = {
        "model_type": config.family,
        **written_keys(config, "hf", "vocab_size", "width", "ffn_width", "num_layers", "num_heads", "num_kv_heads"),
        **({"hidden_act": "silu"} if config.activation == "silu" else {}),
        "max_position_embeddings": _stated_context(config),
        "rms_norm_eps": _short(config.norm_eps), "tie_word_embeddings": tied, "attention_dropout": 0.0}
    if config.latent is None:
        keys["head_dim"] = config.head_dim
    else:
        keys |= {**_latent(config), **family.hf_constants}
    if config.experts is not None:
        keys |= _experts(config, config.experts)
    if family.has_window:
        keys["sliding_window"] = config.sliding_window
    if family.has_multipliers:
        keys |= _multipliers(config)
    if family.no_rope_interval is not None:
        keys["no_rope_layers"] = [int(index not in config.layers_without_rope) for index in range(config.num_layers)]
    if family.full_interval is not None:
        keys |= _kinds_of_layers(config)
        return {**keys, **family.hf_constants}
    if isinstance(config.rope.scaling, LongRope):  # Phi-3's class reads it beside the sizes
        keys["original_max_position_embeddings"] = config.rope.scaling.original_context
    return {**keys, **family.hf_constants, "rope_parameters": _rope(config)}


def _multipliers(config: Config) -> dict[str, object]:
    """Of Granite; dense Granite 4 also says that it has neither Mamba layers nor experts."""
    numbers = {**written_keys(config, "hf", *MULTIPLIERS, "attention_scale")}
    keys: dict[str, object] = {key: _short(number) for key, number in numbers.items()}
    has_rope = len(config.layers_without_rope) < config.num_layers
    if FAMILIES[config.family].hf_layer_types:
        return keys | {"position_embedding_type": "rope" if has_rope else None, "intermediate_size": config.ffn_width,
                       "layer_types": ["attention"] * config.num_layers}
    if not has_rope:
        raise UnsupportedError("the model has no rotary positions; a config.json of the family granite has no key for "
                               "that")
    return keys


def _kinds_of_layers(config: Config) -> dict[str, object]:
    """Of a family with windows in some layers: which they are, both rotations, and its softmax scale."""
    if config.softmax_scale is not None:
        scalar = config.softmax_scale**-2
        if not math.isclose(scalar, round(scalar), rel_tol=1e-6):
            raise UnsupportedError(f"the model's softmax scale is {config.softmax_scale:g}; a config.json holds the "
                                   "inverse of its square, a whole number")
    window_rope = config.window_rope or Rope(FAMILIES[config.family].window_theta, config.rope.dim, config.rope.layout)
    full = range(config.num_layers) if config.window_rope is None else config.layers_without_window
    return {"query_pre_attn_scalar": round(config.attention_scale**-2),
            "sliding_window": config.sliding_window or config.max_context,
            "layer_types": ["full_attention" if index in full else "sliding_attention"
                            for index in range(config.num_layers)],
            "rope_parameters": {"full_attention": _rope(config),
                                "sliding_attention": _rope(replace(config, rope=window_rope))}}


def _stated_context(config: Config) -> int:
    """The longest context, except for linear scaling, whose factor stretches what is stated."""
    scaling = config.rope.scaling
    if isinstance(scaling, Linear) and not FAMILIES[config.family].has_stretched_context:
        original = scaling.original_context or config.max_context
        return original if scaling.factor * original >= config.max_context else int(config.max_context / scaling.factor)
    return config.max_context


def _latent(config: Config) -> dict[str, object]:
    if config.softmax_scale is not None:
        raise UnsupportedError(f"the model's softmax scale is {config.softmax_scale:g}; a config.json has no "
                               "key for it")
    return {"num_key_value_heads": config.num_heads,
            **written_keys(config, "hf", "latent.query_rank", "latent.rank", "latent.nope_dim", "rope.dim",
                           "latent.value_dim")}


def _experts(config: Config, experts: Experts) -> dict[str, object]:
    if config.latent is None:  # Mixtral's are as wide as a feed-forward
        return {"num_local_experts": experts.count, **written_keys(config, "hf", "experts.per_token")}
    return {**written_keys(config, "hf", "experts.count", "experts.per_token"),
            "n_shared_experts": num_shared(experts, "a config.json holds"),
            **written_keys(config, "hf", "experts.width", "experts.num_dense_layers"),
            "routed_scaling_factor": _short(experts.scale), "norm_topk_prob": True, "n_group": 1, "topk_group": 1}


def _rope(config: Config) -> dict[str, object]:
    rope = config.rope
    keys: dict[str, object] = {"rope_theta": _short(rope.theta)}
    match rope.scaling:
        case None:
            keys["rope_type"] = "default"
        case Linear(factor, _):
            keys |= {"rope_type": "linear", "factor": _short(factor)}
        case Llama3():
            keys |= _llama3(rope.scaling)
        case Factors(factors):
            keys |= _llama3(_recovered(rope, factors))
        case Yarn():
            keys |= _yarn(config, rope.scaling)
        case LongRope():
            keys |= _long_rope(config, rope.scaling)
    if FAMILIES[config.family].has_partial_rotary:
        keys["partial_rotary_factor"] = rope.dim / config.head_dim
    temperature = config.query_temperature
    if FAMILIES[config.family].has_query_temperature:
        keys["llama_4_scaling_beta"] = 0.0 if temperature is None else _short(temperature.beta)
        keys.setdefault("original_max_position_embeddings", temperature.period if temperature else config.max_context)
    if temperature is not None and keys["original_max_position_embeddings"] != temperature.period:
        raise UnsupportedError(f"the queries' temperature has the period {temperature.period}; a config.json takes "
                               f"YaRN's original context of {keys['original_max_position_embeddings']} for it")
    return keys


def _yarn(config: Config, yarn: Yarn) -> dict[str, object]:
    keys: dict[str, object] = {
        "rope_type": "yarn", "factor": _short(yarn.factor), "original_max_position_embeddings": yarn.original_context,
        "beta_fast": _short(yarn.beta_fast), "beta_slow": _short(yarn.beta_slow)}
    match FAMILIES[config.family].yarn:
        case "softmax":  # transformers would square mscale_all_dim into the softmax scale
            return keys | {"mscale": 1.0, "mscale_all_dim": 0.0, "attention_factor": frequencies(config.rope)[1]}
        case "mscale":
            keys |= {"mscale": _short(yarn.mscale), "mscale_all_dim": _short(yarn.mscale_all_dim)}
        case "plain" if (yarn.mscale, yarn.mscale_all_dim) != (1.0, 0.0):
            keys["attention_factor"] = frequencies(config.rope)[1]
    if yarn.attention_factor is not None:
        keys["attention_factor"] = _short(yarn.attention_factor)
    return keys


def _long_rope(config: Config, scaling: LongRope) -> dict[str, object]:
    """The attention factor only where it is not the one that the contexts lead to."""
    keys: dict[str, object] = {
        "rope_type": "longrope", "short_factor": list(map(_short, scaling.short)),
        "long_factor": list(map(_short, scaling.long)), "original_max_position_embeddings": scaling.original_context}
    usual = long_rope_attention_factor(config.max_context / scaling.original_context, scaling.original_context)
    if not math.isclose(scaling.attention_factor, usual, rel_tol=1e-6):
        keys["attention_factor"] = _short(scaling.attention_factor)
    return keys


def _llama3(scaling: Llama3) -> dict[str, object]:
    return {"rope_type": "llama3", "factor": _short(scaling.factor), "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_context}


def _recovered(rope: Rope, factors: tuple[float, ...]) -> Llama3:
    """The rule that gave the factors of a GGUF file, which has no other form for it."""
    by_file, _ = frequencies(rope)
    for context in _LLAMA3_CONTEXTS:
        scaling = Llama3(max(factors), context, _LLAMA3_LOW, _LLAMA3_HIGH)
        by_rule, _ = frequencies(Rope(rope.theta, rope.dim, rope.layout, scaling))
        if np.allclose(by_rule, by_file, rtol=1e-5, atol=0):
            return scaling
    raise UnsupportedError("the model's rope has factors (rope_freqs.weight) that are not Llama 3's; a config.json has "
                           "no key for them")


def _siglip_tokens(vision: SiglipConfig) -> dict[str, object]:
    return {"mm_tokens_per_image": (vision.side // vision.pool) ** 2, "image_token_index": vision.image_token,
            "boi_token_index": vision.begin_token, "eoi_token_index": vision.end_token}


def _siglip(vision: SiglipConfig) -> dict[str, object]:
    return {"model_type": "siglip_vision_model", "hidden_size": vision.width, "intermediate_size": vision.ffn_width,
            "num_hidden_layers": vision.num_layers, "num_attention_heads": vision.num_heads,
            "num_channels": NUM_CHANNELS, "image_size": vision.image_size, "patch_size": vision.patch_size,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": _short(vision.norm_eps), "attention_dropout": 0.0,
            "vision_use_head": False}


def _vision(vision: VisionConfig) -> dict[str, object]:
    return {"model_type": "pixtral", "hidden_size": vision.width, "intermediate_size": vision.ffn_width,
            "num_hidden_layers": vision.num_layers, "num_attention_heads": vision.num_heads,
            "head_dim": vision.head_dim, "num_channels": NUM_CHANNELS, "image_size": vision.image_size,
            "patch_size": vision.patch_size, "hidden_act": "silu", "attention_dropout": 0.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": _short(vision.rope_theta)}}


def _audio(audio: AudioConfig) -> dict[str, object]:
    if audio.ffn_width != audio.stack * audio.width:
        raise UnsupportedError(f"the audio encoder joins {audio.stack} positions of {audio.width} numbers, and its "
                               f"feed-forward is {audio.ffn_width} wide; a config.json has one key for both")
    return {"model_type": "voxtral_encoder", "hidden_size": audio.width, "intermediate_size": audio.ffn_width,
            "num_hidden_layers": audio.num_layers, "num_attention_heads": audio.num_heads,
            "num_mel_bins": audio.num_mels, "max_source_positions": audio.num_positions, "activation_function": "gelu",
            "scale_embedding": False, "attention_dropout": 0.0}


def _short(value: float) -> float:
    """0.00001 for the float32 nearest to it, as GGUF files have it."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value
