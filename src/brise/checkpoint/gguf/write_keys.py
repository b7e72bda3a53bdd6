"""The hyper-parameters of a decoder as GGUF metadata; gguf_model.py is the other direction.

Keys are llama.cpp's. Where a file says less than a configuration does (Llama 3's rope rule), tensors say it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.errors import UnsupportedError
from brise.models.config import Config, Experts, Family, Latent
from brise.models.rope import Factors, Linear, Llama3, Rope, Yarn, frequencies

ARCHITECTURES: Mapping[Family, str] = MappingProxyType({
    "llama": "llama", "mistral": "llama", "ministral3": "mistral3", "mistral4": "deepseek2", "qwen2": "qwen2",
    "qwen3": "qwen3"})

_SOFTMAX_GATING = 1  # of llama.cpp's expert_gating_func


def hyperparameters(config: Config) -> dict[str, object]:
    """`general.architecture` and every ARCHITECTURE.* key."""
    architecture = ARCHITECTURES[config.family]
    keys: dict[str, object] = {
        "vocab_size": config.vocab_size, "block_count": config.num_layers, "context_length": config.max_context,
        "embedding_length": config.width, "feed_forward_length": config.ffn_width,
        "attention.head_count": config.num_heads, "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": config.rope.theta,
        "rope.dimension_count": config.rope.dim}
    if config.latent is None:
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    else:
        keys |= _latent(config, config.latent)
    if config.softmax_scale is not None:
        keys["attention.scale"] = config.softmax_scale
    if config.experts is not None:
        keys |= _experts(config.experts)
    if config.sliding_window is not None:
        keys["attention.sliding_window"] = config.sliding_window
    keys |= _scaling(config) | _temperature(config)
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in keys.items()}


def rope_factors(rope: Rope) -> NDArray[np.float32] | None:
    """The tensor `rope_freqs.weight`: what each frequency is divided by, where no key can say it."""
    match rope.scaling:
        case Factors(factors):
            return np.array(factors, np.float32)
        case Llama3():
            plain, _ = frequencies(Rope(rope.theta, rope.dim, rope.layout))
            scaled, _ = frequencies(rope)
            return np.array([a / b for a, b in zip(plain, scaled, strict=True)], np.float32)
        case _:
            return None


def _latent(config: Config, latent: Latent) -> dict[str, object]:
    """Of the absorbed form: one key/value head, as wide as the cached vector."""
    return {"attention.head_count_kv": 1, "attention.q_lora_rank": latent.query_rank,
            "attention.kv_lora_rank": latent.rank, "attention.key_length": config.cache_dim,
            "attention.value_length": latent.rank, "attention.key_length_mla": config.head_dim,
            "attention.value_length_mla": latent.value_dim}


def _experts(experts: Experts) -> dict[str, object]:
    shared = experts.shared_width // experts.width
    if shared * experts.width != experts.shared_width:
        raise UnsupportedError(f"the shared expert is {experts.shared_width} wide; GGUF holds multiples of the "
                               f"experts' {experts.width}")
    return {"leading_dense_block_count": experts.num_dense_layers, "expert_count": experts.count,
            "expert_used_count": experts.per_token, "expert_shared_count": shared,
            "expert_feed_forward_length": experts.width, "expert_weights_scale": experts.scale,
            "expert_weights_norm": True, "expert_gating_func": _SOFTMAX_GATING}


def _scaling(config: Config) -> dict[str, object]:
    match config.rope.scaling:
        case Linear(factor):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case Yarn():
            return _yarn(config, config.rope.scaling)
        case _:
            return {}


def _yarn(config: Config, yarn: Yarn) -> dict[str, object]:
    keys: dict[str, object] = {
        "rope.scaling.type": "yarn", "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_context,
        "rope.scaling.yarn_beta_fast": yarn.beta_fast, "rope.scaling.yarn_beta_slow": yarn.beta_slow}
    magnitude = frequencies(config.rope)[1]
    match config.family:
        case "ministral3":
            keys["rope.scaling.yarn_log_multiplier"] = _log_multiplier(yarn, magnitude)
        case "mistral4":
            _require(magnitude, 1.0, "mistral4")
            keys["rope.scaling.yarn_log_multiplier"] = _softmax_multiplier(config, yarn)
        case family:
            _require(magnitude, 0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0, family)
    return keys


def _log_multiplier(yarn: Yarn, magnitude: float) -> float:
    """The mscale_all_dim that gives this magnitude while mscale is 1, which is what llama.cpp takes it to be."""
    if yarn.mscale == 1.0 and yarn.attention_factor is None:
        return yarn.mscale_all_dim
    if yarn.factor <= 1 or math.isclose(magnitude, 1.0):
        return 1.0
    log = 0.1 * math.log(yarn.factor)
    return ((log + 1) / magnitude - 1) / log


def _softmax_multiplier(config: Config, yarn: Yarn) -> float:
    """A tenth of the mscale_all_dim for which llama.cpp's deepseek2 has this softmax scale.

    It multiplies by (1 + 0.1 * mscale_all_dim * ln(factor)) ** 2. Without the key, or with 0, it would take 1 for it.
    """
    if config.softmax_scale is None or yarn.factor <= 1:
        return 1e-9
    magnitude = math.sqrt(config.softmax_scale * math.sqrt(config.head_dim))
    return max((magnitude - 1) / math.log(yarn.factor), 1e-9)


def _require(magnitude: float, expected: float, family: str) -> None:
    if not math.isclose(magnitude, expected, rel_tol=1e-6):
        raise UnsupportedError(f"the model's YaRN multiplies cos and sin by {magnitude:g}; a GGUF file of the family "
                               f"{family} always means {expected:g}")


def _temperature(config: Config) -> dict[str, object]:
    if config.query_temperature is None:
        return {}
    keys: dict[str, object] = {"attention.temperature_scale": config.query_temperature.beta}
    scaling = config.rope.scaling
    same = isinstance(scaling, Yarn) and scaling.original_context == config.query_temperature.period
    if not same or config.family == "mistral4":
        keys["attention.temperature_length"] = config.query_temperature.period
    return keys
