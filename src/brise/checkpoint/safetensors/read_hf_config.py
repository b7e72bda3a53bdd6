"""Reads config.json of Hugging Face checkpoints: the decoder and the quantisation; read_hf_encoders.py the encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from brise.checkpoint import known_keys, read_decoder
from brise.checkpoint.read_decoder import Description
from brise.checkpoint.safetensors import read_hf_encoders
from brise.checkpoint.safetensors.read_quantization import scale_block
from brise.errors import UnsupportedError
from brise.files.fields import Fields
from brise.models.config import Config, Latent, QueryTemperature
from brise.models.families import FAMILIES, KEYS, Format, ModelFamily
from brise.models.other_families import refusal
from brise.models.rope import Linear, Llama3, LongRope, Rope, Scaling, Yarn, long_rope_attention_factor
from brise.models.siglip import ImageConfig

VOXTRAL_DEFAULTS = MappingProxyType({
    "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e8,
    "head_dim": 128})


def read_config(values: Mapping[str, object]) -> Description:
    """What the object of a config.json says; UnsupportedError names a model or key that brise does not run."""
    top = Fields(values, "")
    for architecture in top.strings("architectures"):
        refuse_draft(architecture)
    if top.has("quantization") or (top.has("quantization_config")
                                   and not top.section("quantization_config").has("quant_method", "quantization")
                                   and top.section("quantization_config").has("bits", "group_size")):
        raise UnsupportedError("this is a folder of MLX (quantized for Apple's machines), which brise does not read",
                               hint="take the model's original folder, or a GGUF file of it")
    block = scale_block(top.section("quantization_config")) if top.has("quantization_config") else None
    kind = top.text("model_type")
    if kind == "voxtral":
        return _voxtral(top, block)
    if kind == "voxtral_realtime":
        raise UnsupportedError("the model is Voxtral Realtime, whose encoder is causal; brise runs Voxtral Mini and "
                               "Small", hint="take Voxtral-Mini-3B-2507")
    if kind not in ("mistral3", "gemma3"):
        family = _known(kind)
        fields = Fields(values, "", FAMILIES[family].hf_defaults, ignored=top.ignored)
        fields.value("quantization_config")  # read above
        is_tied = _is_tied(fields)
        return Description(_decoder(fields, family), None, block, is_tied, tuple(fields.ignored))
    inner = top.section("text_config")
    family = _known(inner.text("model_type", default="gemma3_text" if kind == "gemma3" else "mistral"))
    if block is None and inner.has("quantization_config"):
        block = scale_block(inner.section("quantization_config"))
    inner = top.section("text_config", defaults=FAMILIES[family].hf_defaults)
    is_tied = _is_tied(top, inner)
    config = _decoder(inner, family)
    vision: ImageConfig | None = None
    if top.has("vision_config"):
        vision = read_hf_encoders.siglip(top, config) if kind == "gemma3" else read_hf_encoders.pixtral(top, config)
    top.refuse_rest(known_keys.HF_WRAPPER)
    return Description(config, vision, block, is_tied, tuple(top.ignored))


def _voxtral(top: Fields, block: tuple[int, int] | None) -> Description:
    """A Llama that hears."""
    family = _known(top.section("text_config").text("model_type", default="llama"))
    inner = top.section("text_config", defaults={**FAMILIES[family].hf_defaults, **VOXTRAL_DEFAULTS})
    is_tied = _is_tied(top, inner)
    config = _decoder(inner, family)
    audio = read_hf_encoders.audio(top, config) if top.has("audio_config") else None
    for key in ("hidden_size", "vocab_size"):  # of the text model once more
        top.value(key)
    top.refuse_rest(known_keys.HF_WRAPPER)
    return Description(config, None, block, is_tied, tuple(top.ignored), audio)


def _is_tied(*sections: Fields) -> bool | None:
    """Whether the head is the embedding. Repositories say it inside or outside of text_config: one true suffices."""
    said = [fields.flag("tie_word_embeddings", default=False) for fields in sections
            if fields.has("tie_word_embeddings")]
    return any(said) if said else None


def refuse_draft(name: str) -> None:
    """Raises for a draft model of speculative decoding, which is no model of its own."""
    if "eagle" in name.lower():
        raise UnsupportedError(f"{name} belongs to an EAGLE draft, which brise does not implement",
                               hint="load the model that the draft was made for")


def _known(kind: str) -> str:
    if kind not in FAMILIES:
        raise refusal("model_type", kind, f"{', '.join(FAMILIES)}, mistral3 and voxtral")
    return kind


def _decoder(fields: Fields, family: str) -> Config:
    config = read_decoder.read_config(HfConfig(fields, family))
    fields.refuse_rest(known_keys.hf_decoder(config))
    return config


class HfConfig:
    """What a config.json says of a decoder (read_decoder.ConfigSource)."""

    format: Format = "hf"

    def __init__(self, fields: Fields, family: str) -> None:
        self.fields, self.family = fields, family

    def vocab_size(self) -> int:
        return self.fields.integer("vocab_size")

    def max_context(self) -> int:
        return self.fields.integer("max_position_embeddings")

    def head_dim(self, width: int, num_heads: int) -> int:
        return read_hf_encoders.head_dim(self.fields, width, num_heads)

    def latent(self, num_heads: int) -> tuple[Latent, int]:
        return read_decoder.latent_of(self)

    def rope(self, dim: int, head_dim: int, max_context: int) -> tuple[Rope, QueryTemperature | None]:
        family = FAMILIES[self.family]
        section = self._rope_section("full_attention") if family.full_interval is not None else None
        rope, temperature = _rope(self.fields, dim, head_dim, family, max_context, section, family.theta)
        if family.has_stretched_context and isinstance(rope.scaling, Linear):
            rope = replace(rope, scaling=Linear(rope.scaling.factor))
        return rope, temperature

    def window_rope(self, dim: int) -> Rope:
        section = self._rope_section("sliding_attention")
        family = FAMILIES[self.family]
        theta = self.fields.number("rope_local_base_freq", default=family.window_theta)
        if section is not None:
            return _rope(self.fields, dim, dim, family, 0, section, theta)[0]
        if theta <= 1:
            raise self.fields.wrong("rope_local_base_freq", "a number over 1")
        return Rope(theta, dim, family.rope_layout)

    def _rope_section(self, kind: str) -> Fields | None:
        """The rotation of one kind of layers, where the file has a section for each."""
        if not isinstance(self.fields.value("rope_parameters"), Mapping):
            return None
        sections = self.fields.section("rope_parameters")
        return sections.section(kind) if sections.has(kind) else None

    def full_layers(self, num_layers: int) -> tuple[int, ...]:
        family, kinds = FAMILIES[self.family], self.fields.strings("layer_types")[:num_layers]
        interval = self.fields.integer("sliding_window_pattern", "_sliding_window_pattern",
                                       default=family.full_interval)
        if not kinds:
            return replace(family, full_interval=interval).full_layers(num_layers)
        if len(kinds) < num_layers or not {*kinds} <= {"full_attention", "sliding_attention"}:
            raise self.fields.wrong("layer_types", f"'full_attention' or 'sliding_attention' for each of {num_layers} "
                                                   "layers")
        return tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")

    def window(self, num_layers: int, max_context: int) -> int | None:
        """It must be the same in all layers, unless the family has layers of both kinds."""
        fields, may_spare = self.fields, FAMILIES[self.family].window_spares_layers
        if FAMILIES[self.family].full_interval is not None:
            size = fields.integer("sliding_window") if fields.has("sliding_window") else max_context
            return size if size < max_context and len(self.full_layers(num_layers)) < num_layers else None
        is_used = fields.flag("use_sliding_window", default=False) or not may_spare
        window = fields.integer("sliding_window") if fields.has("sliding_window") and is_used else None
        if window is None or window >= max_context:
            window = None
        if window is not None and not (may_spare or FAMILIES[self.family].has_window):
            raise fields.refused("sliding_window", f"null: transformers gives the family {self.family} no window")
        kinds = fields.strings("layer_types")
        if window is not None and FAMILIES[self.family].no_rope_interval is not None:  # only of layers without rotary
            raise fields.refused("sliding_window", "null")
        if may_spare and window is not None and not kinds:
            spared = fields.integer("max_window_layers", default=28, least=0)
            kinds = ["full_attention"] * spared + ["sliding_attention"] * (num_layers - spared)
        allowed = "full_attention" if window is None else "sliding_attention"
        if FAMILIES[self.family].hf_layer_types:
            self._refuse_hybrid(kinds[:num_layers])
            return None
        if set(kinds[:num_layers]) == {"full_attention"}:
            return None
        if kinds and any(kind != allowed for kind in kinds):
            raise fields.refused("layer_types" if fields.has("layer_types") else "max_window_layers",
                                 f"{allowed!r} in every layer")
        return window

    def _refuse_hybrid(self, kinds: Sequence[str]) -> None:
        """UnsupportedError for Granite 4 with Mamba layers, which it has where nothing is said, or with experts."""
        if not kinds or set(kinds) - {"attention", "full_attention"}:
            raise self.fields.refused("layer_types", "'attention' in every layer: brise runs Granite 4 without Mamba "
                                      "layers (350M, 1B, micro)")
        for key in ("num_local_experts", "num_experts_per_tok"):
            if self.fields.integer(key, least=0):
                raise self.fields.refused(key, "0: brise runs Granite 4 without experts")

    def experts(self, num_layers: int) -> Fields:
        return self.fields

    def softmax_scale(self) -> float | None:
        family = FAMILIES[self.family]
        if family.has_multipliers:
            return self.fields.number(*KEYS["attention_scale"].hf)
        if family.full_interval is None:
            return None
        scalar = self.fields.number("query_pre_attn_scalar")
        return None if scalar == self.fields.integer("head_dim") else scalar**-0.5

    def multiplier(self, path: str) -> float:
        return self.fields.number(*KEYS[path].hf)

    def layers_without_rope(self, num_layers: int) -> tuple[int, ...]:
        """`no_rope_layers` has 0 for each of them; without it, they are every `no_rope_layer_interval`-th."""
        family = FAMILIES[self.family]
        if family.hf_layer_types and self.fields.value("position_embedding_type") != "rope":
            return tuple(range(num_layers))
        if family.no_rope_interval is None:
            return ()
        interval, flags = self.fields.integer("no_rope_layer_interval"), self.fields.value("no_rope_layers")
        if flags is None:
            return replace(family, no_rope_interval=interval).layers_without_rope(num_layers)
        if not isinstance(flags, list) or len(flags) < num_layers or any(flag not in (0, 1) for flag in flags):
            raise self.fields.wrong("no_rope_layers", f"a list of 0 and 1 for each of the {num_layers} layers")
        return tuple(index for index, flag in enumerate(flags[:num_layers]) if not flag)


def _rope(fields: Fields, dim: int, head_dim: int, family: ModelFamily, max_context: int,
          section: Fields | None = None, theta: float = 10000.0) -> tuple[Rope, QueryTemperature | None]:
    """Rotation of the first `dim` numbers of a head, and the temperature of queries where the family has one.

    `section` holds the rotation's keys, where that is not the one of all layers; `theta` is the base if none is said.
    """
    is_set = fields.has("rope_parameters") or fields.has("rope_scaling")
    rope = section or (fields.section("rope_parameters", "rope_scaling") if is_set else Fields({}, "rope_parameters"))
    default = fields.number("rope_theta", default=theta)
    theta = rope.number("rope_theta", default=default)
    if theta <= 1:
        raise rope.wrong("rope_theta", "a number over 1")
    temperature = _temperature(rope) if family.has_query_temperature else None
    share = dim / head_dim
    if family.has_partial_rotary:
        share = fields.number("partial_rotary_factor", default=share)
    share = rope.number("partial_rotary_factor", default=share)
    if family.has_partial_rotary:
        dim = int(share * head_dim)
        if dim % 2 or not 0 < dim <= head_dim:
            raise rope.wrong("partial_rotary_factor", f"a share of the head's {head_dim} that is an even number")
    elif abs(share * head_dim - dim) > 1e-3:
        raise rope.refused("partial_rotary_factor", dim / head_dim)
    scaling = _scaling(rope, dim, max_context, _own_original_context(fields))
    rope.refuse_rest(known_keys.HF_ROPE)
    return Rope(theta, dim, family.rope_layout, scaling), temperature


def _own_original_context(fields: Fields) -> int | None:
    """The original context that stands beside the sizes: Phi-3 has it there, or from its class."""
    if not fields.has("original_max_position_embeddings"):
        return None
    return fields.integer("original_max_position_embeddings")


def _temperature(rope: Fields) -> QueryTemperature | None:
    beta = rope.number("llama_4_scaling_beta", default=0.0, may_be_zero=True)
    return QueryTemperature(beta, rope.integer("original_max_position_embeddings")) if beta else None


def _scaling(rope: Fields, dim: int, max_context: int, own_original: int | None) -> Scaling:
    match rope.text("rope_type", "type", default="default"):
        case "default":
            rope.value("original_max_position_embeddings")  # the temperature's
            return None
        case "linear":
            return Linear(rope.number("factor"),
                          rope.integer("original_max_position_embeddings", default=max_context))
        case "llama3":
            return _llama3(rope, max_context)
        case "longrope" | "su":
            return _long_rope(rope, dim // 2, max_context, own_original)
        case "yarn":
            return _yarn(rope, max_context)
    raise rope.refused("rope_type" if rope.has("rope_type") else "type", "'default', 'linear', 'llama3', 'longrope' or "
                       "'yarn'")


def _llama3(rope: Fields, max_context: int) -> Llama3:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"over {low}, the low_freq_factor")
    return Llama3(rope.number("factor"), rope.integer("original_max_position_embeddings", default=max_context),
                  low, high)


def _long_rope(rope: Fields, count: int, max_context: int, own_original: int | None) -> LongRope:
    """Where `original_max_position_embeddings` stands twice, the one beside the sizes counts, as in transformers.
    Factors are float32 there and in GGUF files."""
    stated = rope.integer("original_max_position_embeddings", default=own_original or max_context)
    original = own_original or stated
    if original < 2:
        raise rope.wrong("original_max_position_embeddings", "2 or more")
    factor = rope.number("factor", default=max_context / original)
    attention_factor = rope.number("attention_factor", default=long_rope_attention_factor(factor, original))
    return LongRope(_factors(rope, "short_factor", count), _factors(rope, "long_factor", count), original,
                    float(np.float32(attention_factor)), is_long=max_context > original)


def _factors(rope: Fields, name: str, count: int) -> tuple[float, ...]:
    values = rope.value(name)
    if not isinstance(values, list) or len(values) != count or any(
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30 for value in values):
        raise rope.wrong(name, f"a list of {count} numbers over 0, one for each pair of rotated numbers")
    return tuple(map(float, np.array(values, np.float32)))


def _yarn(rope: Fields, max_context: int) -> Yarn:
    factor = rope.number("factor")
    if factor < 1:
        raise rope.wrong("factor", "at least 1")
    return Yarn(
        factor, rope.integer("original_max_position_embeddings", default=max_context),
        rope.number("beta_fast", default=32.0), rope.number("beta_slow", default=1.0),
        mscale=rope.number("mscale", default=1.0, may_be_zero=True),
        mscale_all_dim=rope.number("mscale_all_dim", default=0.0, may_be_zero=True),
        attention_factor=rope.number("attention_factor") if rope.has("attention_factor") else None)
