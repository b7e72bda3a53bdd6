"""Makes tests/goldens/tiny_mixtral*.npz from transformers; run by hand, its results are checked in.

    pip install 'brise[goldens]'
    python tests/goldens/make_mixtral.py

As make.py. The gate and up projections of all experts are one array w13 (X, 2 F, D), gate rows first.
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
NUM_TOKENS = 40
VOCAB_SIZE = 97
PADDING_ID = 11  # transformers keeps this row of the embedding at zero: no golden token may be it
WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN_WIDTH = 32, 4, 2, 16, 32
CLOSEST_CHOICE = 1e-4  # between the last expert that is picked and the first that is not

LAYER_NAMES = {
    "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "wq", "self_attn.k_proj.weight": "wk", "self_attn.v_proj.weight": "wv",
    "self_attn.o_proj.weight": "wo", "mlp.gate.weight": "router", "mlp.experts.gate_up_proj": "experts.w13",
    "mlp.experts.down_proj": "experts.w2"}
WHOLE_NAMES = {"model.embed_tokens.weight": "tok_embeddings", "model.norm.weight": "norm", "lm_head.weight": "output"}


@dataclass(frozen=True)
class Golden:
    """One tiny model; what differs between them."""

    name: str
    window: int | None = None  # the first revisions of Mixtral 8x7B had one in their configuration


def goldens() -> Iterator[Golden]:
    yield Golden("mixtral")
    yield Golden("mixtral_window", window=7)


def make(golden: Golden, seed: int) -> dict[str, Any]:
    """The arrays of one golden file."""
    model = build(golden)
    weights = _randomise(model, np.random.default_rng(seed))
    tokens = np.random.default_rng(seed + 1000).integers(PADDING_ID + 1, VOCAB_SIZE, NUM_TOKENS)
    routers: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, outputs: routers.append(outputs[0]))
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor(tokens[None]), use_cache=False).logits[0]
    for router_logits in routers:
        ordered = router_logits.sort(dim=-1, descending=True).values
        gap = ordered[:, 1] - ordered[:, 2]
        assert gap.min() > CLOSEST_CHOICE, (golden.name, seed, float(gap.min()))
    return {"config": json.dumps(_config(golden)), "tokens": tokens.astype(np.int32),
            "logits": logits.numpy().astype(np.float32), **weights}


def build(golden: Golden) -> Any:
    """The transformers model of a golden, its parameters not set yet."""
    config = transformers.MixtralConfig(
        vocab_size=VOCAB_SIZE, hidden_size=WIDTH, intermediate_size=FFN_WIDTH, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=128,
        rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=golden.window, num_local_experts=8,
        num_experts_per_tok=2, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # the others have no float64
    return transformers.MixtralForCausalLM(config).eval()


def _randomise(model: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Puts random numbers of the grid into every parameter; returns them under brise's names."""
    weights = {}
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("norm.weight")
        drawn = rng.normal(1.0 if is_norm else 0.0, 0.3 if is_norm else 0.2, tuple(parameter.shape))
        grid = np.clip(np.rint(drawn * GRID), -127, 127).astype(np.int8)
        parameter.data = torch.tensor(grid / GRID, dtype=torch.float32)
        weights[brise_name(name)] = grid
    return weights


def brise_name(name: str) -> str:
    """The name of a transformers parameter in the golden's file."""
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    _, _, layer, tail = name.split(".", 3)
    return f"layers.{layer}.{LAYER_NAMES[tail]}"


def _config(golden: Golden) -> dict[str, Any]:
    return {"family": "mixtral", "vocab_size": VOCAB_SIZE, "width": WIDTH, "num_layers": 2, "num_heads": HEADS,
            "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "ffn_width": FFN_WIDTH, "norm_eps": 1e-5,
            "max_context": 128, "sliding_window": golden.window, "query_temperature": None,
            "experts": {"count": 8, "per_token": 2, "width": FFN_WIDTH},
            "rope": {"theta": 1e6, "dim": HEAD_DIM, "scaling": None}}


def main() -> None:
    """Writes the files beside this script."""
    for seed, golden in enumerate(goldens()):
        np.savez_compressed(Path(__file__).parent / f"tiny_{golden.name}.npz", **make(golden, seed + 200))


if __name__ == "__main__":
    main()
