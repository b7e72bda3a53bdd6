"""Reads a decoder from a GGUF file: what its keys and tensors are, for checkpoint/read_decoder.py to put together.

Sources: llama.cpp's naming of keys and tensors; for mistral3 also the other spellings that Ollama writes.

Llama, Mistral and Mixtral have one architecture, `llama`. With experts it is Mixtral, which says nothing more of them
than how many there are and how many a token goes through.

Mistral Large 3 has llama.cpp's architecture `deepseek2`, as DeepSeek-V2 and V3 have. Those route and scale
differently: what they do and Large 3 does not is refused by name. Mistral Small 4 has `mistral4`, which llama.cpp
computes by the code of deepseek2, with the same keys; its converter leaves w1 and w3 of the experts in one tensor.

The softmax scale of both is (nope + rope) ** -0.5. llama.cpp multiplies it by (0.1 ln(factor) + 1) ** 2 for every
model of these architectures with YaRN, in converted Large 3 files too: `rope.scaling.yarn_log_multiplier` is 0.1 there,
and ten times it is the multiplier of DeepSeek. Mistral's params.json says `apply_scale: false`, and other engines
measured a better accuracy without. A model that needs another scale can say so: with the key `attention.scale` of the
file, or with `softmax_scale` of the Config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from brise.checkpoint import known_keys, read_decoder
from brise.checkpoint.gguf.file import GgufFile, StringArray, Value
from brise.checkpoint.gguf.read_tensors import GgufTensors, missing
from brise.checkpoint.read_decoder import Description
from brise.errors import UnsupportedError, bad_value
from brise.files.fields import Fields
from brise.models.config import Config, Latent, QueryTemperature
from brise.models.families import FAMILIES, KEYS, Format, ModelFamily
from brise.models.other_families import mamba_layers, refusal
from brise.models.rope import Factors, Linear, LongRope, Rope, Scaling, Yarn
from brise.models.weights import Weights

# The vision encoder that Ollama packs into the same file; read_mmproj.py reads it.
VISION_ARCHITECTURE = "mistral3"
VISION_KEYS = ("vision.", "mm.", "image_token_index", "spatial_merge_size")
VISION_TENSORS = ("v.", "mm.")

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
LARGEST_GEMMA_LAYERS = 62  # of the 27B, whose softmax scale is another
SOFTMAX_GATING = 1  # of llama.cpp's expert_gating_func; 0 is "not said", which for deepseek2 means softmax


def read_config(gguf: GgufFile) -> Config:
    """The decoder's sizes."""
    return describe(gguf).config


def describe(gguf: GgufFile) -> Description:
    """What the file's keys say; UnsupportedError names an architecture or key that brise does not run."""
    architecture = _architecture(gguf)
    source = GgufConfig(gguf, architecture)
    config = read_decoder.read_config(source)
    table = known_keys.GGUF
    if architecture == VISION_ARCHITECTURE:
        table = replace(table, prefixes=VISION_KEYS)
    if FAMILIES[config.family].has_multipliers:  # converters of Granite 4 describe layers that a dense one lacks
        table = replace(table, prefixes=("ssm.",), neutral={
            **table.neutral, "expert_shared_feed_forward_length": (config.ffn_width,)})
    source.fields.refuse_rest(table)
    return Description(config, None, None, ignored=tuple(source.fields.ignored))


def read_weights(gguf: GgufFile, config: Config) -> Weights:
    """All weights as views over the file; a missing, misshapen or unknown tensor is an error naming it."""
    tensors = GgufTensors(gguf, config.family)
    weights = read_decoder.read_weights(tensors, config)
    has_vision = FAMILIES[config.family].gguf_architecture == VISION_ARCHITECTURE
    tensors.refuse_rest(ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS, *(VISION_TENSORS if has_vision else ()))
    return weights


def keys_of(metadata: Mapping[str, Value], architecture: str) -> Fields:
    """The keys ARCHITECTURE.*, without that prefix."""
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    return Fields(own, architecture)


def _architecture(gguf: GgufFile) -> str:
    name = gguf.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise bad_value("general.architecture", name, "a string")
    if gguf.num_parts != len(gguf.paths):
        raise UnsupportedError(f"the model is split over {gguf.num_parts} files (split.count), and this is one of them")
    allowed = dict.fromkeys(name for family in FAMILIES.values() for name in family.gguf_architectures)
    if name not in allowed:
        raise refusal("the model's architecture", name, ", ".join(allowed))
    return name


class GgufConfig:
    """What the keys of a GGUF file say of a decoder (read_decoder.ConfigSource)."""

    format: Format = "gguf"

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self._gguf, self._architecture, self.fields = gguf, architecture, keys_of(gguf.metadata, architecture)
        self.family = self._family_of(architecture)
        kinds = self.fields.value("attention.head_count_kv")
        if architecture == "granitehybrid" and not (isinstance(kinds, np.ndarray) and kinds.all()):
            raise mamba_layers("granitehybrid.attention.head_count_kv", kinds)  # 0 in a layer without attention

    @property
    def _row(self) -> ModelFamily:
        return FAMILIES[self.family]

    def _family_of(self, architecture: str) -> str:
        """Llama, Mistral and Mixtral are one architecture: the last has experts, and with a window it is a Mistral."""
        names = [name for name, family in FAMILIES.items() if architecture in family.gguf_architectures]
        if any(FAMILIES[name].has_experts for name in names):  # else the key is refused, as it is not read
            has_experts = self.fields.integer("expert_count", default=0, least=0) > 0
            names = [name for name in names if FAMILIES[name].has_experts == has_experts] or names
        windowed = [name for name in names if FAMILIES[name].has_window]
        return windowed[0] if windowed and self._has_window() else names[0]

    def _has_window(self) -> bool:
        return 0 < self.fields.integer("attention.sliding_window", default=0, least=0) < self.max_context()

    def vocab_size(self) -> int:
        """Rows of the embedding; the key and the tokenizer must agree where they are there."""
        if "token_embd.weight" not in self._gguf.tensors:
            raise missing("token_embd.weight")
        rows = self._gguf.tensors["token_embd.weight"].shape[0]
        if self.fields.integer("vocab_size", default=rows) != rows:
            raise self.fields.wrong("vocab_size", f"{rows}, the rows of token_embd.weight")
        tokens = self._gguf.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, StringArray) and len(tokens) != rows:
            raise bad_value("length of tokenizer.ggml.tokens", len(tokens), f"{rows}, the rows of token_embd.weight")
        return rows

    def max_context(self) -> int:
        return self.fields.integer("context_length")

    def head_dim(self, width: int, num_heads: int) -> int:
        """Width of a head: of keys and values alike, which the attention op relies on."""
        if not self.fields.has("attention.key_length") and width % num_heads:
            raise self.fields.wrong("attention.head_count", f"a divisor of the width {width}")
        head_dim = self.fields.integer("attention.key_length", default=width // num_heads)
        if self.fields.integer("attention.value_length", default=head_dim) != head_dim:
            raise self.fields.refused("attention.value_length", f"{head_dim}, the key length")
        if head_dim % 2:
            raise self.fields.wrong("attention.key_length", "an even number")
        return head_dim

    def latent(self, num_heads: int) -> tuple[Latent, int]:
        if self.fields.integer("attention.head_count_kv", default=num_heads) not in (1, num_heads):
            raise self.fields.wrong("attention.head_count_kv", f"1 or the {num_heads} query heads")
        rank, rope_dim = self.fields.integer("attention.kv_lora_rank"), self.fields.integer("rope.dimension_count")
        if rope_dim % 2:
            raise self.fields.wrong("rope.dimension_count", "an even number")
        head_dim, value_dim = self._latent_head_dims(rank, rope_dim)
        if rope_dim >= head_dim:
            raise self.fields.wrong("rope.dimension_count", f"less than the head's {head_dim}")
        return Latent(self.fields.integer("attention.q_lora_rank"), rank, head_dim - rope_dim, value_dim), rope_dim

    def _latent_head_dims(self, rank: int, rope_dim: int) -> tuple[int, int]:
        """Numbers of a query and of a value. Newer files call them ..._mla, and give the cached vector's without."""
        lengths = self.fields.integer("attention.key_length"), self.fields.integer("attention.value_length")
        if not self.fields.has("attention.key_length_mla"):
            return lengths
        if lengths != (rank + rope_dim, rank):
            raise bad_value("attention.key_length and value_length", f"{lengths[0]} and {lengths[1]}",
                            f"{rank + rope_dim} and {rank}: the latent with and without the rotated key")
        return (self.fields.integer("attention.key_length_mla"), self.fields.integer("attention.value_length_mla"))

    def rope(self, dim: int, head_dim: int, max_context: int) -> tuple[Rope, QueryTemperature | None]:
        if not self._row.has_latent_attention:
            dim = self.fields.integer("rope.dimension_count", default=head_dim)
            if dim % 2 or dim > head_dim:
                raise self.fields.wrong("rope.dimension_count", f"an even number up to the head's {head_dim}")
        theta = self.fields.number("rope.freq_base", "rope.global.freq_base", default=10000.0)
        if theta <= 1:
            raise self.fields.wrong("rope.freq_base", "a number over 1")
        rope = Rope(theta, dim, self._row.rope_layout, self._scaling(dim))
        return rope, self._query_temperature() if self._row.has_query_temperature else None

    def full_layers(self, num_layers: int) -> tuple[int, ...]:
        """llama.cpp gives Gemma 3 no window in any layer where the file has no key for it."""
        if not self.fields.integer("attention.sliding_window", default=0, least=0):
            return tuple(range(num_layers))
        interval = self.fields.integer("attention.sliding_window_pattern", default=self._row.full_interval)
        return replace(self._row, full_interval=interval).full_layers(num_layers)

    def window_rope(self, dim: int) -> Rope:
        theta = self.fields.number("rope.freq_base_swa", "rope.local.freq_base", default=self._row.window_theta)
        if theta <= 1:
            raise self.fields.wrong("rope.freq_base_swa", "a number over 1")
        return Rope(theta, dim, self._row.rope_layout)

    def window(self, num_layers: int, max_context: int) -> int | None:
        if not self._has_window():
            return None
        if self._row.window_spares_layers:  # the first ones, and the file does not say how many
            raise self.fields.refused("attention.sliding_window", f"0 and the context of {max_context} or more")
        if self._row.has_latent_attention:
            raise self.fields.refused("attention.sliding_window", "0")
        window = self.fields.integer("attention.sliding_window")
        return window if window < max_context else None

    def experts(self, num_layers: int) -> Fields:
        fields = self.fields
        gating = fields.integer("expert_gating_func", default=SOFTMAX_GATING, least=0) or SOFTMAX_GATING
        if gating != SOFTMAX_GATING:
            raise fields.refused("expert_gating_func", f"{SOFTMAX_GATING}, softmax")
        is_mixtral = not self._row.has_latent_attention
        if not fields.flag("expert_weights_norm", default=is_mixtral):
            raise UnsupportedError("expert_weights_norm is False, brise divides the gates of the chosen experts by "
                                   "their sum, as Mixtral and Mistral Large 3 do")
        for key in ("expert_group_count", "expert_group_used_count"):
            if fields.integer(key, default=1, least=0) > 1:
                raise fields.refused(key, "1: experts are picked from all at once")
        if is_mixtral:
            width = fields.integer("feed_forward_length")
            if fields.integer("expert_feed_forward_length", default=width) != width:
                raise fields.refused("expert_feed_forward_length", f"{width}, the feed_forward_length")
            return fields
        if fields.integer("leading_dense_block_count", default=0, least=0) > num_layers:
            raise fields.wrong("leading_dense_block_count", f"up to the {num_layers} layers")
        return fields

    def softmax_scale(self) -> float | None:
        if self._row.full_interval is not None and self.fields.integer("block_count") == LARGEST_GEMMA_LAYERS:
            width, heads = (self.fields.integer(*KEYS[path].gguf) for path in ("width", "num_heads"))
            return 1 / math.sqrt(width // heads)  # llama.cpp knows it by the number of layers; there is no key
        if not self._row.has_latent_attention and not self._row.has_multipliers:
            return None
        return self.fields.number("attention.scale", default=0.0, may_be_zero=True) or None

    def multiplier(self, path: str) -> float:
        """0 means that there is none, as in llama.cpp."""
        return self.fields.number(*KEYS[path].gguf, default=1.0, may_be_zero=True) or 1.0

    def layers_without_rope(self, num_layers: int) -> tuple[int, ...]:
        """In Granite's files `finetuned` says whether there are rotary positions."""
        if self._row.has_multipliers and not self.fields.flag("rope.scaling.finetuned", default=True):
            return tuple(range(num_layers))
        return self._row.layers_without_rope(num_layers)

    def _query_temperature(self) -> QueryTemperature | None:
        beta = self.fields.number("attention.temperature_scale", "rope.scaling_beta", default=0.0, may_be_zero=True)
        if beta == 0 and self._architecture == "deepseek2":
            # Large 3 has it, DeepSeek does not: for a file without it we would have to guess the softmax scale.
            raise UnsupportedError("the model has no attention.temperature_scale; of the architecture deepseek2 brise "
                                   "runs Mistral Large 3, which has it")
        if beta == 0:
            return None
        if self.fields.has("attention.temperature_length"):
            return QueryTemperature(beta, self.fields.integer("attention.temperature_length"))
        return QueryTemperature(beta, self.fields.integer("rope.scaling.original_context_length"))

    def _scaling(self, dim: int) -> Scaling:
        # Ollama writes factor 0 and type "" where there is no scaling; llama.cpp takes a lone factor as linear.
        factor = self.fields.number("rope.scaling.factor", "rope.scale_linear", default=1.0, may_be_zero=True) or 1.0
        kind = self.fields.text("rope.scaling.type", default="") or ("none" if factor == 1 else "linear")
        if kind == "longrope" or not {LONG_FACTORS, SHORT_FACTORS}.isdisjoint(self._gguf.tensors):
            return self._long_rope(kind, dim // 2)
        if ROPE_FACTORS in self._gguf.tensors:
            if kind != "none":
                raise UnsupportedError(f"rope.scaling.type is {kind!r} beside {ROPE_FACTORS}, allowed is 'none'")
            return Factors(self._rope_factors(ROPE_FACTORS, dim // 2))
        match kind:
            case "none" | "default":
                return None
            case "linear" if self._row.has_stretched_context:
                self.fields.value("rope.scaling.original_context_length")  # the context is the one after it
                return Linear(factor) if factor != 1 else None
            case "linear" if not self._row.has_latent_attention:
                original = self.fields.integer("rope.scaling.original_context_length", default=self.max_context())
                return Linear(factor, original) if factor != 1 else None
            case "yarn":
                return self._yarn(factor)
        allowed = "'none' and 'yarn'" if self._row.has_latent_attention else "'none', 'linear' and 'yarn'"
        raise UnsupportedError(f"rope.scaling.type is {kind!r}, allowed are {allowed}")

    def _yarn(self, factor: float) -> Yarn:
        fields = self.fields
        if factor < 1:
            raise fields.wrong("rope.scaling.factor", "at least 1")
        original = fields.integer("rope.scaling.original_context_length")
        beta_fast = fields.number("rope.scaling.yarn_beta_fast", "rope.scaling.beta_fast", default=32.0)
        beta_slow = fields.number("rope.scaling.yarn_beta_slow", "rope.scaling.beta_slow", default=1.0)
        match self._row.yarn:
            case "plain":  # for these the log multiplier means something else, see known_keys
                return Yarn(factor, original, beta_fast, beta_slow)
            case "softmax":
                # Read so that it counts as known: it changes the softmax scale, and never the cosines.
                fields.number("rope.scaling.yarn_log_multiplier", default=0.0, may_be_zero=True)
                return Yarn(fields.number("rope.scaling.factor"), original, beta_fast, beta_slow, attention_factor=1.0)
            case "mscale":
                return Yarn(factor, original, beta_fast, beta_slow,
                            mscale=fields.number("rope.scaling.mscale", default=1.0, may_be_zero=True),
                            mscale_all_dim=fields.number("rope.scaling.yarn_log_multiplier",
                                                         "rope.scaling.mscale_all_dim", default=0.0, may_be_zero=True))

    def _long_rope(self, kind: str, count: int) -> LongRope:
        """Its converter writes two tensors and the attention factor; `rope.scaling.type` need not say longrope."""
        if kind not in ("none", "longrope"):
            raise UnsupportedError(f"rope.scaling.type is {kind!r} beside {LONG_FACTORS}, allowed are 'longrope' and "
                                   "'none'")
        for name in (SHORT_FACTORS, LONG_FACTORS):
            if name not in self._gguf.tensors:
                raise missing(name)
        original = self.fields.integer("rope.scaling.original_context_length")
        attention_factor = self.fields.number("rope.scaling.attn_factor", default=0.0, may_be_zero=True) or 1.0
        return LongRope(self._rope_factors(SHORT_FACTORS, count), self._rope_factors(LONG_FACTORS, count), original,
                        attention_factor, is_long=self.max_context() > original)

    def _rope_factors(self, name: str, count: int) -> tuple[float, ...]:
        tensor = self._gguf.tensors[name]
        if tensor.format != "F32" or tensor.shape != (count,):
            raise bad_value(name, f"{tensor.format} {tensor.shape}", f"F32 ({count},)")
        factors = tuple(float(factor) for factor in self._gguf.array(name).astype(np.float64))
        for factor in factors:
            if not (factor > 0 and math.isfinite(factor)):
                raise bad_value(name, factor, "finite numbers over 0")
        return factors
