"""params.json of Mistral's own checkpoints: the decoder, the vision tower and the quantisation that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from brise.checkpoint.config_fields import ConfigFields, Plain
from brise.checkpoint.safetensors.parsed_config import BREAK_TOKEN, END_TOKEN, VISION_NORM_EPS, Description
from brise.checkpoint.safetensors.quantization import check_native, scale_block
from brise.errors import UnsupportedError, bad_value
from brise.models.config import Config, Experts, Family, Latent, QueryTemperature
from brise.models.pixtral import NUM_CHANNELS, VisionConfig
from brise.models.rope import Rope, Yarn

# Classic models state no longest context: this one all of them were trained for.
CLASSIC_CONTEXT = 32768

NEUTRAL: Mapping[str, tuple[Plain, ...]] = MappingProxyType({
    "causal": (True,), "use_biases": (False,), "bias": (False,), "model_type": ("transformer",)})
NOTES = frozenset({"architectures", "dtype", "max_batch_size", "tied_embeddings"})
MOE_NEUTRAL: Mapping[str, tuple[Plain, ...]] = MappingProxyType({
    "route_every_n": (1,), "num_expert_groups": (1,), "num_expert_groups_per_tok": (1,)})
MOE_NOTES = frozenset({"expert_parallel", "expert_model_parallel"})  # how the file was trained
VISION_NEUTRAL: Mapping[str, tuple[Plain, ...]] = MappingProxyType({
    "mm_projector_id": ("patch_merge",), "add_pre_mm_projector_layer_norm": (True,), "adapter_bias": (False,)})


def read_params(values: Mapping[str, object]) -> Description:
    """What the object of a params.json says; UnsupportedError names a key that brise does not implement."""
    fields = ConfigFields(values, "")
    block = None
    if fields.has("quantization_config"):
        block = scale_block(fields.section("quantization_config"))
    if fields.has("quantization"):
        check_native(fields.section("quantization"))
    config = _decoder(fields)
    vision = _vision(fields, config)
    fields.refuse_rest(NEUTRAL, NOTES)
    return Description(config, vision, block)


def _decoder(fields: ConfigFields) -> Config:
    latent = _latent(fields) if fields.has("kv_lora_rank") else None
    if fields.has("moe") and latent is None:
        raise UnsupportedError("moe without kv_lora_rank is Mixtral, which brise does not implement")
    head_dim, num_heads = fields.integer("head_dim"), fields.integer("n_heads")
    rope_dim = head_dim if latent is None else fields.integer("qk_rope_head_dim")
    if latent is not None and head_dim != latent.nope_dim + rope_dim:
        raise fields.wrong("head_dim", f"{latent.nope_dim + rope_dim}, qk_nope_head_dim + qk_rope_head_dim")
    if rope_dim % 2:
        raise bad_value("the rotated part of head_dim", rope_dim, "an even number")
    num_kv_heads = fields.integer("n_kv_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.wrong("n_kv_heads", f"a divisor of the {num_heads} query heads")
    max_context = fields.integer("max_position_embeddings", "max_seq_len", default=CLASSIC_CONTEXT)
    rope, temperature = _rope(fields, rope_dim), _temperature(fields)
    return Config(
        family=_family(fields, latent), vocab_size=fields.integer("vocab_size"), width=fields.integer("dim"),
        num_layers=fields.integer("n_layers"), num_heads=num_heads,
        num_kv_heads=num_kv_heads if latent is None else 1, head_dim=head_dim,
        ffn_width=fields.integer("hidden_dim"), norm_eps=fields.number("norm_eps"), rope=rope,
        max_context=max_context, sliding_window=_window(fields, max_context), query_temperature=temperature,
        latent=latent, experts=_experts(fields.section("moe")) if fields.has("moe") else None)


def _family(fields: ConfigFields, latent: Latent | None) -> Family:
    if latent is not None:
        return "mistral4"
    return "ministral3" if fields.has("yarn") or fields.has("llama_4_scaling") else "mistral"


def _latent(fields: ConfigFields) -> Latent:
    return Latent(fields.integer("q_lora_rank"), fields.integer("kv_lora_rank"), fields.integer("qk_nope_head_dim"),
                  fields.integer("v_head_dim"))


def _rope(fields: ConfigFields, dim: int) -> Rope:
    theta = fields.number("rope_theta")
    if theta <= 1:
        raise fields.wrong("rope_theta", "a number over 1")
    if not fields.has("yarn"):
        return Rope(theta, dim, "interleaved")
    yarn = fields.section("yarn")
    factor = yarn.number("factor")
    if factor < 1:
        raise yarn.wrong("factor", "at least 1")
    # A scale is applied to cosines unless it is told not to: equal magnitudes divide to 1.
    all_dim = 0.0 if yarn.flag("apply_scale", default=True) else 1.0
    scaling = Yarn(factor, yarn.integer("original_max_position_embeddings"), yarn.number("beta", default=32.0),
                   yarn.number("alpha", default=1.0), mscale=1.0, mscale_all_dim=all_dim)
    yarn.refuse_rest({}, ())
    return Rope(theta, dim, "interleaved", scaling)


def _temperature(fields: ConfigFields) -> QueryTemperature | None:
    if not fields.has("llama_4_scaling"):
        return None
    scaling = fields.section("llama_4_scaling")
    beta = scaling.number("beta", may_be_zero=True)
    temperature = QueryTemperature(beta, scaling.integer("original_max_position_embeddings"))
    scaling.refuse_rest({}, ())
    return temperature if beta else None


def _window(fields: ConfigFields, max_context: int) -> int | None:
    """The window of all layers; a list goes round over them."""
    value = fields.value("sliding_window")
    if isinstance(value, list):
        if any(window != value[0] for window in value):
            raise fields.refused("sliding_window", "one number for all layers")
        fields = ConfigFields({"sliding_window": value[0] if value else None}, "")
    window = fields.integer("sliding_window", default=max_context)
    return window if window < max_context else None


def _experts(fields: ConfigFields) -> Experts:
    count, per_token = fields.integer("num_experts"), fields.integer("num_experts_per_tok")
    if per_token > count:
        raise fields.wrong("num_experts_per_tok", f"at most {count}, the number of experts")
    width = fields.integer("expert_hidden_dim")
    experts = Experts(
        count, per_token, width, shared_width=width * fields.integer("num_shared_experts", default=0, least=0),
        num_dense_layers=fields.integer("first_k_dense_replace", default=0, least=0),
        scale=fields.number("routed_scale", default=1.0))
    fields.refuse_rest(MOE_NEUTRAL, MOE_NOTES)
    return experts


def _vision(top: ConfigFields, config: Config) -> VisionConfig | None:
    if top.has("multimodal"):
        outer = top.section("multimodal")
        fields = outer.section("vision_encoder_args")
        outer.refuse_rest({}, ())
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
        merge=fields.integer("spatial_merge_size", default=2), norm_eps=VISION_NORM_EPS,
        projector_norm_eps=config.norm_eps, rope_theta=fields.number("rope_theta", default=10000.0),
        text_width=config.width, image_token=fields.integer("image_token_id", default=10, least=0),
        break_token=fields.integer("image_break_token_id", default=BREAK_TOKEN, least=0),
        end_token=fields.integer("image_end_token_id", default=END_TOKEN, least=0))
    fields.refuse_rest(VISION_NEUTRAL, ())
    return vision
