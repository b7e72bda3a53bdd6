"""Makes tests/goldens/*.npz from transformers; run by hand, its results are checked in.

    pip install 'brise[goldens]'
    python tests/goldens/make.py                          # the tiny random models
    python tests/goldens/make.py --smollm2 smollm2.gguf   # top logits of the real SmolLM2 (needs accelerate)

A tiny model's file holds `config` (brise's Config as JSON), weights under brise's names, `tokens`, `logits`.
Weights are int8 and mean value / 64: exact in float32, float16 and bfloat16, and small once compressed.
Rows of wq and wk (and their biases) lie as in Hugging Face files: rope pairs i with i + head_dim / 2.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GRID = 64
NUM_TOKENS = 40  # crosses L0 = 8 of the Ministral 3 goldens several times
VOCAB_SIZE = 97
PADDING_ID = 11  # transformers keeps this row of the embedding at zero: no golden token may be it
SMOLLM2_PROMPT = (504, 3575, 282, 4649, 314)  # "The capital of France is"
SMOLLM2_TOP = 50
SMOLLM2_FIXED = (0, 1, 2, 17, 504, 7042, 28, 30, 49151)


@dataclass(frozen=True)
class Golden:
    """One tiny model: the transformers class, its settings, and what brise's Config says of the same."""

    name: str
    model: str
    family: str
    tied: bool
    theta: float = 10000.0
    rope: dict[str, Any] = field(default_factory=dict)  # transformers' rope_parameters without rope_theta
    scaling: dict[str, Any] | None = None  # brise's scaling, "kind" names the class
    temperature: dict[str, Any] | None = None
    eps: float = 1e-5
    heads: tuple[int, int, int] = (3, 1, 16)  # query heads, key/value heads, numbers a head
    extra: dict[str, Any] = field(default_factory=dict)
    window: int | None = None
    layers: int = 2
    without_rope: tuple[int, ...] = ()
    rotated: int | None = None  # numbers of a head, if not all
    config: dict[str, Any] = field(default_factory=dict)  # what else brise's Config says
    seed: int | None = None  # None: its place in the list


def goldens() -> Iterator[Golden]:
    """Every family, with each of its small differences at least once."""
    # Small thetas and contexts, so that 16 numbers a head meet every branch of the scaling rules.
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 32}
    llama3_rope = {"rope_type": "llama3", "original_max_position_embeddings": 32,
                   **{key: value for key, value in llama3.items() if key != "original_context"}}
    for tied in (False, True):
        suffix = "tied" if tied else "untied"
        yield Golden(f"llama_{suffix}", "Llama", "llama", tied)
        yield Golden(f"llama3_{suffix}", "Llama", "llama", tied, 100.0, llama3_rope,
                     {"kind": "Llama3", **llama3})
    yield Golden("llama_linear", "Llama", "llama", False, 10000.0, {"rope_type": "linear", "factor": 4.0},
                 {"kind": "Linear", "factor": 4.0})
    yield Golden("smollm2", "Llama", "llama", True, 100000.0)
    yield Golden("mistral", "Mistral", "mistral", False, 1e6, heads=(4, 1, 16),
                 extra={"head_dim": 16, "sliding_window": None})
    yield Golden("mistral_window", "Mistral", "mistral", False, 1e6, heads=(4, 2, 16), window=7,
                 extra={"head_dim": 16, "sliding_window": 7})
    for variant, (mscale, all_dim) in enumerate(((1.0, 1.0), (1.0, 0.0), (0.707, 1.0))):
        for tied in (False, True):
            name = f"ministral3_yarn{variant}_{'tied' if tied else 'untied'}"
            yield _ministral3(name, tied, mscale, all_dim)
    yield Golden("qwen2", "Qwen2", "qwen2", True, 1e6, eps=1e-6, heads=(3, 3, 16))
    yield Golden("qwen3", "Qwen3", "qwen3", False, 1e6, eps=1e-6, heads=(4, 2, 16), extra={"head_dim": 16})
    yield Golden("smollm3", "SmolLM3", "smollm3", True, 2e6, eps=1e-6, heads=(3, 1, 16), layers=5, without_rope=(3,),
                 extra={"pad_token_id": PADDING_ID, "bos_token_id": 0, "eos_token_id": 0})
    yield Golden("phi3", "Phi3", "phi3", False, 1e4, heads=(3, 3, 16), window=7,
                 extra={"sliding_window": 7, "pad_token_id": PADDING_ID})
    # LongRoPE on three quarters of a head, as in Phi-4-mini. transformers takes the long factors for 40 tokens over an
    # original context of 16, the short ones under one of 64; brise by the context that a model is opened with.
    short, long = [1.0, 1.05, 1.1, 1.3, 1.6, 2.0], [1.1, 1.7, 2.5, 6.0, 17.0, 40.0]
    for name, original in (("long", 16), ("short", 64)):
        yield Golden(f"phi4_{name}", "Phi3", "phi3", True, 1e4, heads=(3, 1, 16), rotated=12,
                     rope={"rope_type": "longrope", "short_factor": short, "long_factor": long,
                           "partial_rotary_factor": 0.75, "original_max_position_embeddings": original},
                     extra={"original_max_position_embeddings": original, "pad_token_id": PADDING_ID,
                            "sliding_window": 262144},
                     scaling={"kind": "LongRope", "short": short, "long": long, "original_context": original,
                              "attention_factor": math.sqrt(1 + math.log(128 / original) / math.log(original)),
                              "is_long": name == "long"})
    # No multiplier is a power of two, which would hide in an exponent; logits are as large as those of the others.
    multipliers = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
                   "logits_scaling": 0.9}
    ours = {"embedding_scale": 12.0, "residual_scale": 0.22, "softmax_scale": 0.1, "logits_divisor": 0.9}
    yield Golden("granite", "Granite", "granite", False, 1e6, heads=(3, 1, 16), extra=multipliers, config=ours)
    yield Golden("granite4", "GraniteMoeHybrid", "granitemoehybrid", True, 1e7, heads=(6, 2, 8), config=ours, extra={
        **multipliers, "shared_intermediate_size": 80, "num_local_experts": 0, "num_experts_per_tok": 0,
        "layer_types": ["attention"] * 2, "position_embedding_type": "rope", "mamba_n_heads": 1})
    yield _gemma3()


def _gemma3() -> Golden:
    """Layer 5 of 7 sees all tokens, with a rope stretched four times; the others have a window of 7."""
    ropes = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    return Golden("gemma3", "Gemma3", "gemma3_text", True, 1e6, scaling={"kind": "Linear", "factor": 4.0}, eps=1e-6,
                  heads=(4, 2, 16), window=7, layers=7,
                  extra={"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16, "rope_parameters": ropes,
                         "pad_token_id": PADDING_ID, "bos_token_id": 0, "eos_token_id": 0},
                  config={"layers_without_window": [5], "window_theta": 1e4, "embedding_scale": 48**0.5,
                        "activation": "gelu"}, seed=103)


def _ministral3(name: str, tied: bool, mscale: float, mscale_all_dim: float) -> Golden:
    yarn = {"factor": 16.0, "beta_fast": 4.0, "beta_slow": 0.1, "mscale": mscale,
            "mscale_all_dim": mscale_all_dim}
    rope = {"rope_type": "yarn", "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.1, **yarn}
    return Golden(name, "Ministral3", "ministral3", tied, 100.0, rope,
                  {"kind": "Yarn", "original_context": 8, **yarn}, {"beta": 0.1, "period": 8},
                  heads=(4, 2, 16), extra={"head_dim": 16, "sliding_window": None})


def make_tiny(golden: Golden, seed: int) -> dict[str, Any]:
    """The arrays of one golden file."""
    model = build(golden)
    weights = _randomise(model, golden, np.random.default_rng(seed))
    tokens = np.random.default_rng(seed + 1000).integers(PADDING_ID + 1, VOCAB_SIZE, NUM_TOKENS)
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor(tokens[None]), use_cache=False).logits[0]
    return {"config": json.dumps(_config(golden, model.config)), "tokens": tokens.astype(np.int32),
            "logits": logits.numpy().astype(np.float32), **weights}


def build(golden: Golden) -> Any:
    """The transformers model of a golden, its parameters not set yet."""
    num_heads, num_kv_heads, _ = golden.heads
    config_class = getattr(transformers, f"{golden.model}{'Text' if golden.model == 'Gemma3' else ''}Config")
    config = config_class(**{
        "vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": golden.layers,
        "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "max_position_embeddings": 128,
        "rms_norm_eps": golden.eps, "tie_word_embeddings": golden.tied,
        "rope_parameters": {"rope_type": "default", **golden.rope, "rope_theta": golden.theta}, **golden.extra})
    config._attn_implementation = "eager"
    return getattr(transformers, f"{golden.model}ForCausalLM")(config).eval()


def _randomise(model: Any, golden: Golden, rng: np.random.Generator) -> dict[str, Any]:
    """Puts random numbers of the grid into every parameter; returns them under brise's names."""
    weights = {}
    for name, parameter in model.named_parameters():  # a tied head is not listed twice
        is_norm = name.endswith("norm.weight")
        drawn = rng.normal(1.0 if is_norm else 0.0, 0.3 if is_norm else 0.2, tuple(parameter.shape))
        grid = np.clip(np.rint(drawn * GRID), -127, 127).astype(np.int8)
        less = 1 if is_norm and golden.family == "gemma3_text" else 0  # transformers adds it
        parameter.data = torch.tensor(grid / GRID - less, dtype=torch.float32)
        weights |= split(name, grid, golden)
    assert golden.tied == ("output" not in weights), golden.name
    return weights


def split(name: str, rows: Any, golden: Golden) -> dict[str, Any]:
    """A transformers parameter under brise's names; some are several matrices, one below the other."""
    num_heads, num_kv_heads, head_dim = golden.heads
    match name.rpartition(".weight")[0].rpartition(".")[2]:
        case "input_linear" | "gate_up_proj":
            tails, sizes = ("w1", "w3"), (len(rows) // 2, len(rows) // 2)
        case "qkv_proj":
            tails, sizes = ("wq", "wk", "wv"), tuple(head_dim * heads for heads in (num_heads, *[num_kv_heads] * 2))
        case _:
            return {brise_name(name, golden.family): rows}
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    layer = name.split(".")[2]
    return {f"layers.{layer}.{tail}": part for tail, part in zip(tails, parts, strict=True)}


def brise_name(name: str, family: str = "") -> str:
    """The name of a transformers parameter in brise's Weights."""
    tails = {"input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "ffn_norm",
             "self_attn.q_proj.weight": "wq", "self_attn.k_proj.weight": "wk",
             "self_attn.v_proj.weight": "wv", "self_attn.o_proj.weight": "wo",
             "self_attn.q_proj.bias": "bq", "self_attn.k_proj.bias": "bk",
             "self_attn.v_proj.bias": "bv", "self_attn.q_norm.weight": "q_norm",
             "self_attn.k_norm.weight": "k_norm", "mlp.gate_proj.weight": "w1", "mlp.down_proj.weight": "w2",
             "mlp.up_proj.weight": "w3", "shared_mlp.output_linear.weight": "w2"}
    if family == "gemma3_text":
        tails |= {"post_attention_layernorm.weight": "attention_post_norm",
                  "pre_feedforward_layernorm.weight": "ffn_norm", "post_feedforward_layernorm.weight": "ffn_post_norm"}
    whole = {"model.embed_tokens.weight": "tok_embeddings", "model.norm.weight": "norm",
             "lm_head.weight": "output"}
    if name in whole:
        return whole[name]
    _, _, layer, tail = name.split(".", 3)
    return f"layers.{layer}.{tails[tail]}"


def _config(golden: Golden, config: Any) -> dict[str, Any]:
    num_heads, num_kv_heads, head_dim = golden.heads
    more = {"layers_without_rope": golden.without_rope} if golden.without_rope else {}
    return {**more, **golden.config, "family": golden.family, "vocab_size": VOCAB_SIZE, "width": config.hidden_size,
            "num_layers": config.num_hidden_layers, "num_heads": num_heads, "num_kv_heads": num_kv_heads,
            "head_dim": head_dim, "ffn_width": config.intermediate_size, "norm_eps": golden.eps,
            "max_context": 128, "sliding_window": golden.window, "query_temperature": golden.temperature,
            "rope": {"theta": golden.theta, "dim": golden.rotated or head_dim, "scaling": golden.scaling}}


def make_smollm2(path: Path) -> dict[str, Any]:
    """Top logits of every position of a prompt, from transformers' own GGUF loader in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = np.array(SMOLLM2_PROMPT, np.int32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    top = np.argsort(-logits, axis=1)[:, :SMOLLM2_TOP]
    return {"tokens": tokens, "top_ids": top.astype(np.int32),
            "top_logits": np.take_along_axis(logits, top, 1),
            "fixed_ids": np.array(SMOLLM2_FIXED, np.int32), "fixed_logits": logits[:, list(SMOLLM2_FIXED)]}


def main() -> None:
    """Writes the files beside this script."""
    parser = argparse.ArgumentParser(description="Makes the golden files beside this script.")
    parser.add_argument("--smollm2", type=Path, help="the SmolLM2-135M-Instruct GGUF; makes only its file")
    arguments = parser.parse_args()
    folder = Path(__file__).parent
    if arguments.smollm2:
        np.savez_compressed(folder / "real_smollm2.npz", **make_smollm2(arguments.smollm2.resolve()))
        return
    for seed, golden in enumerate(goldens()):
        np.savez_compressed(folder / f"tiny_{golden.name}.npz", **make_tiny(golden, golden.seed or seed))


if __name__ == "__main__":
    main()
