"""config.json and params.json of the released models, as facts of their own, and what brise refuses in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.checkpoint.read_decoder import Description
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.safetensors.read_mistral_params import read_params
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.models.config import Config, Experts, Latent, QueryTemperature
from brise.models.pixtral import VisionConfig
from brise.models.rope import Linear, Llama3, LongRope, Rope, Yarn, frequencies

SPEC = Path(__file__).parents[3] / "shared" / "spec" / "configs"
YARN = {"rope_type": "yarn", "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
           "num_attention_heads": 16, "head_dim": 64, "num_channels": 3, "image_size": 1540, "patch_size": 14,
           "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def ministral(width: int, layers: int, ffn: int, theta: float) -> dict[str, Any]:
    """Ministral 3 as its repositories have it."""
    return {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "dtype": "bfloat16",
        "image_token_index": 10, "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
        "spatial_merge_size": 2, "vision_feature_layer": -1, "vision_config": PIXTRAL, "tie_word_embeddings": False,
        "text_config": {
            "model_type": "ministral3", "vocab_size": 131072, "hidden_size": width, "intermediate_size": ffn,
            "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "hidden_act": "silu", "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "sliding_window": None,
            "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
            "rope_parameters": {**YARN, "rope_theta": theta}}}


NATIVE_14B: dict[str, Any] = {
    "dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 16384, "n_heads": 32, "n_kv_heads": 8,
    "rope_theta": 1e9, "norm_eps": 1e-5, "vocab_size": 131072, "tied_embeddings": False, "max_seq_len": 262144,
    "llama_4_scaling": {"original_max_position_embeddings": 16384, "beta": 0.1},
    "yarn": {"original_max_position_embeddings": 16384, "factor": 16, "apply_scale": False, "beta": 32, "alpha": 1},
    "vision_encoder": {
        "image_token_id": 10, "image_break_token_id": 12, "image_end_token_id": 13, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "mm_projector_id": "patch_merge", "num_channels": 3,
        "spatial_merge_size": 2, "hidden_size": 1024, "image_size": 1540, "max_image_size": 1540, "patch_size": 14,
        "rope_theta": 10000.0, "add_pre_mm_projector_layer_norm": True, "adapter_bias": False}}
LARGE_3: dict[str, Any] = {
    "dim": 7168, "n_layers": 61, "n_heads": 128, "n_kv_heads": 128, "head_dim": 192, "hidden_dim": 16384,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 131072, "norm_eps": 1e-6, "rope_theta": 1e4, "tied_embeddings": False,
    "max_position_embeddings": 294912,
    "yarn": {"factor": 36, "original_max_position_embeddings": 8192, "alpha": 1, "beta": 32, "apply_scale": False},
    "llama_4_scaling": {"original_max_position_embeddings": 8192, "beta": 0.1},
    "moe": {"num_experts": 128, "num_experts_per_tok": 4, "num_shared_experts": 1, "expert_hidden_dim": 4096,
            "first_k_dense_replace": 3, "route_every_n": 1, "routed_scale": 1.0, "num_expert_groups": 1,
            "num_expert_groups_per_tok": 1, "expert_parallel": 1, "expert_model_parallel": 1},
    "quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"FP8_BLOCK": {
            "format": "float-quantized", "targets": ["Linear"], "output_activations": None,
            "input_activations": {"dynamic": True, "group_size": 128, "num_bits": 8, "type": "float"},
            "weights": {"block_structure": [128, 128], "dynamic": False, "num_bits": 8, "strategy": "block",
                        "symmetric": True, "type": "float"}}}}}
SMALL: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 128}


PHI3: dict[str, Any] = {"model_type": "phi3", "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32}
GRANITE4: dict[str, Any] = {
    "model_type": "granitemoehybrid", "layer_types": ["attention"] * 2, "num_local_experts": 0,
    "num_experts_per_tok": 0, "shared_intermediate_size": 80, "position_embedding_type": "rope"}


def test_ministral_3_14b() -> None:
    expected = Config(
        family="ministral3", vocab_size=131072, width=5120, num_layers=40, num_heads=32, num_kv_heads=8,
        head_dim=128, ffn_width=16384, norm_eps=1e-5, max_context=262144,
        rope=Rope(1e9, 128, "interleaved", Yarn(16, 16384, 32, 1, 1, 1)),
        query_temperature=QueryTemperature(0.1, 16384))
    vision = VisionConfig(
        width=1024, num_layers=24, num_heads=16, head_dim=64, ffn_width=4096, patch_size=14, image_size=1540,
        merge=2, norm_eps=1e-5, projector_norm_eps=1e-5, rope_theta=1e4, text_width=5120, image_token=10,
        break_token=12, end_token=13)
    assert read_config(ministral(5120, 40, 16384, 1e9)) == Description(expected, vision, None)
    assert read_params(NATIVE_14B) == Description(expected, vision, None)


def test_large_3() -> None:
    expected = Config(
        family="mistral4", vocab_size=131072, width=7168, num_layers=61, num_heads=128, num_kv_heads=1,
        head_dim=192, ffn_width=16384, norm_eps=1e-6, max_context=294912,
        rope=Rope(1e4, 64, "interleaved", Yarn(36, 8192, 32, 1, 1, 1)),
        query_temperature=QueryTemperature(0.1, 8192), latent=Latent(1536, 512, 128, 128),
        experts=Experts(128, 4, 4096, shared_width=4096, num_dense_layers=3))
    description = read_params(LARGE_3)
    assert description == Description(expected, None, (128, 128))
    assert expected.attention_scale == pytest.approx(192**-0.5) and frequencies(expected.rope)[1] == 1.0


def test_small_4_leaves_what_its_class_knows_to_the_class() -> None:
    config = read_config({"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}).config
    assert (config.width, config.num_layers, config.head_dim, config.rope.dim) == (4096, 36, 128, 64)
    assert config.experts == Experts(128, 4, 2048, shared_width=2048) and config.latent == Latent(1024, 256, 64, 128)
    assert config.rope.scaling == Yarn(128, 8192, 32, 1, 1, 1)


@pytest.mark.parametrize(("change", "scaling"), [
    ({"rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}}, Llama3(32, 8192, 1, 4)),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}, Linear(4)),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}}, Yarn(4, 128)),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
     Yarn(4, 128, attention_factor=1.5)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, None),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "factor": 1.0}}, None),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}}, Yarn(4, 128)),
    ({"rope_theta": 5e5, "rope_scaling": None}, None),
])
def test_rope_of_older_and_newer_files(change: dict[str, Any], scaling: object) -> None:
    config = read_config(SMALL | change).config
    assert config.rope == Rope(5e5, 16, "interleaved", scaling)


def test_magnitudes_of_yarn() -> None:
    devstral = {**YARN, "factor": 64.0, "beta_fast": 4.0, "original_max_position_embeddings": 4096,
                "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0}
    config = read_config({"model_type": "ministral3", "rope_parameters": devstral}).config
    assert frequencies(config.rope)[1] == pytest.approx(1.415888, abs=1e-6) and config.query_temperature is None
    native = read_params({**NATIVE_14B, "yarn": {**NATIVE_14B["yarn"], "apply_scale": True}}).config
    assert frequencies(native.rope)[1] == pytest.approx(1.2772589, abs=1e-6)


@pytest.mark.parametrize(("change", "window"), [
    ({"model_type": "mistral"}, None),  # the class's 4096 is over this context
    ({"model_type": "mistral", "max_position_embeddings": 32768}, 4096),
    ({"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": None}, None),
    ({"model_type": "mistral", "sliding_window": 7}, 7),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": False, "max_window_layers": 1}, None),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}, None),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0}, 7),
    ({"model_type": "qwen3", "layer_types": ["full_attention"] * 2}, None),
    ({"model_type": "smollm3", "sliding_window": 7}, None),  # use_sliding_window is false
])
def test_sliding_windows(change: dict[str, Any], window: int | None) -> None:
    assert read_config(SMALL | change).config.sliding_window == window


@pytest.mark.parametrize(("change", "layers"), [
    ({}, (3,)), ({"no_rope_layer_interval": 2}, (1, 3)), ({"no_rope_layers": [1, 0, 1, 1, 1, 0]}, (1,))])
def test_layers_without_rope(change: dict[str, Any], layers: tuple[int, ...]) -> None:
    config = read_config(SMALL | {"model_type": "smollm3", "num_hidden_layers": 5} | change).config
    assert config.layers_without_rope == layers and config.rope.theta == 2e6


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "gemma2"}, "model_type is 'gemma2'"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.type is 'dynamic'"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "rope_scaling.truncate is False"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0, "other": 1}}, "rope_scaling.other is 1"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention is"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta is 0.1"),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
     "max_window_layers is 1"),
    ({"model_type": "mistral", "sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"]},
     "layer_types is"),
    ({"model_type": "smollm3", "sliding_window": 7, "use_sliding_window": True}, "sliding_window is 7"),
    ({"no_rope_layers": [1, 0]}, "no_rope_layers is"),
    ({"architectures": ["EagleMistralLarge3ForCausalLM"]}, "belongs to an EAGLE draft"),
    ({"model_type": "mistral4", "n_group": 8}, "n_group is 8"),
    ({"model_type": "mistral4", "rope_interleave": False}, "rope_interleave is False"),
    ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}, "vision_feature_layer": -2},
     "vision_feature_layer is -2"),
    ({"model_type": "mistral3", "text_config": {}, "vision_config": {**PIXTRAL, "hidden_act": "gelu"}},
     "vision_config.hidden_act is 'gelu'"),
])
def test_what_changes_the_computation_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_config(change if change.get("model_type") == "mistral3" else SMALL | change)


@pytest.mark.parametrize(("scaling", "factor"), [
    ({"type": "su"}, 1.1832160), ({"rope_type": "longrope", "factor": 1.0}, 1.0),  # sqrt(1 + ln 4 / ln 32)
    ({"type": "longrope", "attention_factor": 1.5, "original_max_position_embeddings": 64}, 1.5)])
def test_phi_3_takes_the_original_context_beside_its_sizes(scaling: dict[str, Any], factor: float) -> None:
    sets = {"short_factor": [1] * 6, "long_factor": [2.5] * 6}
    rope = read_config(SMALL | PHI3 | {"rope_scaling": scaling | sets}).config.rope
    assert isinstance(rope.scaling, LongRope) and rope.dim == 12 and rope.scaling.is_long
    assert (rope.scaling.original_context, rope.scaling.long) == (32, (2.5,) * 6)
    assert rope.scaling.attention_factor == pytest.approx(factor)


def test_granite_4_is_dense_and_may_have_no_rotary_positions() -> None:
    assert read_config(SMALL | GRANITE4).config.layers_without_rope == ()
    config = read_config(SMALL | GRANITE4 | {"position_embedding_type": "nope"}).config
    assert config.layers_without_rope == (0, 1) and config.ffn_width == 80


@pytest.mark.parametrize(("change", "message"), [
    ({"layer_types": ["attention", "mamba"]}, "layer_types is .* without Mamba layers"),
    ({"layer_types": None}, "layer_types is None.* without Mamba"),
    ({"num_local_experts": 4}, "num_local_experts is 4"), ({"num_experts_per_tok": None}, "num_experts_per_tok")])
def test_granite_4_with_mamba_layers_or_experts_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((UnsupportedError, CheckpointError), match=message):
        read_config(SMALL | GRANITE4 | change)


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden_size": "48"}, "hidden_size is '48', allowed is an integer"),
    ({"hidden_size": 49}, "num_attention_heads is 3, allowed is a divisor of the width 49"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
    ({"rope_theta": 0.5}, "rope_theta"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "type is 'linear', allowed is"),
    ({"rope_scaling": 4.0}, "rope_scaling is 4.0, allowed is an object"),
    ({"model_type": "mistral4", "num_experts_per_tok": 400}, "num_experts_per_tok is 400"),
    ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "short_factor is None, allowed is a list of 8 numbers"),
    (PHI3 | {"rope_scaling": {"type": "su", "short_factor": [1.0] * 6, "long_factor": [1.0] * 5}}, "long_factor is"),
    (PHI3 | {"rope_scaling": {"type": "su", "short_factor": [1.0] * 5 + [0], "long_factor": []}}, "short_factor is"),
    (PHI3 | {"partial_rotary_factor": 0.7}, "partial_rotary_factor is"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers is"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "no_rope_layers is"),
])
def test_values_that_cannot_be_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_config(SMALL | change)


@pytest.mark.parametrize(("change", "message"), [
    ({"attention_sinks": 4}, "attention_sinks is 4"),
    ({"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, "llama_4_scaling is .* which is Mixtral"),
    ({"sliding_window": [4096, 1024]}, "sliding_window is"),
    ({"yarn": {**NATIVE_14B["yarn"], "other": 1}}, "yarn.other is 1"),
    ({"llama_4_scaling": {"beta": 0.1}}, "llama_4_scaling.original_max_position_embeddings is missing"),
    ({"quantization": {"qformat_weight": "int4"}}, "qformat_weight is 'int4'"),
    ({"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "ROW"}}, "qscheme_act is 'ROW'"),
    ({"vision_encoder": {**NATIVE_14B["vision_encoder"], "mm_projector_id": "mlp"}}, "mm_projector_id is 'mlp'"),
    ({"vision_encoder": {**NATIVE_14B["vision_encoder"], "adapter_bias": True}}, "adapter_bias is True"),
    ({"lora": {"enable": True}}, "lora is"),
])
def test_params_that_brise_does_not_implement(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BriseError, match=message):
        read_params(NATIVE_14B | change)


def test_older_params_nest_the_encoder() -> None:
    older = {key: value for key, value in NATIVE_14B.items() if key != "vision_encoder"}
    older["multimodal"] = {"vision_encoder_args": NATIVE_14B["vision_encoder"]}
    assert read_params(older) == read_params(NATIVE_14B)


@pytest.mark.parametrize("path", sorted(SPEC.glob("*.json")) or [pytest.param(SPEC, marks=pytest.mark.skip)],
                         ids=lambda path: path.name)
def test_copies_of_real_configs(path: Path) -> None:
    if not any(part in path.name for part in (".hf-config.", ".params.")) or "partial" in path.name:
        pytest.skip("no whole config")
    values = json.loads(path.read_text())
    del values["_provenance"]
    description = (read_params if ".params." in path.name else read_config)(values)
    assert description.config.vocab_size == 131072
    assert description.vision is None or description.vision.text_width == description.config.width


@pytest.mark.parametrize(("stated", "scaling", "longest"), [
    (128, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    (128, {"type": "yarn", "factor": 4.0}, 512), (160, {"type": "yarn", "factor": 4.0,
                                                      "original_max_position_embeddings": 128}, 512),
    (512, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    (128, {"rope_type": "linear", "factor": 2.5}, 320),
    (128, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 128}, 1024)])
def test_rotary_scaling_extends_the_context(stated: int, scaling: dict[str, Any], longest: int) -> None:
    values = SMALL | {"max_position_embeddings": stated, "rope_scaling": scaling}
    assert read_config(values).config.max_context == longest


def test_yarn_of_a_params_json_extends_the_context() -> None:
    short = NATIVE_14B | {"max_seq_len": 16384}
    assert read_params(short).config.max_context == 262144


@pytest.mark.parametrize("scaling", [
    {"type": "yarn", "factor": 2.0, "beta_slow": 1e308}, {"type": "yarn", "factor": 2.0, "beta_fast": 1e-320},
    {"rope_type": "llama3", "factor": 1e-320, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"type": "yarn", "factor": 1e300}, {"type": "linear", "factor": 1e308}])
def test_odd_rotary_values_are_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="rotary scaling"):
        read_config(SMALL | {"rope_scaling": scaling})


@pytest.mark.parametrize("change", [
    {"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}},
    {"quantization": {"group_size": 64, "bits": 4}},
    {"quantization_config": {"group_size": 32, "bits": 8, "mode": "affine"}}])
def test_a_folder_of_mlx_is_named_as_one(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="folder of MLX"):
        read_config(SMALL | change)
