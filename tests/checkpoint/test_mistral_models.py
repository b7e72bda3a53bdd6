"""Every published model of Mistral, as a tiny version of itself: its own configuration with smaller sizes.

transformers reads the same config.json, with random weights, and gives the logits to compare with. The numbers of the
configurations are the published ones, as public repositories quote them; docs/guides/models.md says which of them were
put together from several sources. The head's width, windows and rotary scaling stay as they are relative to the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.safetensors.read_mistral_params import read_params
from brise.checkpoint.write_gguf import write_mix
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Array
from tests import tolerances
from tests.checkpoint.make_tokenizer import write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SEVEN = {"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
         "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
         "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
         "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, "tie_word_embeddings": False,
         "torch_dtype": "bfloat16", "transformers_version": "4.36.0", "use_cache": True, "vocab_size": 32000}
NEMO = {**SEVEN, "attention_dropout": 0.0, "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 128000,
        "num_hidden_layers": 40, "vocab_size": 131072}
SMALL = {**NEMO, "intermediate_size": 32768, "max_position_embeddings": 32768, "rope_theta": 1e8}
MIXTRAL = {**SEVEN, "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "model_type": "mixtral",
           "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False,
           "router_aux_loss_coef": 0.02}
YARN = {"type": "yarn", "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
           "num_attention_heads": 16, "head_dim": 64, "num_channels": 3, "image_size": 1540, "patch_size": 14,
           "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02, "rope_theta": 10000.0}


def seeing(text: Mapping[str, object], **changes: object) -> dict[str, Any]:
    own = {key: value for key, value in text.items() if key not in ("architectures", "torch_dtype")}
    return {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 10,
            "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
            "vision_feature_layer": -1, "torch_dtype": "bfloat16", "text_config": own | changes,
            "tie_word_embeddings": text["tie_word_embeddings"], "vision_config": PIXTRAL}


def ministral3(hidden: int, inner: int, layers: int, *, tied: bool = False, context: int = 262144,
               **rope: object) -> dict[str, Any]:
    text = {**NEMO, "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "hidden_size": hidden,
            "intermediate_size": inner, "num_hidden_layers": layers, "max_position_embeddings": context,
            "tie_word_embeddings": tied, "rope_parameters": {**YARN, **rope}}
    del text["rope_theta"]
    return seeing(text)


MODELS: Mapping[str, dict[str, Any]] = {
    "7B v0.1": {**SEVEN, "rope_theta": 1e4, "sliding_window": 4096}, "7B v0.2": SEVEN,
    "7B v0.3, Mathstral": {**SEVEN, "vocab_size": 32768},
    "Codestral 22B": {**SEVEN, "hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48,
                      "num_hidden_layers": 56, "vocab_size": 32768},
    "Mixtral 8x7B": MIXTRAL,
    "Mixtral 8x22B": {**MIXTRAL, "hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48,
                      "num_hidden_layers": 56, "max_position_embeddings": 65536, "router_jitter_noise": 0.0,
                      "vocab_size": 32768},
    "Nemo 12B": NEMO, "Small 3 (2501)": SMALL,
    "Ministral 8B (2410)": {**SMALL, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                            "sliding_window": 32768},
    "Large 2 (2407)": {**SEVEN, "hidden_size": 12288, "intermediate_size": 28672, "num_attention_heads": 96,
                       "num_hidden_layers": 88, "max_position_embeddings": 131072, "vocab_size": 32768},
    "Magistral Small (2506)": {**SMALL, "max_position_embeddings": 40960, "rope_theta": 1e9},
    "Devstral Small (2505, 2507)": {**SMALL, "max_position_embeddings": 131072, "rope_theta": 1e9},
    "Small 3.1, 3.2, Magistral Small (2509)": seeing(SMALL, max_position_embeddings=131072, rope_theta=1e9),
    "Ministral 3 3B": ministral3(3072, 9216, 26, tied=True), "Ministral 3 8B": ministral3(4096, 14336, 34),
    "Ministral 3 14B": ministral3(5120, 16384, 40, rope_theta=1e9),
    "Devstral Small 2 (2512)": ministral3(5120, 32768, 40, context=393216, rope_theta=1e8, factor=48.0,
                                          original_max_position_embeddings=8192),
    # Only the rotary scaling of Devstral 2 123B is known for certain; its other sizes are Ministral's here.
    "Devstral 2 (2512), rotary scaling": {
        "architectures": ["Ministral3ForCausalLM"], **ministral3(
            4096, 14336, 34, factor=64.0, original_max_position_embeddings=4096, beta_fast=4.0, mscale_all_dim=0.0,
            llama_4_scaling_beta=0.0)["text_config"]}}


@pytest.mark.parametrize("name", MODELS)
def test_a_tiny_version_has_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    expected = made(folder, tiny(MODELS[name]))
    tokens = np.arange(3, 43, dtype=np.int32)
    found = logits(folder, tokens)
    assert np.abs(found - expected).max() < tolerances.GOLDEN_LOGITS
    if not open_checkpoint(folder).vision:
        write_mix(open_original(write_tokenizer(folder, 97)), tmp_path / "model.gguf", "F32")
        assert np.abs(logits(tmp_path / "model.gguf", tokens) - found).max() < 1e-4  # its numbers are in float32


@pytest.mark.parametrize(("name", "window", "head_dim", "context"), [
    ("7B v0.1", 4096, 128, 32768), ("7B v0.3, Mathstral", None, 128, 32768), ("Codestral 22B", None, 128, 32768),
    ("Mixtral 8x22B", None, 128, 65536), ("Nemo 12B", None, 128, 128000), ("Ministral 8B (2410)", None, 128, 32768),
    ("Small 3.1, 3.2, Magistral Small (2509)", None, 128, 131072), ("Ministral 3 14B", None, 128, 262144),
    ("Devstral Small 2 (2512)", None, 128, 393216)])
def test_the_published_sizes_are_read(name: str, window: int | None, head_dim: int, context: int) -> None:
    config = read_config(MODELS[name]).config
    assert (config.sliding_window, config.head_dim, config.max_context) == (window, head_dim, context)


@pytest.mark.parametrize(("changes", "name"), [
    ({"sliding_window": 4096}, "7B v0.1"), ({"rope_theta": 1e6, "vocab_size": 32768}, "7B v0.3, Mathstral"),
    ({"moe": {"num_experts_per_tok": 2, "num_experts": 8}}, "Mixtral 8x7B")])
def test_mistrals_own_description_says_the_same(changes: dict[str, object], name: str) -> None:
    """Mixtral's and 7B v0.1's params.json state no rope_theta: Mistral's code has 10,000 with a window, else a
    million."""
    params = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
              "norm_eps": 1e-5, "vocab_size": 32000}
    assert read_params(params | changes).config == read_config(MODELS[name]).config


def tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with sizes that run in no time: 4 heads of 16, and a context of 128 before any scaling."""
    if "text_config" in config:
        vision = {**config["vision_config"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "head_dim": 16, "image_size": 32, "patch_size": 4}
        return {**config, "text_config": tiny(config["text_config"]), "vision_config": vision}
    out = {**config, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 97,
           "intermediate_size": 48, "max_position_embeddings": 128, "hidden_size": 64}
    if "head_dim" in config:
        narrow = config["hidden_size"] != config["num_attention_heads"] * config["head_dim"]
        out |= {"head_dim": 16, "hidden_size": 40 if narrow else 64}
    if config["sliding_window"] is not None:
        out["sliding_window"] = 128 * config["sliding_window"] // config["max_position_embeddings"]
    if "rope_parameters" in config:
        original = max(128 // int(config["rope_parameters"]["factor"]), 4)
        out["rope_parameters"] = {**config["rope_parameters"], "original_max_position_embeddings": original}
        out["max_position_embeddings"] = original * int(config["rope_parameters"]["factor"])
    return out


def made(folder: Path, config: dict[str, Any]) -> Array:
    """Writes the folder, with this very config.json, and gives transformers' logits."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    settings = transformers.AutoConfig.from_pretrained(folder)
    settings._attn_implementation = "eager"
    settings._experts_implementation = "eager"
    kind = transformers.AutoModelForImageTextToText if "text_config" in config else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if parameter.ndim == 1 else 0.0))
        model.save_pretrained(folder)
        found = model.double()(input_ids=torch.arange(3, 43)[None], use_cache=False).logits[0]
    (folder / "config.json").write_text(json.dumps(config))
    return np.asarray(found.numpy(), np.float32)


def logits(path: Path, tokens: Array) -> Array:
    checkpoint = open_checkpoint(path)
    positions = np.arange(len(tokens), dtype=np.int32)
    return decoder.forward(ReferenceOps(), checkpoint.config, checkpoint.weights(),
                           Batch(tokens, positions, np.array([0, len(tokens)], np.int32), positions))
