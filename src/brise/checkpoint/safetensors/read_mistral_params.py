"""Reads params.json of Mistral's own checkpoints: the decoder, its vision or audio encoder, and the quantisation."""

from __future__ import annotations

from collections.abc import Mapping

from brise.checkpoint import known_keys, read_audio, read_decoder
from brise.checkpoint.read_decoder import Description
from brise.checkpoint.safetensors.read_quantization import check_native, scale_block
from brise.errors import UnsupportedError
from brise.files.fields import Fields
from brise.models.config import Config, Latent, QueryTemperature
from brise.models.families import FAMILIES, Format
from brise.models.pixtral import BREAK_TOKEN, END_TOKEN, NORM_EPS, NUM_CHANNELS, VisionConfig
from brise.models.rope import Rope, Yarn
from brise.models.whisper import AUDIO_TOKEN, BEGIN_TOKEN, AudioConfig
from brise.models.whisper import NORM_EPS as AUDIO_NORM_EPS

# Classic models state no longest context: this one all of them were trained for.
CLASSIC_CONTEXT = 32768
CLASSIC_THETA, WINDOWED_THETA = 1e6, 1e4
CHUNK_POSITIONS = 1500  # of Whisper's encoder: 30 seconds


def read_params(values: Mapping[str, object]) -> Description:
    """What the object of a params.json says; UnsupportedError names a key that brise does not implement."""
    fields = Fields(values, "")
    if fields.has("ada_rms_norm_t_cond") and fields.flag("ada_rms_norm_t_cond", default=False):
        raise UnsupportedError("the model is Voxtral Realtime (ada_rms_norm_t_cond), whose encoder is causal; brise "
                               "runs Voxtral Mini and Small", hint="take Voxtral-Mini-3B-2507")
    block = None
    if fields.has("quantization_config"):
        block = scale_block(fields.section("quantization_config"))
    if fields.has("quantization"):
        check_native(fields.section("quantization"))
    is_tied = fields.flag("tied_embeddings", default=False) if fields.has("tied_embeddings") else None
    config = _decoder(fields)
    outer = fields.section("multimodal") if fields.has("multimodal") else Fields({}, "multimodal")
    vision, audio = _vision(fields, outer, config), _audio(outer, config)
    outer.refuse_rest(known_keys.STRICT)
    fields.refuse_rest(known_keys.PARAMS)
    return Description(config, vision, block, is_tied, tuple(fields.ignored), audio)


def _decoder(fields: Fields) -> Config:
    source = NativeConfig(fields)
    config = read_decoder.read_config(source)
    if config.experts is not None:
        source.moe.refuse_rest(known_keys.PARAMS_MOE)
    return config


class NativeConfig:
    """What a params.json says of a decoder (read_decoder.ConfigSource)."""

    format: Format = "native"

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        known = {name: family.native_keys for name, family in FAMILIES.items() if family.native_keys is not None}
        # The later family is the more special one: Large 3 has the keys of Ministral 3 and of Mixtral as well.
        self.family = [name for name, keys in known.items() if not keys or fields.has(*keys)][-1]
        self.moe = fields.section("moe") if fields.has("moe") else Fields({}, "moe")

    def vocab_size(self) -> int:
        return self.fields.integer("vocab_size")

    def max_context(self) -> int:
        return self.fields.integer("max_position_embeddings", "max_seq_len", default=CLASSIC_CONTEXT)

    def head_dim(self, width: int, num_heads: int) -> int:
        head_dim = self.fields.integer("head_dim")
        if head_dim % 2:
            raise self.fields.wrong("head_dim", "an even number")
        return head_dim

    def latent(self, num_heads: int) -> tuple[Latent, int]:
        latent, rope_dim = read_decoder.latent_of(self)
        if self.fields.integer("head_dim") != latent.nope_dim + rope_dim:
            raise self.fields.wrong("head_dim", f"{latent.nope_dim + rope_dim}, qk_nope_head_dim + qk_rope_head_dim")
        if rope_dim % 2:
            raise self.fields.wrong("qk_rope_head_dim", "an even number")
        num_kv_heads = self.fields.integer("n_kv_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise self.fields.wrong("n_kv_heads", f"a divisor of the {num_heads} query heads")
        return latent, rope_dim

    def rope(self, dim: int, head_dim: int, max_context: int) -> tuple[Rope, QueryTemperature | None]:
        if self.fields.has("llama_4_scaling") and not FAMILIES[self.family].has_query_temperature:
            raise self.fields.refused("llama_4_scaling", "null beside moe without kv_lora_rank, which is Mixtral")
        return _rope(self.fields, dim), _temperature(self.fields)

    def window(self, num_layers: int, max_context: int) -> int | None:
        return _window(self.fields, max_context)

    def experts(self, num_layers: int) -> Fields:
        return self.moe

    def softmax_scale(self) -> float | None:
        return None

    def multiplier(self, path: str) -> float:
        return 1.0

    def full_layers(self, num_layers: int) -> tuple[int, ...]:
        return ()

    def window_rope(self, dim: int) -> Rope:
        raise AssertionError("no family of this format has windows in some layers")

    def layers_without_rope(self, num_layers: int) -> tuple[int, ...]:
        return ()


def _rope(fields: Fields, dim: int) -> Rope:
    # What Mistral's own code takes where nothing is said: 7B v0.1, with its window, and Mixtral 8x7B, without.
    theta = fields.number("rope_theta", default=WINDOWED_THETA if fields.has("sliding_window") else CLASSIC_THETA)
    if theta <= 1:
        raise fields.wrong("rope_theta", "a number over 1")
    if not fields.has("yarn"):
        return Rope(theta, dim, "interleaved")
    yarn = fields.section("yarn")
    factor = yarn.number("factor")
    if factor < 1:
        raise yarn.wrong("factor", "at least 1")
    # A scale is applied to cosines unless it is told not to: equal factors divide to 1.
    all_dim = 0.0 if yarn.flag("apply_scale", default=True) else 1.0
    scaling = Yarn(factor, yarn.integer("original_max_position_embeddings"), yarn.number("beta", default=32.0),
                   yarn.number("alpha", default=1.0), mscale=1.0, mscale_all_dim=all_dim)
    yarn.refuse_rest(known_keys.STRICT)
    return Rope(theta, dim, "interleaved", scaling)


def _temperature(fields: Fields) -> QueryTemperature | None:
    if not fields.has("llama_4_scaling"):
        return None
    scaling = fields.section("llama_4_scaling")
    beta = scaling.number("beta", may_be_zero=True)
    temperature = QueryTemperature(beta, scaling.integer("original_max_position_embeddings"))
    scaling.refuse_rest(known_keys.STRICT)
    return temperature if beta else None


def _window(fields: Fields, max_context: int) -> int | None:
    """The window of all layers; a list is repeated over them."""
    value = fields.value("sliding_window")
    if isinstance(value, list):
        if any(window != value[0] for window in value):
            raise fields.refused("sliding_window", "one number for all layers")
        fields = Fields({"sliding_window": value[0] if value else None}, "")
    window = fields.integer("sliding_window", default=max_context)
    return window if window < max_context else None


def _audio(outer: Fields, config: Config) -> AudioConfig | None:
    if not outer.has("whisper_model_args"):
        return None
    model = outer.section("whisper_model_args")
    fields, joined = model.section("encoder_args"), model.section("downsample_args")
    model.refuse_rest(known_keys.STRICT)
    spectrogram = fields.section("audio_encoding_args")
    width, num_heads = fields.integer("dim"), fields.integer("n_heads")
    if num_heads * fields.integer("head_dim", default=width // num_heads) != width:
        raise fields.refused("head_dim", width // num_heads)
    if fields.integer("n_kv_heads", default=num_heads) != num_heads:
        raise fields.refused("n_kv_heads", num_heads)
    audio = AudioConfig(
        width=width, num_layers=fields.integer("n_layers"), num_heads=num_heads, ffn_width=fields.integer("hidden_dim"),
        num_mels=spectrogram.integer("num_mel_bins"),
        num_positions=fields.integer("max_source_positions", default=CHUNK_POSITIONS),
        stack=joined.integer("downsample_factor"), norm_eps=AUDIO_NORM_EPS, text_width=config.width,
        audio_token=AUDIO_TOKEN, begin_token=BEGIN_TOKEN)
    joined.refuse_rest(known_keys.STRICT)
    spectrogram.refuse_rest(known_keys.PARAMS_SPECTROGRAM)
    fields.refuse_rest(known_keys.PARAMS_AUDIO)
    return read_audio.checked(audio, fields, "n_heads")


def _vision(top: Fields, outer: Fields, config: Config) -> VisionConfig | None:
    if outer.has("vision_encoder_args"):
        fields = outer.section("vision_encoder_args")
    elif top.has("vision_encoder"):
        fields = top.section("vision_encoder")
    else:
        return None
    if fields.text("mm_projector_id", default="none") != "patch_merge":
        raise fields.refused("mm_projector_id", "'patch_merge'")
    if fields.integer("num_channels", default=NUM_CHANNELS) != NUM_CHANNELS:
        raise fields.refused("num_channels", NUM_CHANNELS)
    width, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if width % (4 * num_heads):
        raise fields.wrong("num_attention_heads", f"heads of a multiple of 4 numbers in the width {width}")
    image_size = fields.integer("image_size")
    vision = VisionConfig(
        width=width, num_layers=fields.integer("num_hidden_layers"), num_heads=num_heads,
        head_dim=width // num_heads, ffn_width=fields.integer("intermediate_size"),
        patch_size=fields.integer("patch_size"), image_size=fields.integer("max_image_size", default=image_size),
        merge=fields.integer("spatial_merge_size", default=2), norm_eps=NORM_EPS,
        projector_norm_eps=config.norm_eps, rope_theta=fields.number("rope_theta", default=10000.0),
        text_width=config.width, image_token=fields.integer("image_token_id", default=10, least=0),
        break_token=fields.integer("image_break_token_id", default=BREAK_TOKEN, least=0),
        end_token=fields.integer("image_end_token_id", default=END_TOKEN, least=0))
    fields.refuse_rest(known_keys.PARAMS_VISION)
    return vision
