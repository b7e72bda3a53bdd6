"""Makes tests/goldens/tiny_large3*.npz from transformers; run by hand, its results are checked in.

    pip install 'brise[goldens]'
    python tests/goldens/make_large3.py

As make.py, with the names of Mistral Large 3: wkv_b is one matrix (H (N + V), C), the gate and up projections of all
experts are one array w13 (X, 2 F, D), gate rows first. transformers multiplies the softmax scale of this family by
YaRN's magnitude squared, which the model does not want: mscale_all_dim 0 takes that away, attention_factor 1 keeps
cosines as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GRID = 64
NUM_TOKENS = 40  # crosses L0 = 8 several times
VOCAB_SIZE = 97
PADDING_ID = 11  # transformers keeps this row of the embedding at zero: no golden token may be it
WIDTH, HEADS, QUERY_RANK, RANK, NOPE, ROPE, VALUE = 32, 2, 24, 16, 8, 8, 12
CLOSEST_CHOICE = 1e-4  # between the last expert that is picked and the first that is not

LAYER_NAMES = {
    "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_a_proj.weight": "wq_a", "self_attn.q_a_layernorm.weight": "q_a_norm",
    "self_attn.q_b_proj.weight": "wq_b", "self_attn.kv_a_proj_with_mqa.weight": "wkv_a",
    "self_attn.kv_a_layernorm.weight": "kv_a_norm", "self_attn.kv_b_proj.weight": "wkv_b",
    "self_attn.o_proj.weight": "wo", "mlp.gate_proj.weight": "w1", "mlp.down_proj.weight": "w2",
    "mlp.up_proj.weight": "w3", "mlp.gate.weight": "router", "mlp.experts.gate_up_proj": "experts.w13",
    "mlp.experts.down_proj": "experts.w2", "mlp.shared_experts.gate_proj.weight": "shared.w1",
    "mlp.shared_experts.down_proj.weight": "shared.w2", "mlp.shared_experts.up_proj.weight": "shared.w3"}
WHOLE_NAMES = {"model.embed_tokens.weight": "tok_embeddings", "model.norm.weight": "norm", "lm_head.weight": "output"}


@dataclass(frozen=True)
class Golden:
    """One tiny model; what differs between them."""

    name: str
    num_layers: int = 3
    num_dense: int = 1
    experts: int = 6
    per_token: int = 2
    scale: float = 1.0
    factor: float = 16.0
    beta_fast: float = 4.0


def goldens() -> Iterator[Golden]:
    yield Golden("large3")
    # Every expert for every token, and gates that do not sum to 1.
    yield Golden("large3_all_experts", num_layers=2, num_dense=0, experts=3, per_token=3, scale=2.5, factor=36.0)


def make(golden: Golden, seed: int) -> dict[str, Any]:
    """The arrays of one golden file."""
    model = _build(golden)
    weights = _randomise(model, np.random.default_rng(seed))
    tokens = np.random.default_rng(seed + 1000).integers(PADDING_ID + 1, VOCAB_SIZE, NUM_TOKENS)
    routers: list[torch.Tensor] = []
    for layer in model.model.layers[golden.num_dense:]:
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, outputs: routers.append(outputs[0]))
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor(tokens[None]), use_cache=False).logits[0]
    for router_logits in routers:
        ordered = router_logits.sort(dim=-1, descending=True).values
        if golden.per_token < golden.experts:
            gap = ordered[:, golden.per_token - 1] - ordered[:, golden.per_token]
            assert gap.min() > CLOSEST_CHOICE, (golden.name, seed, float(gap.min()))
    return {"config": json.dumps(_config(golden)), "tokens": tokens.astype(np.int32),
            "logits": logits.numpy().astype(np.float32), **weights}


def _build(golden: Golden) -> Any:
    config = transformers.Mistral4Config(
        vocab_size=VOCAB_SIZE, hidden_size=WIDTH, intermediate_size=80, moe_intermediate_size=16,
        num_hidden_layers=golden.num_layers, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        n_shared_experts=1, n_routed_experts=golden.experts, num_experts_per_tok=golden.per_token,
        routed_scaling_factor=golden.scale, first_k_dense_replace=golden.num_dense, q_lora_rank=QUERY_RANK,
        kv_lora_rank=RANK, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=VALUE, rms_norm_eps=1e-6,
        max_position_embeddings=128, tie_word_embeddings=False, rope_parameters={
            "rope_type": "yarn", "rope_theta": 100.0, "factor": golden.factor, "original_max_position_embeddings": 8,
            "beta_fast": golden.beta_fast, "beta_slow": 0.1, "mscale": 1.0, "mscale_all_dim": 0.0,
            "attention_factor": 1.0, "llama_4_scaling_beta": 0.1})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # the others have no float64
    return transformers.Mistral4ForCausalLM(config).eval()


def _randomise(model: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Puts random numbers of the grid into every parameter; returns them under brise's names."""
    weights = {}
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("norm.weight")
        drawn = rng.normal(1.0 if is_norm else 0.0, 0.3 if is_norm else 0.2, tuple(parameter.shape))
        grid = np.clip(np.rint(drawn * GRID), -127, 127).astype(np.int8)
        parameter.data = torch.tensor(grid / GRID, dtype=torch.float32)
        weights[_brise_name(name)] = grid
    return weights


def _brise_name(name: str) -> str:
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    _, _, layer, tail = name.split(".", 3)
    return f"layers.{layer}.{LAYER_NAMES[tail]}"


def _config(golden: Golden) -> dict[str, Any]:
    return {"family": "mistral4", "vocab_size": VOCAB_SIZE, "width": WIDTH, "num_layers": golden.num_layers,
            "num_heads": HEADS, "num_kv_heads": 1, "head_dim": NOPE + ROPE, "ffn_width": 80, "norm_eps": 1e-6,
            "max_context": 128, "query_temperature": {"beta": 0.1, "period": 8},
            "latent": {"query_rank": QUERY_RANK, "rank": RANK, "nope_dim": NOPE, "value_dim": VALUE},
            "experts": {"count": golden.experts, "per_token": golden.per_token, "width": 16, "shared_width": 16,
                        "num_dense_layers": golden.num_dense, "scale": golden.scale},
            "rope": {"theta": 100.0, "dim": ROPE, "scaling": {
                "kind": "Yarn", "original_context": 8, "factor": golden.factor, "beta_fast": golden.beta_fast,
                "beta_slow": 0.1, "attention_factor": 1.0}}}


def main() -> None:
    """Writes the files beside this script."""
    for seed, golden in enumerate(goldens()):
        np.savez_compressed(Path(__file__).parent / f"tiny_{golden.name}.npz", **make(golden, seed + 100))


if __name__ == "__main__":
    main()
