"""Writes a Ministral 3 of any size with random weights as a safetensors folder, for measurements of loading.

One tensor is in memory at a time. Weights are about N(0, 0.02), norms 1; what such a model writes means nothing.

    python bench/synthesize_folder.py --layers 8 --dtype BF16 FOLDER
    python bench/synthesize_folder.py --layers 26 --width 3072 --ffn 9216 --heads 32 --vocab 131072 --dtype FP8 FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import vocabularies

HEAD_DIM = 128
SHARD_BYTES = 1 << 31
STEP = 1 << 24  # random numbers at a time


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--untied", action="store_true", help="an output matrix of its own")
    parser.add_argument("--dtype", choices=["BF16", "FP8"], default="BF16")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_shards(arguments.folder, list(tensors(arguments)))
    (arguments.folder / "config.json").write_text(json.dumps(config(arguments), indent=1))
    write_tokenizer(arguments.folder, arguments.vocab)


def tensors(sizes: argparse.Namespace) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor; an FP8 weight is followed by its scale."""
    width, q_width, kv_width = sizes.width, sizes.heads * HEAD_DIM, sizes.kv_heads * HEAD_DIM
    yield "model.embed_tokens.weight", "BF16", (sizes.vocab, width)
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", "BF16", (width,)
        yield f"{prefix}post_attention_layernorm.weight", "BF16", (width,)
        for name, shape in (("self_attn.q_proj", (q_width, width)), ("self_attn.k_proj", (kv_width, width)),
                            ("self_attn.v_proj", (kv_width, width)), ("self_attn.o_proj", (width, q_width)),
                            ("mlp.gate_proj", (sizes.ffn, width)), ("mlp.up_proj", (sizes.ffn, width)),
                            ("mlp.down_proj", (width, sizes.ffn))):
            yield f"{prefix}{name}.weight", "F8_E4M3" if sizes.dtype == "FP8" else "BF16", shape
            if sizes.dtype == "FP8":
                yield f"{prefix}{name}.weight_scale_inv", "BF16", ()
    yield "model.norm.weight", "BF16", (width,)
    if sizes.untied:
        yield "lm_head.weight", "BF16", (sizes.vocab, width)


def write_shards(folder: Path, found: list[tuple[str, str, tuple[int, ...]]]) -> None:
    """Files of at most SHARD_BYTES and a tensor more, and their index."""
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    room = SHARD_BYTES
    for tensor in found:
        if room < 0:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= nbytes(tensor[1], tensor[2])
    random, index = np.random.default_rng(0), {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, shard, random)
        index |= {name: file for name, _, _ in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_shard(path: Path, shard: list[tuple[str, str, tuple[int, ...]]], random: np.random.Generator) -> None:
    header, end = {}, 0
    for name, dtype, shape in shard:
        first, end = end, end + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape in shard:
            count = int(np.prod(shape))
            for first in range(0, count, STEP):
                file.write(values(random, name, dtype, min(STEP, count - first)).tobytes())


def values(random: np.random.Generator, name: str, dtype: str, count: int) -> NDArray[np.generic]:
    if dtype == "F8_E4M3":  # any code but NaN; the scale makes them small
        codes = random.integers(0, 256, count, dtype=np.uint8)
        return np.where(codes & 127 == 127, 0, codes).astype(np.uint8)
    numbers = 0.02 * random.standard_normal(count, np.float32)
    if name.endswith("norm.weight"):
        numbers[:] = 1
    if name.endswith("scale_inv"):
        numbers[:] = 2.0**-12
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * (1 if dtype == "F8_E4M3" else 2)


def config(sizes: argparse.Namespace) -> dict[str, object]:
    out: dict[str, object] = {
        "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "vocab_size": sizes.vocab,
        "hidden_size": sizes.width, "intermediate_size": sizes.ffn, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "head_dim": HEAD_DIM,
        "hidden_act": "silu", "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}}
    if sizes.dtype == "FP8":
        out["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    return out


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Single bytes, and tokens that no text gives."""
    symbols = vocabularies.byte_symbols()
    tokens = ["<unk>", "<s>", "</s>", *symbols, *(f"<unused{index}>" for index in range(vocab_size - 3 - len(symbols)))]
    document = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": index, "content": tokens[index], "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True} for index in range(3)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "merges": [], "vocab": {token: index for index, token in enumerate(tokens)}}}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


if __name__ == "__main__":
    main()
