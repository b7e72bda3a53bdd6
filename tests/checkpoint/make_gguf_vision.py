"""Writes the golden vision encoder as GGUF files, for tests only: as an mmproj file, or inside a model (Ollama)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

from brise.models.weights import Attention, Dense, FeedForward, Weight
from brise.text.images import DEVIATION, MEAN
from tests.checkpoint.make_gguf import add_key
from tests.goldens.vision import VisionGolden

TOKENS = [f"<{index}>" for index in range(97)]
TOKENS[10], TOKENS[12], TOKENS[13] = "[IMG]", "[IMG_BREAK]", "[IMG_END]"


def write_mmproj(path: Path, golden: VisionGolden, *, format: str = "F32", changes: Mapping[str, object] | None = None,
                 without: str = "") -> Path:
    """The encoder as llama.cpp's converters write it. `changes` replace metadata (None takes a key away)."""
    config = golden.config
    writer = GGUFWriter(path, "clip")
    keys: dict[str, object] = {
        "clip.has_vision_encoder": True, "clip.projector_type": "pixtral", "clip.use_silu": True,
        "clip.vision.image_size": config.image_size, "clip.vision.patch_size": config.patch_size,
        "clip.vision.embedding_length": config.width, "clip.vision.feed_forward_length": config.ffn_width,
        "clip.vision.block_count": config.num_layers, "clip.vision.projection_dim": config.text_width,
        "clip.vision.spatial_merge_size": config.merge, "clip.vision.attention.head_count": config.num_heads,
        "clip.vision.attention.layer_norm_epsilon": config.norm_eps, "clip.vision.image_mean": list(MEAN),
        "clip.vision.image_std": list(DEVIATION)}
    _add_keys(writer, keys | dict(changes or {}))
    names = {"patch_conv": "v.patch_embd", "ln_pre": "v.pre_ln", "norm": "mm.input_norm",
             "merging_layer": "mm.patch_merger", "w_in": "mm.1", "w_out": "mm.2"}
    tails = {"attention_norm": "ln1", "ffn_norm": "ln2", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v",
             "wo": "attn_out", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    for name, data in _tensors(golden, names, tails, are_halves=False):
        if name != without:
            _add(writer, name, data, format)
    writer.add_tensor("v.token_embd.img_break", break_row(golden))
    _close(writer)
    return path


def write_model(path: Path, golden: VisionGolden | None = None) -> Path:
    """A model's file as far as an encoder asks for it: its tokens; with a golden, the encoder as Ollama packs it."""
    writer = GGUFWriter(path, "mistral3")
    writer.add_token_list(TOKENS)
    if golden is not None:
        config = golden.config
        _add_keys(writer, {
            "mistral3.vision.block_count": config.num_layers, "mistral3.vision.embedding_length": config.width,
            "mistral3.vision.feed_forward_length": config.ffn_width, "mistral3.vision.num_channels": 3,
            "mistral3.vision.attention.head_count": config.num_heads,
            "mistral3.vision.attention.key_length": config.head_dim, "mistral3.vision.image_size": config.image_size,
            "mistral3.vision.patch_size": config.patch_size, "mistral3.vision.rope.freq_base": config.rope_theta,
            "mistral3.image_token_index": config.image_token, "mistral3.spatial_merge_size": config.merge,
            "mistral3.mm.projector_bias": False, "mistral3.mm.projector_hidden_act": "gelu"})
        names = {"patch_conv": "v.patch_conv", "ln_pre": "v.encoder_norm", "norm": "mm.norm",
                 "merging_layer": "mm.patch_merger.merging_layer", "w_in": "mm.linear_1", "w_out": "mm.linear_2"}
        tails = {"attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v",
                 "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
        for name, data in _tensors(golden, names, tails, are_halves=True):
            _add(writer, name, data, "F16" if data.ndim > 1 else "F32")
    else:
        writer.add_tensor("nothing", np.zeros(1, np.float32))
    _close(writer)
    return path


def break_row(golden: VisionGolden) -> np.ndarray:
    """The text model's embedding of the break token."""
    table = golden.text.weights.tok_embeddings
    assert isinstance(table, Dense)
    row: np.ndarray = table.data[golden.config.break_token]
    return row


def _tensors(golden: VisionGolden, names: Mapping[str, str], tails: Mapping[str, str], *,
             are_halves: bool) -> Iterator[tuple[str, np.ndarray]]:
    weights, config = golden.weights, golden.config
    patches = _data(weights.patch_conv).reshape(config.width, 3, config.patch_size, config.patch_size)
    yield f"{names['patch_conv']}.weight", patches
    for name, weight in (("ln_pre", weights.ln_pre), ("norm", weights.norm), ("w_in", weights.w_in),
                         ("merging_layer", weights.merging_layer), ("w_out", weights.w_out)):
        yield f"{names[name]}.weight", _data(weight)
    for index, layer in enumerate(weights.layers):
        attention, feed_forward = layer.attention, layer.feed_forward
        assert isinstance(attention, Attention) and isinstance(feed_forward, FeedForward)
        parts = {"attention_norm": layer.attention_norm, "ffn_norm": layer.ffn_norm, "wq": attention.wq,
                 "wk": attention.wk, "wv": attention.wv, "wo": attention.wo, "w1": feed_forward.w1,
                 "w2": feed_forward.w2, "w3": feed_forward.w3}
        for name, weight in parts.items():
            data = _data(weight)
            if are_halves and name in ("wq", "wk"):  # neighbours become halves apart
                data = data.reshape(config.num_heads, -1, 2, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
            yield f"v.blk.{index}.{tails[name]}.weight", data


def _data(weight: Weight) -> np.ndarray:
    assert isinstance(weight, Dense)
    data: np.ndarray = weight.data
    return data


def _add_keys(writer: GGUFWriter, keys: Mapping[str, object]) -> None:
    for key, value in keys.items():
        if value is not None:  # a key that is left out
            add_key(writer, key, value)


def _add(writer: GGUFWriter, name: str, data: np.ndarray, format: str) -> None:
    kind = GGMLQuantizationType[format]
    if data.ndim != 2 and format != "F16" or data.ndim == 1 or data.shape[-1] % 32 and format == "Q8_0":
        writer.add_tensor(name, data)
    elif format in ("F32", "F16"):
        writer.add_tensor(name, data.astype(np.float32 if format == "F32" else np.float16))
    else:
        writer.add_tensor(name, quants.quantize(data, kind), raw_dtype=kind)


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
