"""Writes a full-size GGUF with random weights, for speed measurements where the real weights cannot be had.

Shape, formats and tokenizer size are those of the real file, so that time and memory are too; the text
that such a model writes means nothing. Weights are about N(0, 0.02), norms about 1. One tensor is in
memory at a time.

    python bench/synthesize.py --shape qwen2.5-1.5b --mix Q4_K_M qwen2.5-1.5b-q4_k_m.gguf
    python bench/synthesize.py --shape ministral3-3b --mix Q4_0 --tekken tekken.json ministral3-3b-q4_0.gguf

Ministral's vocabulary is the real Tekken, from inside mistral-common (pip install 'brise[mistral]').
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

import synthesize_latent
import vocabularies
from random_blocks import SIZES, fill


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its vocabulary; control tokens begin at `first_control`."""

    architecture: str
    pre: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    num_merges: int
    first_control: int
    rope_theta: float
    norm_eps: float
    context: int
    biases: bool = False
    tied: bool = True
    rope: Mapping[str, str | int | float] = field(default_factory=dict)
    latent: synthesize_latent.Latent | None = None
    joined: bool = False  # q, k and v are one matrix, and so are gate and up
    experts: int = 0  # as wide as ffn_width, two for each token; Mixtral
    rotated: int | None = None  # numbers of a head, if not all; their frequencies have LongRoPE's factors
    is_gemma: bool = False  # norms of heads, and of what attention and feed-forward add


GRANITE4: Mapping[str, str | int | float] = {  # of micro; the others differ in numbers only
    "attention.scale": 0.015625, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 10.0}
PHI4_MINI: Mapping[str, str | int | float] = {
    "rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.1902380,
    "attention.sliding_window": 0}
MINISTRAL3_ROPE: Mapping[str, str | int | float] = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 16.0, "rope.scaling.original_context_length": 16384,
    "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.1}
def _gemma3(num_layers: int, width: int, heads: tuple[int, int], ffn_width: int, context: int,
            rope: Mapping[str, str | int | float]) -> Shape:
    return Shape("gemma3", "qwen2", num_layers, width, *heads, 256, ffn_width, vocab_size=262144, num_merges=261000,
                 first_control=261256, rope_theta=1e6, norm_eps=1e-6, context=context, rope=rope, is_gemma=True)


SHAPES: Mapping[str, Shape] = {
    "gemma3-270m": _gemma3(18, 640, (4, 1), 2048, 32768, {"attention.sliding_window": 512}),
    "gemma3-1b": _gemma3(26, 1152, (4, 1), 6912, 32768, {"attention.sliding_window": 512}),
    "gemma3-4b": _gemma3(34, 2560, (8, 4), 10240, 131072, {
        "attention.sliding_window": 1024, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "smollm2-135m": Shape("llama", "smollm", 30, 576, 9, 3, 64, 1536, vocab_size=49152, num_merges=48900 - 21,
                          first_control=0, rope_theta=1e5, norm_eps=1e-5, context=8192),
    "qwen2.5-1.5b": Shape("qwen2", "qwen2", 28, 1536, 12, 2, 128, 8960, vocab_size=151936, num_merges=151387,
                          first_control=151643, rope_theta=1e6, norm_eps=1e-6, context=32768, biases=True),
    "ministral3-3b": Shape("mistral3", "tekken", 26, 3072, 32, 8, 128, 9216, vocab_size=131072, num_merges=269443,
                           first_control=0, rope_theta=1e6, norm_eps=1e-5, context=262144, rope=MINISTRAL3_ROPE),
    "ministral3-8b": Shape("mistral3", "tekken", 34, 4096, 32, 8, 128, 14336, vocab_size=131072, num_merges=269443,
                           first_control=0, rope_theta=1e6, norm_eps=1e-5, context=262144, tied=False,
                           rope=MINISTRAL3_ROPE),
    "smollm3-3b": Shape("smollm3", "llama-bpe", 36, 2048, 16, 4, 128, 11008, vocab_size=128256, num_merges=127744,
                        first_control=128000, rope_theta=5e6, norm_eps=1e-6, context=65536),
    "granite4-350m": Shape("granite", "gpt-4o", 28, 1024, 16, 4, 64, 2048, vocab_size=100352, num_merges=100000,
                           first_control=100256, rope_theta=1e7, norm_eps=1e-5, context=32768, rope=GRANITE4),
    "granite4-1b": Shape("granite", "gpt-4o", 40, 2048, 16, 4, 128, 4096, vocab_size=100352, num_merges=100000,
                         first_control=100256, rope_theta=1e7, norm_eps=1e-5, context=131072, rope=GRANITE4),
    "granite4-micro": Shape("granite", "gpt-4o", 40, 2560, 40, 8, 64, 8192, vocab_size=100352, num_merges=100000,
                            first_control=100256, rope_theta=1e7, norm_eps=1e-5, context=131072, rope=GRANITE4),
    "phi3-mini": Shape("phi3", "gpt-4o", 32, 3072, 32, 32, 96, 8192, vocab_size=32064, num_merges=31744,
                       first_control=32000, rope_theta=1e4, norm_eps=1e-5, context=4096, tied=False, joined=True),
    "phi4-mini": Shape("phi3", "gpt-4o", 32, 3072, 24, 8, 128, 8192, vocab_size=200064, num_merges=199743,
                       first_control=199999, rope_theta=1e4, norm_eps=1e-5, context=131072, joined=True, rotated=96,
                       rope=PHI4_MINI),
    "mixtral-8x7b": Shape("llama", "smollm", 32, 4096, 32, 8, 128, 14336, vocab_size=32000, num_merges=31700,
                          first_control=0, rope_theta=1e6, norm_eps=1e-5, context=32768, tied=False, experts=8),
    "mixtral-8x22b": Shape("llama", "smollm", 56, 6144, 48, 8, 128, 16384, vocab_size=32768, num_merges=32400,
                           first_control=0, rope_theta=1e6, norm_eps=1e-5, context=65536, tied=False, experts=8),
    "large3": Shape("deepseek2", "tekken", 61, 7168, 128, 1, 192, 16384, vocab_size=131072, num_merges=269443,
                    first_control=0, rope_theta=1e4, norm_eps=1e-6, context=294912, tied=False,
                    latent=synthesize_latent.LARGE3),
    "large3-mini": Shape("deepseek2", "smollm", 4, 1024, 8, 1, 128, 4096, vocab_size=4096, num_merges=3800,
                         first_control=0, rope_theta=1e4, norm_eps=1e-6, context=8192, tied=False,
                         latent=synthesize_latent.MINI),
}
MIXES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("path", type=Path, help="the file to write")
    arguments.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-1.5b")
    arguments.add_argument("--mix", choices=MIXES, default="Q4_K_M")
    arguments.add_argument("--layers", type=int, help="fewer layers than the shape has, for a quick look")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--tekken", type=Path, help="also write the vocabulary as a tekken.json, for mistral-common")
    options = arguments.parse_args()
    shape = SHAPES[options.shape]
    num_layers = options.layers or shape.num_layers
    write(options.path, options.shape, shape, options.mix, num_layers, options.seed)
    if options.tekken is not None:
        options.tekken.write_text(json.dumps(vocabularies.tekken_document(shape.vocab_size)), encoding="utf-8")
    sys.stdout.write(f"{options.path}: {options.path.stat().st_size / 1e6:.0f} MB\n")
    return 0


def write(path: Path, name: str, shape: Shape, mix: str, num_layers: int, seed: int) -> None:
    """Names and places first, then one tensor after the other; a file cut short keeps the name `.part`."""
    writer = GGUFWriter(path.with_suffix(".part"), shape.architecture)
    _add_metadata(writer, f"Synthetic {name} {mix}", shape, num_layers)
    _vocabulary(shape).write(writer)
    plan = [(tensor, dims, _format(tensor, dims, mix, num_layers, shape.tied))
            for tensor, dims in _tensors(shape, num_layers)]
    for tensor, dims, format in plan:
        if format == "F32":
            writer.add_tensor_info(tensor, dims, np.dtype(np.float32), 4 * math.prod(dims))
        else:
            block_size, block_bytes = SIZES[format]
            byte_dims = (*dims[:-1], dims[-1] // block_size * block_bytes)
            writer.add_tensor_info(tensor, byte_dims, np.dtype(np.uint8), math.prod(byte_dims),
                                   GGMLQuantizationType[format])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for tensor, dims, format in plan:
        writer.write_tensor_data(_values(random, tensor, dims, format))
    writer.close()
    path.with_suffix(".part").replace(path)


def _tensors(shape: Shape, num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Row-major shapes; a tied model has no output of its own."""
    q_width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield "token_embd.weight", (shape.vocab_size, shape.width)
    if shape.rotated is not None:
        yield "rope_factors_long.weight", (shape.rotated // 2,)
        yield "rope_factors_short.weight", (shape.rotated // 2,)
    for layer in range(num_layers):
        if shape.latent is not None:
            for name, dims in synthesize_latent.block(shape.latent, layer, shape.width, shape.num_heads,
                                                      shape.ffn_width):
                yield f"blk.{layer}.{name}", dims
            continue
        for name, dims in _block(shape, q_width, kv_width).items():
            yield f"blk.{layer}.{name}", dims
    yield "output_norm.weight", (shape.width,)
    if not shape.tied:
        yield "output.weight", (shape.vocab_size, shape.width)


def _block(shape: Shape, q_width: int, kv_width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer."""
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (shape.width,), "ffn_down.weight": (shape.width, shape.ffn_width),
        "ffn_gate.weight": (shape.ffn_width, shape.width),
        "ffn_up.weight": (shape.ffn_width, shape.width),
        "ffn_norm.weight": (shape.width,), "attn_k.weight": (kv_width, shape.width),
        "attn_output.weight": (shape.width, q_width), "attn_q.weight": (q_width, shape.width),
        "attn_v.weight": (kv_width, shape.width)}
    if shape.joined:
        del block["attn_q.weight"], block["attn_k.weight"], block["attn_v.weight"], block["ffn_gate.weight"]
        block |= {"attn_qkv.weight": (q_width + 2 * kv_width, shape.width),
                  "ffn_up.weight": (2 * shape.ffn_width, shape.width)}
    if shape.experts:
        inner, width, count = shape.ffn_width, shape.width, shape.experts
        del block["ffn_gate.weight"], block["ffn_up.weight"], block["ffn_down.weight"]
        block |= {"ffn_gate_inp.weight": (count, width), "ffn_gate_exps.weight": (count, inner, width),
                  "ffn_up_exps.weight": (count, inner, width), "ffn_down_exps.weight": (count, width, inner)}
    if shape.biases:
        block |= {"attn_k.bias": (kv_width,), "attn_q.bias": (q_width,), "attn_v.bias": (kv_width,)}
    if shape.is_gemma:
        block |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,),
                  "post_attention_norm.weight": (shape.width,), "post_ffw_norm.weight": (shape.width,)}
    return block


def _format(name: str, dims: tuple[int, ...], mix: str, num_layers: int, tied: bool) -> str:
    """What llama.cpp's quantiser picks: Q6_K for the output, and in Q4_K_M for half of v and down; an embedding
    that is not the output too has the format of the rest.

    Rows that are no multiple of 256 have no K format; there the output becomes Q8_0.
    """
    if len(dims) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "F32"
    if mix == "Q8_0":
        return "Q8_0"
    better = "Q6_K" if dims[-1] % 256 == 0 else "Q8_0"
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        return better
    if mix != "Q4_K_M":
        return mix
    if dims[-1] % 256:
        raise ValueError(f"{name} has rows of {dims[-1]}: Q4_K_M needs a multiple of 256")
    if name == "token_embd.weight":
        return "Q4_K"
    if name.endswith("attn_qkv.weight"):
        return "Q5_K"
    layer = int(name.split(".")[1])
    eighth = num_layers // 8
    more_bits = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    return better if more_bits and ("attn_v" in name or "ffn_down" in name) else "Q4_K"


def _values(random: np.random.Generator, name: str, dims: tuple[int, ...], format: str) -> np.ndarray:
    if format != "F32":
        return fill(random, format, math.prod(dims[:-1]), dims[-1])
    center, spread = (0.0, 0.02) if name.endswith(("bias", "ffn_gate_inp.weight")) else (1.0, 0.1)
    return (center + spread * random.standard_normal(dims)).astype(np.float32)


def _add_metadata(writer: GGUFWriter, name: str, shape: Shape, num_layers: int) -> None:
    prefix = shape.architecture
    values: dict[str, str | int | float] = {
        "general.name": name, "general.quantization_version": 2,
        f"{prefix}.block_count": num_layers, f"{prefix}.context_length": shape.context,
        f"{prefix}.embedding_length": shape.width, f"{prefix}.feed_forward_length": shape.ffn_width,
        f"{prefix}.vocab_size": shape.vocab_size, f"{prefix}.attention.head_count": shape.num_heads,
        f"{prefix}.attention.head_count_kv": shape.num_kv_heads,
        f"{prefix}.attention.key_length": shape.head_dim, f"{prefix}.attention.value_length": shape.head_dim,
        f"{prefix}.attention.layer_norm_rms_epsilon": shape.norm_eps,
        f"{prefix}.rope.freq_base": shape.rope_theta, f"{prefix}.rope.dimension_count": shape.rotated or shape.head_dim}
    more = shape.rope if shape.latent is None else synthesize_latent.keys(shape.latent)
    if shape.experts:
        more = {**more, "expert_count": shape.experts, "expert_used_count": 2}
    for key, value in (values | {f"{prefix}.{key}": value for key, value in more.items()}).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case str():
                writer.add_string(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)


def _vocabulary(shape: Shape) -> vocabularies.Vocabulary:
    if shape.pre == "tekken":
        return vocabularies.tekken(shape.vocab_size)
    return vocabularies.made_up(shape.pre, shape.vocab_size, shape.num_merges, shape.first_control)


if __name__ == "__main__":
    raise SystemExit(main())
