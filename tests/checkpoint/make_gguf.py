"""Writes tiny random models as GGUF files, for tests only: any family, any format, with a tokenizer.

The numbers mean nothing, but norms differ from 1, weights are large enough that a wrong rope, temperature
or norm changes the logits, and the Ministral 3 file crosses its temperature period every 16 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

# ids 0, 1, 2, as in SmolLM2; then 256 bytes, then one token for each merge: 288 in all.
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "i n", "a n", "e r", "o n", "r e", "a t", "e n", "o r", "e s", "i s", "i t", "a r", "a l",
          "Ġ t", "Ġ a", "Ġ s", "Ġ w", "l l", "o u", "th e", "Ġ the", "in g", "an d", "Ġ and", "us er",
          "u s", "Ġa n", "Ġt h")
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
          "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
          "{% endif %}")
PRE = {"llama": "smollm", "mistral3": "tekken", "deepseek2": "tekken", "qwen2": "qwen2", "qwen3": "qwen2",
       "smollm3": "llama-bpe", "gemma3": "llama-bpe", "mixtral": "smollm", "granite": "gpt-4o",
       "phi3": "gpt-4o"}
PHI3_ROTATED = 24  # numbers of a head
MIXTRAL_EXPERTS, MIXTRAL_PER_TOKEN = 6, 2
VOCAB_SIZE = len(CONTROL) + 256 + len(MERGES)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a tiny model; mistral3 and qwen3 have q wider than the residual stream, as the real ones."""

    width: int
    head_dim: int
    ffn_width: int
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    context: int = 512


@dataclass(frozen=True)
class LatentSizes:
    """What a tiny deepseek2 has beside `Sizes`, in which head_dim is nope + rope. Layer 0 is dense."""

    query_rank: int
    rank: int
    nope: int
    value: int
    expert_width: int
    rope: int = 16
    experts: int = 6
    experts_per_token: int = 2


def has_wide_blocks(format: str) -> bool:
    return gguf.GGML_QUANT_SIZES[GGMLQuantizationType[format]][0] == 256


def latent_sizes(format: str = "F32") -> LatentSizes:
    """Blocks of a format lie along rows: ranks and the heads' parts are multiples of them."""
    if has_wide_blocks(format):
        return LatentSizes(query_rank=256, rank=256, nope=256, value=256, expert_width=256)
    return LatentSizes(query_rank=96, rank=64, nope=32, value=64, expert_width=64)


def sizes(family: str, format: str = "F32") -> Sizes:
    """Widths are multiples of 256 for K formats, of 64 otherwise."""
    if family == "deepseek2":
        latent = latent_sizes(format)
        return Sizes(width=2 * latent.rank, head_dim=latent.nope + latent.rope, ffn_width=256, num_kv_heads=1)
    wide_heads = family in ("mistral3", "qwen3", "gemma3")
    if has_wide_blocks(format):
        return Sizes(width=256, head_dim=128 if wide_heads else 64, ffn_width=512)
    num_layers = {"smollm3": 4, "gemma3": 7}.get(family, 2)  # one layer of theirs is unlike the others
    return Sizes(width=64 if wide_heads else 128, head_dim=32, ffn_width=192, num_layers=num_layers)


def write_tiny(path: Path | str, family: str, *, format: str = "F32", seed: int = 0, vocab: int = VOCAB_SIZE,
               tokenizer: bool = True, tied: bool = True, fallback: str | None = None,
               extra_metadata: Mapping[str, object] | None = None,
               extra_tensors: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes a random model of `family` (a key of PRE), its matrices in `format`.

    With `fallback`, rows are of 96, 128 and 512 numbers, and those that are no multiple of 256 have that format in
    place of `format`. `vocab` over 288 adds tokens `<unused0>`, ...; `extra_metadata` has full keys
    ("llama.rope.freq_base"), replaces what is there (None takes it away) and may hold str, bool, int, float and lists
    of them.
    """
    path = Path(path)
    shape = sizes(family, format) if fallback is None else Sizes(width=96, head_dim=32, ffn_width=512)
    writer = GGUFWriter(path, architecture(family))
    for key, value in (_hyperparameters(family, shape, vocab, format) | dict(extra_metadata or {})).items():
        if value is not None:
            add_key(writer, key, value)
    if tokenizer:
        _add_tokenizer(writer, family, vocab)
    random = np.random.default_rng(seed)
    for name, dims in tensor_shapes(family, shape, vocab, tied=tied, format=format).items():
        is_short = fallback is not None and dims[-1] % 256 != 0
        _add_tensor(writer, random, name, dims, fallback if fallback is not None and is_short else format)
    for name, data in (extra_tensors or {}).items():
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def architecture(family: str) -> str:
    """Mixtral is a `llama` with experts."""
    return "llama" if family == "mixtral" else family


def tensor_shapes(family: str, shape: Sizes, vocab: int, *, tied: bool,
                  format: str = "F32") -> dict[str, tuple[int, ...]]:
    """Name to row-major shape of every tensor."""
    q_width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, shape.width)}
    for layer in range(shape.num_layers):
        block = {
            "attn_norm.weight": (shape.width,), "attn_q.weight": (q_width, shape.width),
            "attn_k.weight": (kv_width, shape.width), "attn_v.weight": (kv_width, shape.width),
            "attn_output.weight": (shape.width, q_width), "ffn_norm.weight": (shape.width,),
            "ffn_gate.weight": (shape.ffn_width, shape.width),
            "ffn_up.weight": (shape.ffn_width, shape.width),
            "ffn_down.weight": (shape.width, shape.ffn_width)}
        if family == "deepseek2":
            block = _latent_shapes(shape, latent_sizes(format), is_dense=layer == 0)
        if family == "mixtral":
            block = {name: dims for name, dims in block.items() if not name.startswith("ffn_") or "norm" in name}
            count, inner, width = MIXTRAL_EXPERTS, shape.ffn_width, shape.width
            block |= {"ffn_gate_inp.weight": (count, width), "ffn_gate_exps.weight": (count, inner, width),
                      "ffn_up_exps.weight": (count, inner, width), "ffn_down_exps.weight": (count, width, inner)}
        if family == "qwen2":
            block |= {"attn_q.bias": (q_width,), "attn_k.bias": (kv_width,), "attn_v.bias": (kv_width,)}
        if family == "phi3":  # q, k and v are one matrix, and so are gate and up
            block = {name: dims for name, dims in block.items() if not name.startswith(
                ("attn_q.", "attn_k.", "attn_v.", "ffn_gate."))} | {
                "attn_qkv.weight": (q_width + 2 * kv_width, shape.width),
                "ffn_up.weight": (2 * shape.ffn_width, shape.width)}
        if family == "gemma3":
            block |= {"post_attention_norm.weight": (shape.width,), "post_ffw_norm.weight": (shape.width,)}
        if family in ("qwen3", "gemma3"):
            block |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
        out |= {f"blk.{layer}.{name}": dims for name, dims in block.items()}
    out["output_norm.weight"] = (shape.width,)
    if family == "phi3":
        out |= dict.fromkeys(("rope_factors_long.weight", "rope_factors_short.weight"), (PHI3_ROTATED // 2,))
    if not tied:
        out["output.weight"] = (vocab, shape.width)
    return out


def _latent_shapes(shape: Sizes, latent: LatentSizes, *, is_dense: bool) -> dict[str, tuple[int, ...]]:
    """As llama.cpp's converter writes them: the keys' half of wkv_b turned, experts in tensors of three dims."""
    heads, width, inner, count = shape.num_heads, shape.width, latent.expert_width, latent.experts
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (width,), "attn_q_a.weight": (latent.query_rank, width),
        "attn_q_a_norm.weight": (latent.query_rank,),
        "attn_q_b.weight": (heads * shape.head_dim, latent.query_rank),
        "attn_kv_a_mqa.weight": (latent.rank + latent.rope, width), "attn_kv_a_norm.weight": (latent.rank,),
        "attn_k_b.weight": (heads, latent.rank, latent.nope), "attn_v_b.weight": (heads, latent.value, latent.rank),
        "attn_output.weight": (width, heads * latent.value), "ffn_norm.weight": (width,)}
    if is_dense:
        return block | {"ffn_gate.weight": (shape.ffn_width, width), "ffn_up.weight": (shape.ffn_width, width),
                        "ffn_down.weight": (width, shape.ffn_width)}
    return block | {
        "ffn_gate_inp.weight": (count, width), "ffn_gate_exps.weight": (count, inner, width),
        "ffn_up_exps.weight": (count, inner, width), "ffn_down_exps.weight": (count, width, inner),
        "ffn_gate_shexp.weight": (inner, width), "ffn_up_shexp.weight": (inner, width),
        "ffn_down_shexp.weight": (width, inner)}


def random_blocks(random: np.random.Generator, format: str, rows: int, cols: int,
                  std: float = 0.2) -> np.ndarray:
    """Random valid blocks of a K or an IQ4 format, uint8 (rows, bytes of a row), whose values have about `std`.

    gguf cannot quantise to them, so the integers are random bytes and the scales are set afterwards.
    """
    kind = GGMLQuantizationType[format]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * cols // block_size, block_bytes), dtype=np.uint8)
    # Byte offset of each half-precision scale, and the share of d it gets so that the mean is near zero.
    scales = {"Q2_K": {80: 1.0, 82: 1.5}, "Q3_K": {108: 1.0}, "Q4_K": {0: 1.0, 2: 7.5},
              "Q5_K": {0: 1.0, 2: 15.5}, "Q6_K": {208: 1.0}, "IQ4_NL": {0: 1.0}, "IQ4_XS": {0: 1.0}}[format]

    def with_scale(d: np.ndarray) -> np.ndarray:
        for offset, share in scales.items():
            blocks[:, offset:offset + 2] = (d * share).astype("<f2").view(np.uint8).reshape(-1, 2)
        return blocks

    unit = float(gguf.quants.dequantize(with_scale(np.full(len(blocks), 0.01)), kind).std()) / 0.01
    return with_scale(std / unit * random.uniform(0.7, 1.3, len(blocks))).reshape(rows, -1)


def _hyperparameters(family: str, shape: Sizes, vocab: int, format: str) -> dict[str, object]:
    name, family = family, architecture(family)
    out: dict[str, object] = {
        "general.name": f"Tiny {name}",
        f"{family}.block_count": shape.num_layers, f"{family}.context_length": shape.context,
        f"{family}.embedding_length": shape.width, f"{family}.feed_forward_length": shape.ffn_width,
        f"{family}.vocab_size": vocab, f"{family}.attention.head_count": shape.num_heads,
        f"{family}.attention.head_count_kv": shape.num_kv_heads,
        f"{family}.attention.key_length": shape.head_dim, f"{family}.attention.value_length": shape.head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5, f"{family}.rope.freq_base": 10000.0,
        f"{family}.rope.dimension_count": shape.head_dim}
    if family == "deepseek2":
        out |= {f"deepseek2.{key}": value for key, value in _latent_keys(shape, latent_sizes(format)).items()}
    if name == "mixtral":
        out |= {"llama.expert_count": MIXTRAL_EXPERTS, "llama.expert_used_count": MIXTRAL_PER_TOKEN}
    if family == "gemma3":
        out |= {"gemma3.attention.sliding_window": 24, "gemma3.rope.scaling.type": "linear",
                "gemma3.rope.scaling.factor": 8.0}
    if family == "granite":
        out |= {"granite.attention.scale": 0.2, "granite.embedding_scale": 3.0, "granite.residual_scale": 0.7,
                "granite.logit_scale": 0.9}
    if family == "phi3":
        out |= {"phi3.rope.dimension_count": PHI3_ROTATED, "phi3.attention.sliding_window": 0,
                "phi3.rope.scaling.original_context_length": 128, "phi3.rope.scaling.attn_factor": 1.1}
    if family == "mistral3":
        out |= {"mistral3.rope.scaling.type": "yarn", "mistral3.rope.scaling.factor": 32.0,
                "mistral3.rope.scaling.original_context_length": 16,
                "mistral3.rope.scaling.yarn_beta_fast": 32.0, "mistral3.rope.scaling.yarn_beta_slow": 1.0,
                "mistral3.rope.scaling.yarn_log_multiplier": 1.0,
                "mistral3.attention.temperature_scale": 0.1}
    return out


def _latent_keys(shape: Sizes, latent: LatentSizes) -> dict[str, object]:
    return {"attention.q_lora_rank": latent.query_rank, "attention.kv_lora_rank": latent.rank,
            "attention.key_length": latent.rank + latent.rope, "attention.value_length": latent.rank,
            "attention.key_length_mla": shape.head_dim, "attention.value_length_mla": latent.value,
            "rope.dimension_count": latent.rope, "expert_count": latent.experts,
            "expert_used_count": latent.experts_per_token, "expert_shared_count": 1,
            "expert_feed_forward_length": latent.expert_width, "leading_dense_block_count": 1,
            "expert_weights_scale": 1.0, "expert_weights_norm": True, "expert_gating_func": 1,
            "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.1, "attention.temperature_scale": 0.1,
            "attention.temperature_length": 16}


def add_key(writer: GGUFWriter, key: str, value: object) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(f"{key}: {value!r}")


def _add_tokenizer(writer: GGUFWriter, family: str, vocab: int) -> None:
    tokens = [*CONTROL, *_byte_symbols(), *(merge.replace(" ", "") for merge in MERGES)]
    if vocab < len(tokens):
        raise ValueError(f"vocab {vocab} is too small for the tokenizer's {len(tokens)} tokens")
    types = [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL))
    padding = vocab - len(tokens)
    tokens += [f"<unused{i}>" for i in range(padding)]
    types += [5] * padding
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE[family])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in byte order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + rest.index(byte)) for byte in range(256)]


def _add_tensor(writer: GGUFWriter, random: np.random.Generator, name: str, dims: tuple[int, ...],
                format: str) -> None:
    if len(dims) == 1:
        center, spread = (0.0, 0.5) if name.endswith("bias") else (1.0, 0.2)
        drawn = center + spread * random.standard_normal(dims)
        # Hugging Face's files of Gemma hold the number less 1, as BF16.
        is_less_one = writer.arch == "gemma3"
        writer.add_tensor(name, (np.rint(128 * drawn) / 128 if is_less_one else drawn).astype(np.float32))
        return
    if name.endswith("ffn_gate_inp.weight"):
        format = "F32"  # as converters leave it
    kind = GGMLQuantizationType[format]
    if format.endswith("_K") or format.startswith("IQ4"):
        blocks = random_blocks(random, format, int(np.prod(dims[:-1])), dims[-1])
        writer.add_tensor(name, blocks.reshape(*dims[:-1], -1), raw_dtype=kind)
        return
    values = (0.2 * random.standard_normal(dims)).astype(np.float32)
    match format:
        case "F32":
            writer.add_tensor(name, values)
        case "F16":
            writer.add_tensor(name, values.astype(np.float16))
        case _:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
