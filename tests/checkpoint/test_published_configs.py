"""Configurations as Granite, Phi and SmolLM3 publish them: read whole, and computed as transformers computes them when
their sizes are shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.read_original import open_original
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.write_gguf import write_mix
from tests import tolerances
from tests.checkpoint.make_tokenizer import write_tokenizer

pytest.importorskip("transformers")
from tests.checkpoint.test_mistral_models import logits, made  # noqa: E402

_PHI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "embd_pdrop": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
                 "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 8192, "model_type": "phi3", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32064,
    "tie_word_embeddings": False}
_GRANITE: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "attention_multiplier": 0.015625, "embedding_multiplier": 12,
    "hidden_act": "silu", "initializer_range": 0.1, "max_position_embeddings": 131072, "residual_multiplier": 0.22,
    "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_scaling": None,
    "rope_theta": 10000000, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "Phi-3-mini-4k": {**_PHI, "max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    "Phi-3-mini-128k": {**_PHI, "max_position_embeddings": 131072, "sliding_window": 262144, "rope_scaling": {
        "type": "longrope", "short_factor": [1.05] * 48, "long_factor": [1.1 + 0.5 * i for i in range(48)]}},
    "Phi-4-mini": {
        **_PHI, "max_position_embeddings": 131072, "sliding_window": 262144, "full_attn_mod": 1,
        "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "vocab_size": 200064, "rope_scaling": {
            "type": "longrope", "short_factor": [1] * 48, "long_factor": [1.1 + 0.5 * i for i in range(48)]}},
    "Granite 3.3 2B": {
        **_GRANITE, "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_size": 2048,
        "intermediate_size": 8192, "logits_scaling": 8.0, "mlp_bias": False, "num_attention_heads": 32,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": 49159},
    "Granite 4.0 micro": {
        **_GRANITE, "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid",
        "hidden_size": 2560, "intermediate_size": 8192, "shared_intermediate_size": 8192, "logits_scaling": 10,
        "init_method": "mup", "layer_types": ["attention"] * 40, "mamba_chunk_size": 256, "mamba_conv_bias": True,
        "mamba_d_conv": 4, "mamba_d_head": 40, "mamba_d_state": 256, "mamba_expand": 2, "mamba_n_groups": 1,
        "mamba_n_heads": 128, "mamba_proj_bias": False, "normalization_function": "rmsnorm", "num_attention_heads": 40,
        "num_experts_per_tok": 0, "num_local_experts": 0, "output_router_logits": False, "router_aux_loss_coef": 0.01,
        "position_embedding_type": "rope", "bos_token_id": 100257, "eos_token_id": 100257, "pad_token_id": 100256,
        "vocab_size": 100352},
    "SmolLM3 3B": {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": None, "eos_token_id": 128012, "pad_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False,
        "use_cache": False, "torch_dtype": "bfloat16", "vocab_size": 128256}}


@pytest.mark.parametrize(("name", "sizes"), [
    ("Phi-3-mini-4k", (96, 96, 4096, 2047)), ("Phi-3-mini-128k", (96, 96, 131072, None)),
    ("Phi-4-mini", (128, 96, 131072, None)), ("Granite 3.3 2B", (64, 64, 131072, None)),
    ("Granite 4.0 micro", (64, 64, 131072, None)), ("SmolLM3 3B", (128, 128, 65536, None))])
def test_published_configurations_are_read(name: str, sizes: tuple[int, int, int, int | None]) -> None:
    config = read_config(CONFIGS[name]).config
    assert (config.head_dim, config.rope.dim, config.max_context, config.sliding_window) == sizes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tiny_version_has_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    expected, tokens = made(tmp_path / "hf", tiny(CONFIGS[name])), np.arange(3, 43, dtype=np.int32)
    found = logits(tmp_path / "hf", tokens)
    assert np.abs(found - expected).max() < tolerances.GOLDEN_LOGITS
    write_tokenizer(tmp_path / "hf", 97)
    write_mix(open_original(tmp_path / "hf"), tmp_path / "ours.gguf", "F32")
    assert np.abs(logits(tmp_path / "ours.gguf", tokens) - found).max() < 1e-4


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """Four heads of 16 and four layers; the context that LongRoPE is for begins at 16."""
    out = {**config, "vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 4,
           "num_attention_heads": 4, "num_key_value_heads": 4 if config["num_key_value_heads"] == 32 else 2,
           "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if config["model_type"] == "phi3":
        out |= {"original_max_position_embeddings": 16,
                "sliding_window": 9 if config["sliding_window"] == 2047 else config["sliding_window"]}
    if config["rope_scaling"] is not None:
        count = int(16 * config.get("partial_rotary_factor", 1)) // 2
        out["rope_scaling"] = {key: value[:count] if isinstance(value, list) else value
                               for key, value in config["rope_scaling"].items()}
    if "layer_types" in config:
        out["layer_types"] = config["layer_types"][:4]
    if config["model_type"] == "granitemoehybrid":
        out |= {"shared_intermediate_size": 80, "mamba_n_heads": 1, "mamba_d_head": 128}
    if config["model_type"] == "smollm3":
        out["no_rope_layers"] = config["no_rope_layers"][:4]
    return out
