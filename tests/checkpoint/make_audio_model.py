"""Writes the tiny Voxtral of tests/goldens as a folder of either kind and as GGUF, and one that can be served.

Names are written out here once more, and not taken from the code under test; those of GGUF are the package gguf's.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from tests.checkpoint import make_folder as make
from tests.checkpoint.golden_gguf import GGUF_TAILS
from tests.checkpoint.make_gguf import add_key
from tests.goldens.golden import FOLDER, GRID, interleave
from tests.text import tekken

Array = Any
HF_LAYER = {"attention_norm": "self_attn_layer_norm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj",
            "wv": "self_attn.v_proj", "wo": "self_attn.out_proj", "ffn_norm": "final_layer_norm", "w1": "fc1",
            "w2": "fc2"}
HF_WHOLE = {"conv1": "audio_tower.conv1", "conv2": "audio_tower.conv2", "positions": "audio_tower.embed_positions",
            "norm": "audio_tower.layer_norm", "w_in": "multi_modal_projector.linear_1",
            "w_out": "multi_modal_projector.linear_2"}
NATIVE_LAYER = {"attention_norm": "attention_norm", "wq": "attention.wq", "wk": "attention.wk", "wv": "attention.wv",
                "wo": "attention.wo", "ffn_norm": "ffn_norm", "w1": "feed_forward.w1", "w2": "feed_forward.w2"}
NATIVE_WHOLE = {"conv1": "whisper_encoder.conv_layers.0", "conv2": "whisper_encoder.conv_layers.1",
                "norm": "whisper_encoder.transformer.norm", "w_in": "audio_language_projection.0",
                "w_out": "audio_language_projection.2"}
BIASES = {"bq": "wq", "bv": "wv", "bo": "wo", "b1": "w1", "b2": "w2", "attention_norm_bias": "attention_norm",
          "ffn_norm_bias": "ffn_norm", "conv1_bias": "conv1", "conv2_bias": "conv2", "norm_bias": "norm"}
CONTROL = {24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 38: "[TRANSCRIBE]"}


def tiny() -> tuple[make.Tiny, dict[str, Array], dict[str, Any]]:
    """The golden's text model, the encoder's weights, and its sizes."""
    with np.load(FOLDER / "audio.npz") as file:
        arrays = dict(file)
    numbers = {key: (grid / GRID).astype(np.float32) for key, grid in arrays.items() if grid.dtype == np.int8}
    numbers["audio.positions"] = arrays["audio.positions"]
    heard = {key.removeprefix("audio."): numbers.pop(key) for key in list(numbers) if key.startswith("audio.")}
    for key in ("mels0", "mels1"):
        numbers.pop(key)
    return make.Tiny(json.loads(str(arrays["config"])), numbers), heard, json.loads(str(arrays["audio"]))


def write_hf(folder: Path, spelling: Literal["old", "new"] = "old", model: make.Tiny | None = None,
             extra: Mapping[str, object] | None = None) -> Path:
    """As transformers writes it; `extra` keys go into config.json, those of `audio_config` into that section."""
    text, heard, audio = tiny()
    text = model or text
    prefix = "" if spelling == "old" else "model."
    tensors = make.hf_tensors(text, spelling)
    for name, numbers in heard.items():
        part, kind, layer = split(name)
        outer = f"{prefix}audio_tower.layers.{layer}.{HF_LAYER[part]}" if layer else prefix + HF_WHOLE[part]
        tensors[f"{outer}.{kind}"] = ("F32", shaped(name, numbers))
    make.write_folder(folder, "model", tensors)
    inner = {key: value for key, value in make.hf_config(text, is_wrapped=False).items() if key != "architectures"}
    extra = dict(extra or {})
    changed = extra.pop("audio_config", {})
    assert isinstance(changed, dict)
    config = {
        "architectures": ["VoxtralForConditionalGeneration"], "model_type": "voxtral", "text_config": inner,
        "audio_token_id": audio["audio_token"], "projector_hidden_act": "gelu", "hidden_size": 48, "vocab_size": 97,
        "audio_config": {
            "model_type": "voxtral_encoder", "hidden_size": audio["width"], "intermediate_size": audio["ffn_width"],
            "num_hidden_layers": audio["num_layers"], "num_attention_heads": audio["num_heads"], "head_dim": 16,
            "num_key_value_heads": audio["num_heads"], "num_mel_bins": audio["num_mels"], "vocab_size": 51866,
            "max_source_positions": audio["num_positions"], "activation_function": "gelu", "scale_embedding": False,
            "dropout": 0.0, "layerdrop": 0.0, "initializer_range": 0.02, "attention_dropout": 0.0} | changed}
    (folder / "config.json").write_text(json.dumps(config | extra))
    return folder


def write_native(folder: Path, changes: Mapping[str, object] | None = None) -> Path:
    """As Mistral writes it: no positions, and the embedding beside the encoder. `changes` are of its encoder_args."""
    text, heard, audio = tiny()
    tensors = make.native_tensors(text)
    tensors["mm_whisper_embeddings.tok_embeddings.weight"] = tensors.pop("tok_embeddings.weight")
    for name, numbers in heard.items():
        if name == "positions":
            continue
        part, kind, layer = split(name)
        middle = f"whisper_encoder.transformer.layers.{layer}.{NATIVE_LAYER[part]}" if layer else NATIVE_WHOLE[part]
        tensors[f"mm_whisper_embeddings.{middle}.{kind}"] = ("F32", shaped(name, numbers))
    make.write_folder(folder, "consolidated", tensors)
    encoder = {"audio_encoding_args": {"sampling_rate": 16000, "num_mel_bins": audio["num_mels"], "hop_length": 160,
                                       "window_size": 400},
               "dim": audio["width"], "n_layers": audio["num_layers"], "head_dim": 16, "n_heads": audio["num_heads"],
               "hidden_dim": audio["ffn_width"], "vocab_size": 131072,
               "max_source_positions": audio["num_positions"]} | dict(changes or {})
    params = make.params(text) | {"multimodal": {"whisper_model_args": {
        "encoder_args": encoder, "downsample_args": {"downsample_factor": audio["stack"]}}}}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def write_gguf(folder: Path, changes: Mapping[str, object] | None = None, without: str = "") -> Path:
    """A GGUF file with its encoder beside it, as llama.cpp's converter writes them; `changes` are of the encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    text, heard, audio = tiny()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    config = text.config
    for key, number in {
            "block_count": config["num_layers"], "context_length": config["max_context"],
            "embedding_length": config["width"], "feed_forward_length": config["ffn_width"],
            "attention.head_count": config["num_heads"], "attention.head_count_kv": config["num_kv_heads"],
            "attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"],
            "rope.dimension_count": config["head_dim"]}.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config["norm_eps"])
    writer.add_float32("llama.rope.freq_base", config["rope"]["theta"])
    writer.add_token_list([CONTROL.get(index, f"<{index}>") for index in range(config["vocab_size"])])
    for name, numbers in text.arrays.items():
        _, *rest = name.split(".")
        heads = {"wq": config["num_heads"], "wk": config["num_kv_heads"]}.get(rest[-1] if rest else "")
        whole = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}.get(name)
        tensor = whole or f"blk.{rest[0]}.{GGUF_TAILS[rest[1]]}"
        writer.add_tensor(f"{tensor}.weight", numbers if heads is None else interleave(numbers, heads))
    _close(writer)
    write_mmproj(folder / "mmproj-model.gguf", heard, audio, changes, without)
    return folder


def write_mmproj(path: Path, heard: Mapping[str, Array], audio: Mapping[str, Any],
                 changes: Mapping[str, object] | None = None, without: str = "") -> None:
    """The encoder alone, under the names that the package gguf has for transformers'."""
    writer = gguf.GGUFWriter(path, "clip")
    keys: dict[str, object] = {
        "clip.has_audio_encoder": True, "clip.projector_type": gguf.VisionProjectorType.VOXTRAL,
        "clip.audio.num_mel_bins": audio["num_mels"], "clip.audio.embedding_length": audio["width"],
        "clip.audio.feed_forward_length": audio["ffn_width"], "clip.audio.projection_dim": audio["text_width"],
        "clip.audio.block_count": audio["num_layers"], "clip.audio.attention.head_count": audio["num_heads"],
        "clip.audio.attention.layer_norm_epsilon": audio["norm_eps"],
        "clip.audio.projector.stack_factor": audio["stack"]}
    for key, value in (keys | dict(changes or {})).items():
        if value is not None:
            add_key(writer, key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 8)
    for name, numbers in heard.items():
        if name == without:
            continue
        part, kind, layer = split(name)
        theirs = f"audio_tower.layers.{layer}.{HF_LAYER[part]}" if layer else HF_WHOLE[part]
        theirs = f"audio.{theirs}" if theirs.startswith("multi_modal") else theirs
        full = names.get_name(f"{theirs}.{kind}", try_suffixes=(".weight", ".bias"))
        assert full is not None, theirs
        data = shaped(name, numbers)
        if name in ("conv1_bias", "conv2_bias"):
            data = data[:, None]
        writer.add_tensor(full, data.astype(np.float16) if part.startswith("conv") and data.ndim == 3 else data)
    _close(writer)


def write_hearing(folder: Path, version: str = "v13") -> Path:
    """A folder that can be served: the golden's encoder, and a text model with the vocabulary of a tekken.json."""
    text, _, _ = tiny()
    count = tekken.NUM_CONTROL + tekken.NUM_TEXT
    rng = np.random.default_rng(3)
    wide = {name: np.clip(np.rint(rng.normal(0, 0.5, (count, 48)) * GRID), -127, 127).astype(np.float32) / GRID
            for name in ("tok_embeddings", "output")}
    model = replace(text, config={**text.config, "vocab_size": count, "max_context": 512},
                    arrays={**text.arrays, **wide})
    write_hf(folder, "new", model)
    names = tekken.control_names(version)
    tekken.write(folder, version, control=[CONTROL.get(index, name) for index, name in enumerate(names)])
    return folder


def speech(seconds: float = 0.5, seed: int = 0, rate: int = 16000, channels: int = 1) -> bytes:
    """A WAV file of 16-bit samples: a tone that wavers, and noise."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * seed) * times * (1 + 0.1 * np.sin(3 * times)))
    samples = tone[:, None] + rng.normal(0, 0.05, (len(times), channels))
    return wav((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), 1, 16, rate, channels)


def wav(body: bytes, tag: int, bits: int, rate: int, channels: int) -> bytes:
    """A WAV file of these samples."""
    out = io.BytesIO()
    out.write(b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt ")
    out.write(struct.pack("<IHHIIHH", 16, tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits))
    out.write(b"data" + struct.pack("<I", len(body)) + body)
    return out.getvalue()


def split(name: str) -> tuple[str, str, str]:
    """The weight of a path, "weight" or "bias", and the number of its layer or nothing."""
    layer, part = name.split(".")[1:] if name.startswith("layers.") else ("", name)
    return BIASES.get(part, part), "bias" if part in BIASES else "weight", layer


def shaped(name: str, numbers: Array) -> Array:
    return numbers.reshape(len(numbers), -1, 3) if name in ("conv1", "conv2") else numbers


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
