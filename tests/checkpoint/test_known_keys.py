"""Configuration keys in three classes: those that act, notes, and keys that nobody has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_model import describe
from brise.checkpoint.known_keys import changes_numbers
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.safetensors.read_mistral_params import read_params
from brise.errors import UnsupportedError
from tests.checkpoint.make_gguf import write_tiny

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 48,
    "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 10000.0}
PARAMS: dict[str, Any] = {
    "dim": 48, "n_layers": 2, "head_dim": 16, "hidden_dim": 80, "n_heads": 3, "n_kv_heads": 1, "rope_theta": 1e4,
    "norm_eps": 1e-5, "vocab_size": 97}

# Each changes what a model computes, in the words of some family of transformers or of a training framework.
ACTING = {
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "logits_soft_cap": 30.0,
    "rope_local_base_freq": 10000.0, "local_rope_theta": 10000.0, "global_rope_theta": 160000.0,
    "swa_rope_theta": 10000.0, "attention_bias": True, "mlp_bias": True, "qkv_bias": True, "use_bias": True,
    "add_qkv_bias": True, "use_qk_norm": True, "qk_layernorm": True, "qk_norm": True, "partial_rotary_factor": 0.5,
    "rotary_pct": 0.25, "rotary_dim": 8, "sliding_window_pattern": 6, "attention_chunk_size": 8192,
    "interleaved_sliding_window": 4096, "local_attention": 128, "scale_embeddings": True, "embedding_multiplier": 12.0,
    "scale_emb": 12, "scale_embedding": True, "use_parallel_residual": True, "parallel_attn": True, "alibi": True,
    "use_alibi": True, "max_alibi_bias": 8.0, "position_embedding_type": "alibi", "logit_scale": 0.0625,
    "logits_scaling": 8.0, "output_multiplier_scale": 0.5, "residual_multiplier": 0.22, "scale_depth": 1.4,
    "attention_multiplier": 0.0078125, "query_pre_attn_scalar": 256, "softmax_scale": 1.0, "clip_qkv": 8.0,
    "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "swiglu_limit": 7.0, "norm_type": "layernorm",
    "norm_topk_prob": False, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_local_experts": 8,
    "num_experts": 60, "num_kv_shared_layers": 10, "no_rope_layers": [1, 0], "nope_layer_interval": 4,
    "use_rope": False, "rope_interleaved": True, "rope_interleave": True, "attn_temperature_tuning": 4,
    "attention_sinks": 4, "attn_output_gate": True, "use_post_norm": True, "zero_centered_gamma": True,
    "hidden_size_per_layer_input": 256, "altup_num_inputs": 4, "mamba_d_state": 16, "conv_L_cache": 3,
    "index_topk": 2048, "is_causal": False, "use_bidirectional_attention": True, "use_mrope": True,
    "use_logn_attn": True, "block_configs": [{"attention": {"no_op": True}}], "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "multipliers": [1, 2], "use_glu": False, "pruned_heads": {"0": [1]}, "sliding_window": 64, "yarnFactor": 2.0,
    "auto_map": {"AutoModel": "x.Y"}}
# Written by tools beside the model, and read over.
NOTES = {
    "is_llama_config": True, "rope_interleaved": False, "use_mrope": False, "unsloth_fixed": True,
    "unsloth_version": "2026.1", "_flash_attn_2_enabled": True, "_attn_implementation": "sdpa",
    "torch_dtype": "bfloat16", "pretraining_tp": 1, "initializer_range": 0.02, "classifier_dropout": 0.1,
    "router_aux_loss_coef": 0.001,
    "residual_multiplier": 1.0, "logit_scale": 1.0, "embedding_multiplier": 1, "attention_multiplier": 0.25,
    "query_pre_attn_scalar": 16, "rotary_dim": 16, "kv_channels": 16, "num_layers": 2, "partial_rotary_factor": 1.0,
    "position_embedding_type": "rope", "final_logit_softcapping": None, "attn_logit_softcapping": 0, "qk_norm": False,
    "alibi": False, "sliding_window_pattern": None, "num_experts": 0, "no_rope_layers": None, "mamba_d_state": 0,
    "block_configs": [], "auto_map": {}, "rope_local_base_freq": None,
    "attn_implementation": "flash_attention_2", "activation": "swiglu", "n_positions": 2048, "tensor_parallel_degree":
    False,
    "scale_attention_softmax_in_fp32": True}


@pytest.mark.parametrize(("key", "value"), [
    ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), ("rope.freq_base_swa", 1e4),
    ("attention.max_alibi_bias", 8.0), ("attention.clamp_kqv", 8.0), ("use_parallel_residual", True),
    ("logit_scale", 0.0625), ("residual_scale", 0.22), ("embedding_scale", 12.0), ("attention.scale", 0.0078),
    ("attention.sliding_window_pattern", 6), ("expert_shared_count", 1), ("attention.causal", False),
    ("attention.shared_kv_layers", 10), ("rope.scaling.attn_factor", 2.0), ("swiglu_clamp_exp", 7.0),
    ("attention.layer_norm_epsilon", 1e-5), ("embedding_length_per_layer_input", 256), ("ssm.state_size", 16),
    ("attention.temperature_scale", 0.1), ("attention.output_gate", True), ("expert_gating_func", 2),
    ("dense_2_feat_in", 5), ("rope.dimension_sections", [16, 24, 24, 0]), ("nextn_predict_layers", 1)])
def test_a_key_of_gguf_that_changes_the_numbers_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with open_gguf(write_tiny(tmp_path / "m.gguf", "llama", extra_metadata={f"llama.{key}": value})) as file:
        with pytest.raises(UnsupportedError, match=key.replace(".", r"\.")):
            describe(file)


@pytest.mark.parametrize("name", ACTING)
def test_a_key_that_changes_the_numbers_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        read_config(LLAMA | {name: ACTING[name]})


@pytest.mark.parametrize("name", [name for name in ACTING if name not in ("hidden_act", "is_causal")])
def test_such_a_key_of_a_nested_config_is_refused_too(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"text_config.*{name}"):
        read_config({"model_type": "mistral3", "text_config": LLAMA | {name: ACTING[name]}})


@pytest.mark.parametrize("name", NOTES)
def test_what_asks_for_nothing_is_read_over(name: str) -> None:
    description = read_config(LLAMA | {name: NOTES[name]})
    assert description == read_config(LLAMA) and all(key.is_known for key in description.ignored)


def test_an_unknown_key_is_accepted_and_reported() -> None:
    description = read_config(LLAMA | {"future_flag": True, "another_thing": False, "model_card": "x" * 300})
    unknown = {key.name: key.shown for key in description.ignored if not key.is_known}
    assert unknown == {"future_flag": "True", "model_card": f"'{'x' * 99}..."}


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_key_that_asks_for_nothing_is_never_refused(value: object) -> None:
    read_config(LLAMA | {"some_new_attention_scale": value})
    read_params(PARAMS | {"some_new_attention_scale": value})


def test_params_are_read_by_the_same_rules() -> None:
    description = read_params(PARAMS | {"future_flag": True, "max_batch_size": 3})
    assert {key.name: key.is_known for key in description.ignored} == {"future_flag": False, "max_batch_size": True}
    with pytest.raises(UnsupportedError, match="logit_soft_cap is 30"):
        read_params(PARAMS | {"logit_soft_cap": 30})


@pytest.mark.parametrize(("name", "acts"), [
    ("useQkNorm", True), ("attnLogitSoftcap", True), ("hidden_size2", True), ("rmsnorm_offset", True),
    ("dropout_scale", False), ("attn_implementation", False), ("release_notes", False), ("property", False),
    ("audio_token_id", False),
    ("layer_init_scale", False), ("training_window", False), ("a" * 100_000, False)])
def test_the_name_of_an_unknown_key_decides(name: str, acts: bool) -> None:
    assert changes_numbers(name) == acts


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Ministral3", "Mistral4", "Qwen2", "Qwen3", "SmolLM3"])
def test_what_transformers_writes_is_read(name: str) -> None:
    config = getattr(pytest.importorskip("transformers"), f"{name}Config")()
    for values in (config.to_dict(), config.to_diff_dict()):
        assert all(key.is_known for key in read_config(values).ignored)


def test_a_vision_encoder_of_transformers_is_read_with_silu_and_refused_with_gelu() -> None:
    """gelu is the default of the class's constructor; no model of the family has it."""
    transformers = pytest.importorskip("transformers")
    for values in ((config := transformers.Mistral3Config()).to_dict(), config.to_diff_dict()):
        with pytest.raises(UnsupportedError, match="vision_config.hidden_act is 'gelu'.*'silu'"):
            read_config(values)
    config = transformers.Mistral3Config(vision_config=transformers.PixtralVisionConfig(hidden_act="silu"))
    for values in (config.to_dict(), config.to_diff_dict()):
        assert all(key.is_known for key in read_config(values).ignored)


def test_keys_of_a_quantization_are_judged_too() -> None:
    fp8 = {"quant_method": "fp8", "activation_scheme": "static", "future_flag": True, "some_bits": 0}
    description = read_config(LLAMA | {"quantization_config": fp8})
    assert {key.name for key in description.ignored if not key.is_known} == {"quantization_config.future_flag"}
    with pytest.raises(UnsupportedError, match=r"quantization_config\.weight_rotation is 'hadamard'"):
        read_config(LLAMA | {"quantization_config": {**fp8, "weight_rotation": "hadamard"}})
