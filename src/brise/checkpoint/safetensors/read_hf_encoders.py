"""Reads what a config.json of Hugging Face says of encoders: Pixtral's and SigLIP's of images, Whisper's of audio."""

from __future__ import annotations

from math import isqrt
from types import MappingProxyType

from brise.checkpoint import known_keys, read_audio, read_siglip
from brise.errors import bad_value
from brise.files.fields import Fields
from brise.models.config import Config
from brise.models.pixtral import BREAK_TOKEN, END_TOKEN, NORM_EPS, NUM_CHANNELS, VisionConfig
from brise.models.siglip import SiglipConfig
from brise.models.whisper import AUDIO_TOKEN, BEGIN_TOKEN, AudioConfig
from brise.models.whisper import NORM_EPS as AUDIO_NORM_EPS

AUDIO_DEFAULTS = MappingProxyType({
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "num_mel_bins": 128, "max_source_positions": 1500})
SIGLIP_DEFAULTS = MappingProxyType({
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6})
VISION_DEFAULTS = MappingProxyType({
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 1024, "patch_size": 16})


def head_dim(fields: Fields, width: int, num_heads: int) -> int:
    """The width of a head, an even number."""
    if not fields.has("head_dim") and width % num_heads:
        raise fields.wrong("num_attention_heads", f"a divisor of the width {width}")
    head_dim = fields.integer("head_dim", default=width // num_heads)
    if head_dim % 2:
        raise fields.wrong("head_dim", "an even number")
    return head_dim


def audio(top: Fields, config: Config) -> AudioConfig:
    """Whisper's encoder, as Voxtral has it; UnsupportedError names a value that brise does not run."""
    fields = top.section("audio_config", defaults=AUDIO_DEFAULTS)
    if fields.text("model_type", default="voxtral_encoder") != "voxtral_encoder":
        raise fields.refused("model_type", "'voxtral_encoder'")
    width = fields.integer("hidden_size", "d_model")
    num_heads = fields.integer("num_attention_heads", "encoder_attention_heads")
    ffn_width = fields.integer("intermediate_size", "encoder_ffn_dim")
    if ffn_width % width:  # transformers joins as many positions as fill the feed-forward's width
        raise fields.wrong("intermediate_size", f"a multiple of the width {width}")
    if fields.integer("num_key_value_heads", default=num_heads) != num_heads:
        raise fields.refused("num_key_value_heads", num_heads)
    if num_heads * fields.integer("head_dim", default=width // num_heads) != width:
        raise fields.refused("head_dim", width // num_heads)
    sizes = AudioConfig(
        width=width, num_layers=fields.integer("num_hidden_layers", "encoder_layers"), num_heads=num_heads,
        ffn_width=ffn_width, num_mels=fields.integer("num_mel_bins"),
        num_positions=fields.integer("max_source_positions"), stack=ffn_width // width, norm_eps=AUDIO_NORM_EPS,
        text_width=config.width, audio_token=top.integer("audio_token_id", default=AUDIO_TOKEN, least=0),
        begin_token=BEGIN_TOKEN)
    fields.refuse_rest(known_keys.HF_AUDIO)
    return read_audio.checked(sizes, fields, "num_attention_heads")


def siglip(top: Fields, config: Config) -> SiglipConfig:
    """SigLIP's encoder, as Gemma 3 has it; UnsupportedError names a value that brise does not run."""
    fields = top.section("vision_config", defaults=SIGLIP_DEFAULTS)
    if fields.text("model_type", default="siglip_vision_model") != "siglip_vision_model":
        raise fields.refused("model_type", "'siglip_vision_model'")
    if fields.integer("num_channels") != NUM_CHANNELS:
        raise fields.refused("num_channels", NUM_CHANNELS)
    if fields.text("hidden_act") not in ("gelu_pytorch_tanh", "gelu_new"):
        raise fields.refused("hidden_act", "'gelu_pytorch_tanh'")
    if fields.flag("vision_use_head", default=False):
        raise fields.refused("vision_use_head", False)
    tokens, patch_size, image_size = (top.integer("mm_tokens_per_image", default=256), fields.integer("patch_size"),
                                      fields.integer("image_size"))
    side, per_side = image_size // patch_size, isqrt(tokens)
    if per_side**2 != tokens or image_size % patch_size or side % per_side:
        raise top.wrong("mm_tokens_per_image", f"the square of a divisor of {image_size} / {patch_size}")
    sizes = SiglipConfig(
        width=fields.integer("hidden_size"), num_layers=fields.integer("num_hidden_layers"),
        num_heads=fields.integer("num_attention_heads"), ffn_width=fields.integer("intermediate_size"),
        patch_size=patch_size, image_size=image_size, pool=side // per_side, norm_eps=fields.number("layer_norm_eps"),
        text_width=config.width,
        image_token=top.integer("image_token_index", "image_token_id", default=262144, least=0),
        begin_token=top.integer("boi_token_index", "boi_token_id", default=255999, least=0),
        end_token=top.integer("eoi_token_index", "eoi_token_id", default=256000, least=0))
    fields.refuse_rest(known_keys.HF_VISION)
    return read_siglip.checked(sizes)


def pixtral(top: Fields, config: Config) -> VisionConfig:
    """Pixtral's encoder, as Mistral 3 has it; UnsupportedError names a value that brise does not run."""
    fields = top.section("vision_config", defaults=VISION_DEFAULTS)
    if fields.text("model_type", default="pixtral") != "pixtral":
        raise fields.refused("model_type", "'pixtral'")
    if fields.integer("num_channels", default=NUM_CHANNELS) != NUM_CHANNELS:
        raise fields.refused("num_channels", NUM_CHANNELS)
    width, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    theta = _vision_theta(fields)
    vision = VisionConfig(
        width=width, num_layers=fields.integer("num_hidden_layers"), num_heads=num_heads,
        head_dim=head_dim(fields, width, num_heads), ffn_width=fields.integer("intermediate_size"),
        patch_size=fields.integer("patch_size"), image_size=fields.integer("image_size"),
        merge=top.integer("spatial_merge_size", default=2), norm_eps=NORM_EPS,
        projector_norm_eps=config.norm_eps, rope_theta=theta, text_width=config.width,
        image_token=top.integer("image_token_index", "image_token_id", default=10, least=0),
        break_token=BREAK_TOKEN, end_token=END_TOKEN)
    if vision.head_dim % 4:
        raise bad_value("vision_config.head_dim", vision.head_dim, "a multiple of 4")
    fields.refuse_rest(known_keys.HF_VISION)
    return vision


def _vision_theta(fields: Fields) -> float:
    if not fields.has("rope_parameters"):
        return fields.number("rope_theta", default=10000.0)
    rope = fields.section("rope_parameters")
    if rope.text("rope_type", "type", default="default") not in ("default", "axial"):
        raise rope.refused("rope_type", "'default' or 'axial'")
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=10000.0))
    rope.refuse_rest(known_keys.STRICT)
    return theta
