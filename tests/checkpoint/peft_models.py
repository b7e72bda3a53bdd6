"""Tiny random transformers models with PEFT adapters on them: what judges adapters that we read and write."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.open import open_checkpoint
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import LowRanks, adapted
from brise.models.weights import Array, Weights
from tests.checkpoint.make_adapter import MODULES

FAMILIES = ("llama", "qwen3", "qwen2", "ministral3", "untied")
TOKENS = np.array([3, 7, 1, 40, 22, 9, 60, 5, 11, 33], np.int32)
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "tie_word_embeddings": True}


def make_base(folder: Path, family: str) -> Path:
    """A random model in float32, norms and biases away from what they start at."""
    torch.manual_seed(len(family))
    config = configuration(family)
    kind = transformers.AutoModelForImageTextToText if family == "mistral3" else transformers.AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if parameter.ndim == 1 else 0.0))
    model.save_pretrained(folder)
    return folder


def configuration(family: str) -> Any:
    match family:
        case "llama":
            return transformers.LlamaConfig(**SIZES)
        case "untied":
            return transformers.LlamaConfig(**SIZES | {"tie_word_embeddings": False})
        case "qwen2":
            return transformers.Qwen2Config(**{name: size for name, size in SIZES.items() if name != "head_dim"})
        case "qwen3":
            return transformers.Qwen3Config(**SIZES)
        case "phi3":
            return transformers.Phi3Config(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75})
        case "granitemoehybrid":
            return transformers.GraniteMoeHybridConfig(
                **SIZES, shared_intermediate_size=80, num_local_experts=0, num_experts_per_tok=0, mamba_n_heads=1,
                layer_types=["attention"] * 2, position_embedding_type="rope", embedding_multiplier=3.0,
                residual_multiplier=0.7, attention_multiplier=0.3, logits_scaling=0.9)
        case "mistral3":
            return transformers.Mistral3Config(
                text_config=configuration("ministral3"), image_token_index=10, spatial_merge_size=2,
                vision_config=transformers.PixtralVisionConfig(
                    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
                    patch_size=4, image_size=32, hidden_act="silu"), tie_word_embeddings=True)
        case _:
            return transformers.Ministral3Config(**SIZES, rope_parameters={
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1, "max_position_embeddings": 128})


def make_adapter(base: Path, folder: Path, seed: int = 1, **options: Any) -> Array:
    """Saves what PEFT makes of these options of LoraConfig, A, B and magnitudes random, and gives its logits."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 12, "target_modules": list(MODULES)} | options
    with strict():
        model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    with strict():
        model.save_pretrained(folder)
    return torch_logits(model)


def peft_logits(base: Path, adapter: Path) -> Array:
    """Logits of an adapter that PEFT loads from its files; any warning of missing tensors is an error."""
    with strict():
        return torch_logits(PeftModel.from_pretrained(load(base), str(adapter)).eval())


@contextmanager
def strict() -> Iterator[None]:
    """Every warning is an error, but for one that PEFT 0.18 causes in transformers 5.23, and what it says of embeddings
    and tied outputs: that it stores the base's, and that merging needs care."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        for message in ("Setting `save_embedding_layers`", "Model (with|has) `tie_word_embeddings"):
            warnings.filterwarnings("ignore", message)
        yield


def load(base: Path) -> Any:
    kind = transformers.AutoModelForImageTextToText if base.name == "mistral3" else transformers.AutoModelForCausalLM
    return kind.from_pretrained(base, dtype=torch.float32).eval()


def torch_logits(model: Any) -> Array:
    with torch.no_grad():
        return model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].numpy()


def our_logits(base: Path, low_ranks: LowRanks | None = None) -> Array:
    checkpoint = open_checkpoint(base)
    weights = checkpoint.weights()
    return reference_logits(checkpoint.config, weights if low_ranks is None else adapted(weights, low_ranks))


def reference_logits(config: Config, weights: Weights) -> Array:
    size = len(TOKENS)
    batch = Batch(TOKENS, np.arange(size, dtype=np.int32), np.array([0, size], np.int32),
                  rows=np.arange(size, dtype=np.int32))
    return decoder.forward(ReferenceOps(precision=np.float64), config, weights, batch)
