"""Writes the hyperparameters of a decoder as GGUF metadata; read_model.py reads them.

Keys are llama.cpp's. What no key can say (Llama 3's rope rule) stands in a tensor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.gguf.read_model import LARGEST_GEMMA_LAYERS
from brise.errors import UnsupportedError
from brise.models.config import Config, Experts
from brise.models.families import FAMILIES, MULTIPLIERS, num_shared, written_keys
from brise.models.rope import Factors, Linear, Llama3, LongRope, Rope, Yarn, frequencies

_SOFTMAX_GATING = 1  # of llama.cpp's expert_gating_func


def hyperparameters(config: Config) -> dict[str, object]:
    """`general.architecture` and every ARCHITECTURE.* key."""
    architecture = FAMILIES[config.family].gguf_architecture
    keys: dict[str, object] = written_keys(
        config, "gguf", "vocab_size", "num_layers", "max_context", "width", "ffn_width", "num_heads", "num_kv_heads",
        "norm_eps")
    keys |= {"rope.freq_base": config.rope.theta} | written_keys(config, "gguf", "rope.dim")
    if config.latent is None:
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    else:
        keys |= _latent(config)
    family = FAMILIES[config.family]
    if family.has_multipliers:
        keys |= written_keys(config, "gguf", *MULTIPLIERS)
        keys["rope.scaling.finetuned"] = _has_rope(config)
    if config.softmax_scale is not None:
        keys |= _softmax_scale(config, config.softmax_scale)
    if config.experts is not None:
        keys |= _experts(config, config.experts)
    if config.sliding_window is not None or config.family == "phi3":  # llama.cpp took a missing one for Phi-3's 2047
        keys["attention.sliding_window"] = config.sliding_window or 0
    keys |= _kinds_of_layers(config)
    if not (family.has_multipliers and not _has_rope(config)) and (
            config.layers_without_rope != family.layers_without_rope(config.num_layers)):
        raise UnsupportedError(f"the layers {config.layers_without_rope} have no rotary positions; a GGUF file of the "
                               f"family {config.family} has no key for which they are")
    keys |= _scaling(config) | _temperature(config)
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in keys.items()}


def _has_rope(config: Config) -> bool:
    return len(config.layers_without_rope) < config.num_layers


def _softmax_scale(config: Config, scale: float) -> dict[str, object]:
    if config.latent is not None or FAMILIES[config.family].has_multipliers:
        return {"attention.scale": scale}
    is_largest = config.num_layers == LARGEST_GEMMA_LAYERS
    if not (is_largest and math.isclose(scale, (config.width // config.num_heads) ** -0.5)):
        raise UnsupportedError(f"the model's softmax scale is {scale:g}; a GGUF file of the family {config.family} has "
                               "no key for it")
    return {}


def _kinds_of_layers(config: Config) -> dict[str, object]:
    """Of a family with windows in some layers. A file without the key of the window has none in any layer."""
    if config.window_rope is None:
        return {}
    if config.layers_without_window != FAMILIES[config.family].full_layers(config.num_layers):
        raise UnsupportedError(f"the layers {config.layers_without_window} have no window; a GGUF file of the family "
                               f"{config.family} has no key for which they are")
    if config.window_rope.scaling is not None:
        raise UnsupportedError(f"the layers with a window have the rotary scaling {config.window_rope.scaling}; a GGUF "
                               f"file of the family {config.family} has no key for it")
    return {"attention.sliding_window": config.sliding_window or config.max_context,
            "rope.freq_base_swa": config.window_rope.theta}


def rope_tensors(rope: Rope) -> dict[str, NDArray[np.float32]]:
    """The tensors that say what each inverse frequency is divided by, where no key can."""
    match rope.scaling:
        case Factors(factors):
            return {"rope_freqs.weight": np.array(factors, np.float32)}
        case Llama3():
            plain, _ = frequencies(Rope(rope.theta, rope.dim, rope.layout))
            scaled, _ = frequencies(rope)
            return {"rope_freqs.weight": np.array([a / b for a, b in zip(plain, scaled, strict=True)], np.float32)}
        case LongRope(short, long):
            return {"rope_factors_long.weight": np.array(long, np.float32),
                    "rope_factors_short.weight": np.array(short, np.float32)}
        case _:
            return {}


def _latent(config: Config) -> dict[str, object]:
    """Of the absorbed form: one key/value head, as wide as the cached vector."""
    ranks = written_keys(config, "gguf", "latent.query_rank", "latent.rank")
    return {"attention.head_count_kv": 1, **ranks, "attention.key_length": config.cache_dim,
            "attention.value_length": ranks["attention.kv_lora_rank"], "attention.key_length_mla": config.head_dim,
            **written_keys(config, "gguf", "latent.value_dim")}


def _experts(config: Config, experts: Experts) -> dict[str, object]:
    if config.latent is None:  # Mixtral's are as wide as a feed-forward
        return written_keys(config, "gguf", "experts.count", "experts.per_token")
    return {**written_keys(config, "gguf", "experts.num_dense_layers", "experts.count", "experts.per_token"),
            "expert_shared_count": num_shared(experts, "GGUF holds"),
            **written_keys(config, "gguf", "experts.width", "experts.scale"),
            "expert_weights_norm": True, "expert_gating_func": _SOFTMAX_GATING}


def _scaling(config: Config) -> dict[str, object]:
    match config.rope.scaling:
        case Linear(factor, _) if FAMILIES[config.family].has_stretched_context:
            return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case Linear(factor, original):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": factor,
                    "rope.scaling.original_context_length": original or config.max_context}
        case Yarn():
            return _yarn(config, config.rope.scaling)
        case LongRope(_, _, original, attention_factor):
            return {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": original,
                    "rope.scaling.attn_factor": attention_factor}
        case _:
            return {}


def _yarn(config: Config, yarn: Yarn) -> dict[str, object]:
    keys: dict[str, object] = {
        "rope.scaling.type": "yarn", "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_context,
        "rope.scaling.yarn_beta_fast": yarn.beta_fast, "rope.scaling.yarn_beta_slow": yarn.beta_slow}
    attention_factor = frequencies(config.rope)[1]
    match FAMILIES[config.family].yarn:
        case "mscale":
            keys["rope.scaling.yarn_log_multiplier"] = _log_multiplier(yarn, attention_factor)
        case "softmax":
            _require(attention_factor, 1.0, config.family)
            keys["rope.scaling.yarn_log_multiplier"] = _softmax_multiplier(config, yarn)
        case "plain":
            _require(attention_factor, 0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0, config.family)
    return keys


def _log_multiplier(yarn: Yarn, attention_factor: float) -> float:
    """The mscale_all_dim that gives this attention factor while mscale is 1, which is what llama.cpp takes it to be."""
    if yarn.mscale == 1.0 and yarn.attention_factor is None:
        return yarn.mscale_all_dim
    if yarn.factor <= 1 or math.isclose(attention_factor, 1.0):
        return 1.0
    log = 0.1 * math.log(yarn.factor)
    return ((log + 1) / attention_factor - 1) / log


def _softmax_multiplier(config: Config, yarn: Yarn) -> float:
    """A tenth of the mscale_all_dim for which llama.cpp's deepseek2 has this softmax scale.

    It multiplies by (1 + 0.1 * mscale_all_dim * ln(factor)) ** 2. Without the key, or with 0, it would take 1 for it.
    """
    if config.softmax_scale is None or yarn.factor <= 1:
        return 1e-9
    mscale = math.sqrt(config.softmax_scale * math.sqrt(config.head_dim))
    return max((mscale - 1) / math.log(yarn.factor), 1e-9)


def _require(attention_factor: float, expected: float, family: str) -> None:
    if not math.isclose(attention_factor, expected, rel_tol=1e-6):
        raise UnsupportedError(f"the model's YaRN multiplies cos and sin by {attention_factor:g}; a GGUF file of the "
                               f"family {family} always means {expected:g}")


def _temperature(config: Config) -> dict[str, object]:
    if config.query_temperature is None:
        return {}
    keys: dict[str, object] = {"attention.temperature_scale": config.query_temperature.beta}
    scaling = config.rope.scaling
    same = isinstance(scaling, Yarn) and scaling.original_context == config.query_temperature.period
    if not same or config.latent is not None:
        keys["attention.temperature_length"] = config.query_temperature.period
    return keys
