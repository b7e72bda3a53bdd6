"""Writes the tiny models of tests/goldens as safetensors folders and as GGUF, in every layout that brise reads.

Names and formats are written out here once more, and not taken from the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.goldens.golden import FOLDER, GRID, halves, interleave

Array = Any
# Prefixes of Ministral 3's repositories, of newer ones, of text models; `fused`: Mixtral as transformers 5 has it.
Spelling = Literal["old", "new", "text", "fused"]
Files = dict[str, tuple[str, Array]]  # tensor name -> dtype of the file, and its numbers or codes

NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "F8_E4M3": "u1", "I64": "<i8"}
HF_TAILS = {
    "attention_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
    "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight", "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight", "bq": "self_attn.q_proj.bias", "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias", "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
    "w1": "mlp.gate_proj.weight", "w2": "mlp.down_proj.weight", "w3": "mlp.up_proj.weight",
    "wq_a": "self_attn.q_a_proj.weight", "q_a_norm": "self_attn.q_a_layernorm.weight",
    "wq_b": "self_attn.q_b_proj.weight", "wkv_a": "self_attn.kv_a_proj_with_mqa.weight",
    "kv_a_norm": "self_attn.kv_a_layernorm.weight", "wkv_b": "self_attn.kv_b_proj.weight",
    "router": "mlp.gate.weight", "experts.w13": "mlp.experts.gate_up_proj", "experts.w2": "mlp.experts.down_proj",
    "shared.w1": "mlp.shared_experts.gate_proj.weight", "shared.w2": "mlp.shared_experts.down_proj.weight",
    "shared.w3": "mlp.shared_experts.up_proj.weight"}
NATIVE_TAILS = {
    "attention_norm": "attention_norm.weight", "ffn_norm": "ffn_norm.weight",
    **{name: f"attention.{name}.weight" for name in (
        "wq", "wk", "wv", "wo", "wq_a", "q_a_norm", "wq_b", "kv_a_norm", "wkv_b")},
    "wkv_a": "attention.wkv_a_with_mqa.weight",
    **{name: f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")},
    **{f"shared.{name}": f"shared_experts.{name}.weight" for name in ("w1", "w2", "w3")}}
# Of families that have names of their own, and matrices that are one in their files.
HF_OWN = {"gemma3_text": {"attention_post_norm": "post_attention_layernorm.weight",
                          "ffn_norm": "pre_feedforward_layernorm.weight",
                          "ffn_post_norm": "post_feedforward_layernorm.weight"},
          "granitemoehybrid": {"w1_w3": "shared_mlp.input_linear.weight", "w2": "shared_mlp.output_linear.weight"},
          "phi3": {"wq_wk_wv": "self_attn.qkv_proj.weight", "w1_w3": "mlp.gate_up_proj.weight"}}
VISION_HF = {"attention.wq": "attention.q_proj", "attention.wk": "attention.k_proj", "attention.wv": "attention.v_proj",
             "attention.wo": "attention.o_proj", "feed_forward.w1": "feed_forward.gate_proj",
             "feed_forward.w2": "feed_forward.down_proj", "feed_forward.w3": "feed_forward.up_proj"}
PROJECTOR_HF = {"norm": "norm", "merging_layer": "patch_merger.merging_layer", "w_in": "linear_1", "w_out": "linear_2"}
PROJECTOR_NATIVE = {"norm": "pre_mm_projector_norm", "merging_layer": "patch_merger.merging_layer",
                    "w_in": "vision_language_adapter.w_in", "w_out": "vision_language_adapter.w_out"}


@dataclass(frozen=True)
class Tiny:
    """A golden as numbers: rope pairs of `arrays` lie as halves, names are brise's."""

    config: dict[str, Any]
    arrays: dict[str, Array]
    vision: dict[str, Any] | None = None
    seen: dict[str, Array] = field(default_factory=dict)  # weights of the vision encoder


def tiny(name: str) -> Tiny:
    """The golden tiny_NAME.npz, or `vision`."""
    with np.load(FOLDER / ("vision.npz" if name == "vision" else f"tiny_{name}.npz")) as file:
        arrays = dict(file)
    numbers = {key: (grid / GRID).astype(np.float32) for key, grid in arrays.items() if grid.dtype == np.int8}
    seen = {key.removeprefix("vision."): numbers.pop(key) for key in list(numbers) if key.startswith("vision.")}
    for key in ("image0", "image1"):
        numbers.pop(key, None)
    vision = json.loads(str(arrays["vision"])) if "vision" in arrays else None
    return Tiny(json.loads(str(arrays["config"])), numbers, vision, seen)


def write_hf(folder: Path, model: Tiny, spelling: Spelling = "text", dtype: str = "F32",
             num_shards: int = 1, extra: Mapping[str, object] | None = None) -> Path:
    """A Hugging Face checkpoint; `extra` keys go into config.json."""
    write_folder(folder, "model", hf_tensors(model, spelling, dtype), num_shards)
    config = hf_config(model, is_wrapped=spelling != "text") | dict(extra or {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_native(folder: Path, model: Tiny, dtype: str = "F32", num_shards: int = 1,
                 extra: Mapping[str, object] | None = None) -> Path:
    """A checkpoint of Mistral's own layout; `extra` keys go into params.json."""
    write_folder(folder, "consolidated", native_tensors(model, dtype), num_shards)
    (folder / "params.json").write_text(json.dumps(params(model) | dict(extra or {})))
    return folder


def hf_tensors(model: Tiny, spelling: Spelling = "text", dtype: str = "F32") -> Files:
    prefix = {"old": "language_model.model.", "new": "model.language_model."}.get(spelling, "model.")
    whole = {"tok_embeddings": f"{prefix}embed_tokens.weight", "norm": f"{prefix}norm.weight",
             "output": "language_model.lm_head.weight" if spelling == "old" else "lm_head.weight"}
    out: Files = {}
    own = HF_OWN.get(model.config["family"], {})
    for name, weight in together(model, own).items():
        is_less_one = model.config["family"] == "gemma3_text" and name.endswith("norm")
        numbers = weight - np.float32(1) if is_less_one else weight
        if name in whole:
            out[whole[name]] = (dtype, numbers)
            continue
        _, layer, tail = name.split(".", 2)
        if model.config["family"] == "mixtral" and spelling != "fused" and tail in ("router", *EXPERTS):
            out |= _single_experts(f"{prefix}layers.{layer}.block_sparse_moe", tail, dtype, numbers)
        else:
            out[f"{prefix}layers.{layer}.{(HF_TAILS | own)[tail]}"] = (dtype, numbers)
    outer = "" if spelling == "old" else "model."
    for name, numbers in model.seen.items():
        tail = name.split(".", 2)[-1]
        if name in PROJECTOR_HF:
            out[f"{outer}multi_modal_projector.{PROJECTOR_HF[name]}.weight"] = (dtype, numbers)
        elif name.startswith("layers."):
            layers = f"{outer}vision_tower.transformer." + name.removesuffix(tail)
            out[f"{layers}{VISION_HF.get(tail, tail)}.weight"] = (dtype, numbers)
        else:
            out[f"{outer}vision_tower.{name}.weight"] = (dtype, _kernel(model, name, numbers))
    return out


def together(model: Tiny, own: Mapping[str, str]) -> dict[str, Array]:
    """The arrays; those that a family's files hold as one stand one below the other (w1_w3)."""
    out = dict(model.arrays)
    for layer, name in product(range(model.config["num_layers"]), own):
        if "_w" in name:
            tails = [f"layers.{layer}.{tail}" for tail in name.split("_")]
            out[f"layers.{layer}.{name}"] = np.concatenate([out.pop(tail) for tail in tails])
    return out


def native_tensors(model: Tiny, dtype: str = "F32") -> Files:
    out: Files = {}
    for name, numbers in model.arrays.items():
        whole = {"tok_embeddings": "tok_embeddings.weight", "norm": "norm.weight", "output": "output.weight"}
        if name in whole:
            out[whole[name]] = (dtype, numbers)
            continue
        _, layer, tail = name.split(".", 2)
        if tail in EXPERTS or tail == "router":
            below = f"layers.{layer}.feed_forward" if model.config["family"] == "mixtral" else f"layers.{layer}"
            out |= _single_experts(below, tail, dtype, numbers)
            continue
        heads = {"wq": model.config["num_heads"], "wk": model.config["num_kv_heads"]}.get(tail)
        rows = numbers if heads is None else interleave(numbers, heads)
        out[f"layers.{layer}.{NATIVE_TAILS[tail]}"] = (dtype, rows)
    for name, numbers in model.seen.items():
        if name in PROJECTOR_NATIVE:
            out[f"{PROJECTOR_NATIVE[name]}.weight"] = (dtype, numbers)
        elif name.startswith("layers."):
            assert model.vision is not None
            turned = name.endswith((".wq", ".wk"))
            rows = interleave(numbers, model.vision["num_heads"]) if turned else numbers
            out[f"vision_encoder.transformer.{name}.weight"] = (dtype, rows)
        else:
            out[f"vision_encoder.{name}.weight"] = (dtype, _kernel(model, name, numbers))
    return out


EXPERTS = ("experts.w13", "experts.w2")


def _single_experts(below: str, tail: str, dtype: str, numbers: Array) -> Files:
    """The router, or every matrix of every expert as a tensor of its own."""
    if tail == "router":
        return {f"{below}.gate.weight": (dtype, numbers)}
    out: Files = {}
    for index, matrix in enumerate(numbers):
        parts = {"w2": matrix} if tail == "experts.w2" else dict(zip(("w1", "w3"), np.split(matrix, 2), strict=True))
        out |= {f"{below}.experts.{index}.{part}.weight": (dtype, rows) for part, rows in parts.items()}
    return out


def _kernel(model: Tiny, name: str, numbers: Array) -> Array:
    if name != "patch_conv" or model.vision is None:
        return numbers
    return numbers.reshape(-1, 3, model.vision["patch_size"], model.vision["patch_size"])


def hf_config(model: Tiny, *, is_wrapped: bool) -> dict[str, Any]:
    config, rope = model.config, model.config["rope"]
    text: dict[str, Any] = {
        "model_type": config["family"], "vocab_size": config["vocab_size"], "hidden_size": config["width"],
        "num_hidden_layers": config["num_layers"], "num_attention_heads": config["num_heads"],
        "intermediate_size": config["ffn_width"], "rms_norm_eps": config["norm_eps"], "hidden_act": "silu",
        "max_position_embeddings": config["max_context"], "sliding_window": config.get("sliding_window"),
        "use_cache": True, "rope_parameters": {**_hf_rope(model), "rope_theta": rope["theta"]}}
    if config["family"] == "phi3":
        scaling = rope["scaling"] or {"original_context": config["max_context"]}
        text |= {"original_max_position_embeddings": scaling["original_context"], "auto_map": {"AutoConfig": "a.B"},
                 "partial_rotary_factor": rope["dim"] / config["head_dim"], "interpolate_factor": 1, "full_attn_mod": 1,
                 "lm_head_bias": False, "resid_pdrop": 0.0}
    if "softmax_scale" in config:
        text |= _hf_granite(config)
    if config.get("latent") is None:
        text |= {"num_key_value_heads": config["num_kv_heads"], "head_dim": config["head_dim"]}
    else:
        text |= _hf_large3(model)
    if config["family"] == "mixtral":
        text |= {"num_local_experts": config["experts"]["count"], "num_experts_per_tok": config["experts"]["per_token"],
                 "output_router_logits": False, "router_aux_loss_coef": 0.02}
    if config["family"] == "gemma3_text":
        text |= _hf_gemma3(model)
        text.pop("hidden_act")
    if not is_wrapped:
        return {"architectures": [f"{config['family'].capitalize()}ForCausalLM"], "torch_dtype": "bfloat16", **text}
    out = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text,
           "vision_config": {"model_type": "pixtral"}, "tie_word_embeddings": True, "vision_feature_layer": -1,
           "projector_hidden_act": "gelu", "multimodal_projector_bias": False}
    if model.vision is not None:
        vision = model.vision
        out |= {"image_token_index": vision["image_token"], "spatial_merge_size": vision["merge"], "vision_config": {
            "model_type": "pixtral", "hidden_size": vision["width"], "num_hidden_layers": vision["num_layers"],
            "num_attention_heads": vision["num_heads"], "head_dim": vision["head_dim"], "num_channels": 3,
            "intermediate_size": vision["ffn_width"], "patch_size": vision["patch_size"], "hidden_act": "silu",
            "image_size": vision["image_size"],
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision["rope_theta"]}}}
    return out


def _hf_rope(model: Tiny) -> dict[str, Any]:
    scaling = dict(model.config["rope"]["scaling"] or {"kind": "Default"})
    kind = scaling.pop("kind").lower()
    if kind == "longrope":  # as in Phi-4-mini, with the original context beside the sizes
        return {"type": kind, "short_factor": scaling["short"], "long_factor": scaling["long"]}
    if "original_context" in scaling:
        scaling["original_max_position_embeddings"] = scaling.pop("original_context")
    temperature = model.config["query_temperature"]
    if temperature is not None:
        scaling |= {"llama_4_scaling_beta": temperature["beta"],
                    "original_max_position_embeddings": temperature["period"]}
    return {"rope_type": kind, "type": kind, **scaling}


def _hf_granite(config: Mapping[str, Any]) -> dict[str, Any]:
    out = {"embedding_multiplier": config["embedding_scale"], "residual_multiplier": config["residual_scale"],
           "attention_multiplier": config["softmax_scale"], "logits_scaling": config["logits_divisor"]}
    if config["family"] == "granite":
        return out
    # As in granite-4.0-micro; `intermediate_size` is of the experts that it lacks.
    return {**out, "shared_intermediate_size": config["ffn_width"], "intermediate_size": 8192, "num_local_experts": 0,
            "num_experts_per_tok": 0, "layer_types": ["attention"] * config["num_layers"], "init_method": "mup",
            "position_embedding_type": "rope", "normalization_function": "rmsnorm", "mamba_chunk_size": 256,
            "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 64, "mamba_d_state": 256, "mamba_expand": 2,
            "mamba_n_groups": 1, "mamba_n_heads": 128, "mamba_proj_bias": False}


def _hf_gemma3(model: Tiny) -> dict[str, Any]:
    """Files of transformers 5; older ones have rope_theta, rope_local_base_freq and rope_scaling."""
    config, full = model.config, model.config["layers_without_window"]
    return {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": config["head_dim"],
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "use_bidirectional_attention": False,
            "layer_types": ["full_attention" if index in full else "sliding_attention"
                            for index in range(config["num_layers"])],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": config["rope"]["scaling"]["factor"],
                                   "rope_theta": config["rope"]["theta"]},
                "sliding_attention": {"rope_type": "default", "rope_theta": config["window_theta"]}}}


def _hf_large3(model: Tiny) -> dict[str, Any]:
    latent, experts = model.config["latent"], model.config["experts"]
    return {"q_lora_rank": latent["query_rank"], "kv_lora_rank": latent["rank"], "rope_interleave": True,
            "qk_nope_head_dim": latent["nope_dim"], "v_head_dim": latent["value_dim"], "norm_topk_prob": True,
            "qk_rope_head_dim": model.config["rope"]["dim"], "n_routed_experts": experts["count"],
            "num_experts_per_tok": experts["per_token"], "moe_intermediate_size": experts["width"],
            "n_shared_experts": experts["shared_width"] // experts["width"], "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": experts["num_dense_layers"], "routed_scaling_factor": experts["scale"]}


def params(model: Tiny) -> dict[str, Any]:
    """params.json. Its yarn has no magnitudes: apply_scale false means that cosines are not scaled."""
    config, rope = model.config, model.config["rope"]
    out: dict[str, Any] = {
        "dim": config["width"], "n_layers": config["num_layers"], "head_dim": config["head_dim"],
        "hidden_dim": config["ffn_width"], "n_heads": config["num_heads"], "n_kv_heads": config["num_kv_heads"],
        "rope_theta": rope["theta"], "norm_eps": config["norm_eps"], "vocab_size": config["vocab_size"],
        "tied_embeddings": "output" not in model.arrays, "max_position_embeddings": config["max_context"],
        "sliding_window": config.get("sliding_window")}
    if rope["scaling"] is not None:
        scaling = rope["scaling"]
        is_neutral = scaling.get("attention_factor") == 1 or scaling["mscale"] == scaling["mscale_all_dim"]
        out["yarn"] = {"original_max_position_embeddings": scaling["original_context"], "factor": scaling["factor"],
                       "beta": scaling["beta_fast"], "alpha": scaling["beta_slow"], "apply_scale": not is_neutral}
    if config["query_temperature"] is not None:
        temperature = config["query_temperature"]
        out["llama_4_scaling"] = {"original_max_position_embeddings": temperature["period"],
                                  "beta": temperature["beta"]}
    if config.get("latent") is not None:
        latent, experts = config["latent"], config["experts"]
        out |= {"q_lora_rank": latent["query_rank"], "kv_lora_rank": latent["rank"], "n_kv_heads": config["num_heads"],
                "qk_nope_head_dim": latent["nope_dim"], "qk_rope_head_dim": rope["dim"],
                "v_head_dim": latent["value_dim"]}
        out["moe"] = {"num_experts": experts["count"], "num_experts_per_tok": experts["per_token"],
                      "expert_hidden_dim": experts["width"], "routed_scale": experts["scale"], "route_every_n": 1,
                      "num_shared_experts": experts["shared_width"] // experts["width"], "num_expert_groups": 1,
                      "first_k_dense_replace": experts["num_dense_layers"], "num_expert_groups_per_tok": 1}
    if config["family"] == "mixtral":
        out["moe"] = {"num_experts": config["experts"]["count"], "num_experts_per_tok": config["experts"]["per_token"]}
    if model.vision is not None:
        out["vision_encoder"] = _native_vision(model.vision)
    return out


def _native_vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {"image_token_id": vision["image_token"], "image_break_token_id": vision["break_token"],
            "image_end_token_id": vision["end_token"], "intermediate_size": vision["ffn_width"],
            "num_hidden_layers": vision["num_layers"], "num_attention_heads": vision["num_heads"],
            "mm_projector_id": "patch_merge", "spatial_merge_size": vision["merge"], "hidden_size": vision["width"],
            "num_channels": 3, "image_size": vision["image_size"], "max_image_size": vision["image_size"],
            "patch_size": vision["patch_size"], "rope_theta": vision["rope_theta"],
            "add_pre_mm_projector_layer_norm": True, "adapter_bias": False}


def write_folder(folder: Path, stem: str, tensors: Files, num_shards: int = 1) -> None:
    """One file, or several and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if num_shards == 1:
        write_safetensors(folder / f"{stem}.safetensors", tensors)
        return
    names, index = list(tensors), {}
    for number in range(num_shards):
        file = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        own = names[number::num_shards]
        write_safetensors(folder / file, {name: tensors[name] for name in own})
        index |= dict.fromkeys(own, file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / f"{stem}.safetensors.index.json").write_text(text)


def write_safetensors(path: Path, tensors: Files) -> None:
    """The format by hand. BF16 numbers must be exact."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, numbers) in tensors.items():
        data = stored(dtype, numbers).tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(numbers.shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def stored(dtype: str, numbers: Array) -> Array:
    if dtype == "BF16" and numbers.dtype != np.uint16:
        bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
        assert not (bits & 0xFFFF).any(), "these numbers are not exact in BF16"
        return (bits >> 16).astype(np.uint16)
    return np.ascontiguousarray(numbers).astype(NUMPY[dtype]).reshape(numbers.shape)


__all__ = ["Files", "Tiny", "halves", "hf_config", "hf_tensors", "native_tensors", "params", "stored", "tiny",
           "together", "write_folder", "write_hf", "write_native", "write_safetensors"]
