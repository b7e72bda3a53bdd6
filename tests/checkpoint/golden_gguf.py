"""Writes the tiny models of tests/goldens as GGUF files, with the names and keys of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.checkpoint.make_folder import EXPERTS, Array, Tiny, together
from tests.goldens.golden import interleave

GGUF_TAILS = {
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v",
    "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up", "router": "ffn_gate_inp",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "attention_post_norm": "post_attention_norm",
    "ffn_post_norm": "post_ffw_norm"}
GGUF_OWN = {"phi3": {"wq_wk_wv": "attn_qkv", "w1_w3": "ffn_up"}}


def write_gguf(path: Path, model: Tiny, *, are_merged: bool = True, granite: str = "granite",
               kinds: list[int] | int | None = None) -> Path:
    """A golden as a GGUF file of F32 tensors, with the names of llama.cpp's converter. `are_merged`: the experts, as
    since April 2024; `granite`: the architecture of Granite 4, and `kinds` key/value heads by layer."""
    config = model.config
    name = {"ministral3": "mistral3", "granitemoehybrid": granite, "mixtral": "llama", "gemma3_text": "gemma3"}.get(
        config["family"], config["family"])
    writer = gguf.GGUFWriter(path, name)
    for key, number in {
            "block_count": config["num_layers"], "context_length": config["max_context"],
            "embedding_length": config["width"], "feed_forward_length": config["ffn_width"],
            "attention.head_count": config["num_heads"], "attention.head_count_kv": config["num_kv_heads"],
            "attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"],
            "rope.dimension_count": config["rope"]["dim"]}.items():
        if key == "attention.head_count_kv" and config["family"] == "granitemoehybrid":
            writer.add_head_count_kv(kinds or [number] * config["num_layers"])  # its converter has it for each layer
        else:
            writer.add_uint32(f"{name}.{key}", number)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", config["norm_eps"])
    writer.add_float32(f"{name}.rope.freq_base", config["rope"]["theta"])
    _add_rest(writer, name, config)
    own = GGUF_OWN.get(config["family"], {})
    for tensor_name, numbers in together(model, own).items():
        _, *rest = tensor_name.split(".", 2)
        if rest and rest[1] in EXPERTS:
            for name, stack in _gguf_experts(f"blk.{rest[0]}", rest[1], numbers, are_merged=are_merged):
                writer.add_tensor(name, stack)
            continue
        turned = {} if name == "gemma3" else {"wq": config["num_heads"], "wk": config["num_kv_heads"]}
        heads = turned.get(rest[-1] if rest else "")
        whole = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}.get(tensor_name)
        tensor = whole or f"blk.{rest[0]}.{(GGUF_TAILS | own)[rest[1]]}"
        writer.add_tensor(f"{tensor}.weight", numbers if heads is None else interleave(numbers, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_experts(block: str, tail: str, numbers: Array, *, are_merged: bool) -> Iterator[tuple[str, Array]]:
    """llama.cpp's names, of today and of before April 2024."""
    parts = {"down": numbers} if tail == "experts.w2" else dict(
        zip(("gate", "up"), np.split(numbers, 2, axis=1), strict=True))
    for part, stack in parts.items():
        if are_merged:
            yield f"{block}.ffn_{part}_exps.weight", np.ascontiguousarray(stack)
        else:
            yield from ((f"{block}.ffn_{part}.{index}.weight", np.ascontiguousarray(matrix))
                        for index, matrix in enumerate(stack))


def _add_rest(writer: gguf.GGUFWriter, name: str, config: Mapping[str, Any]) -> None:
    """What only some families have."""
    if name in ("granite", "granitehybrid"):
        _add_granite(writer, config)
    elif name == "phi3":
        _add_phi3(writer, config)
    elif config["rope"]["scaling"] is not None:
        (_add_gemma3 if name == "gemma3" else _add_yarn)(writer, config, config["rope"]["scaling"])
    if config["family"] == "mixtral":
        writer.add_expert_count(config["experts"]["count"])
        writer.add_expert_used_count(config["experts"]["per_token"])
        if config["sliding_window"] is not None:
            writer.add_sliding_window(config["sliding_window"])


def _add_phi3(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Its converter writes no rope.scaling.type."""
    writer.add_sliding_window(config["sliding_window"] or 0)
    scaling = config["rope"]["scaling"]
    writer.add_rope_scaling_orig_ctx_len(config["max_context"] if scaling is None else scaling["original_context"])
    if scaling is not None:
        writer.add_rope_scaling_attn_factors(scaling["attention_factor"])
        writer.add_tensor("rope_factors_long.weight", np.array(scaling["long"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(scaling["short"], np.float32))


def _add_granite(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_attention_scale(config["softmax_scale"])
    writer.add_embedding_scale(config["embedding_scale"])
    writer.add_residual_scale(config["residual_scale"])
    writer.add_logit_scale(config["logits_divisor"])
    if config["family"] == "granite":
        return
    # What the converter says of dense Granite 4: the keys of layers and experts that it lacks.
    writer.add_expert_shared_feed_forward_length(config["ffn_width"])
    writer.add_expert_count(0)
    writer.add_expert_used_count(0)
    writer.add_rope_scaling_finetuned(True)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(256)
    writer.add_ssm_group_count(1)
    writer.add_ssm_inner_size(2 * config["width"])
    writer.add_ssm_time_step_rank(128)


def _add_gemma3(writer: gguf.GGUFWriter, config: Mapping[str, Any], scaling: Mapping[str, Any]) -> None:
    """Without the base of the rope in layers with a window: llama.cpp knows it."""
    writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(scaling["factor"])


def _add_yarn(writer: gguf.GGUFWriter, config: Mapping[str, Any], scaling: Mapping[str, Any]) -> None:
    writer.add_uint32("mistral3.rope.scaling.original_context_length", scaling["original_context"])
    for key, number in {
            "rope.scaling.factor": scaling["factor"], "rope.scaling.yarn_beta_fast": scaling["beta_fast"],
            "rope.scaling.yarn_beta_slow": scaling["beta_slow"], "rope.scaling.mscale": scaling["mscale"],
            "rope.scaling.yarn_log_multiplier": scaling["mscale_all_dim"],
            "attention.temperature_scale": config["query_temperature"]["beta"]}.items():
        writer.add_float32(f"mistral3.{key}", number)
    writer.add_string("mistral3.rope.scaling.type", "yarn")
