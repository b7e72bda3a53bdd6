"""Writes an encoder and its projector as an mmproj file of llama.cpp; read_mmproj.py and read_audio.py read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from brise.checkpoint.gguf.read_audio import KIND as AUDIO_KIND
from brise.checkpoint.gguf.read_mmproj import BREAK_ROW, LLAMA_CPP
from brise.checkpoint.gguf.read_siglip import KIND as SIGLIP_KIND
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.checkpoint.read_audio import tensor_name
from brise.checkpoint.read_original import Named, Original
from brise.checkpoint.read_siglip import tensor_name as siglip_name
from brise.checkpoint.read_siglip import transposed
from brise.checkpoint.write_gguf import outgoing
from brise.errors import UnsupportedError
from brise.models.pixtral import NUM_CHANNELS, VisionConfig, VisionWeights
from brise.models.siglip import SiglipConfig, SiglipWeights
from brise.models.weights import Dense, Weight, weights_with_paths
from brise.models.whisper import KERNEL, AudioConfig, AudioWeights
from brise.quant.formats import PLAIN
from brise.quant.rows import float_rows, format_of
from brise.text.images import DEVIATION, MEAN, SIGLIP_DEVIATION, SIGLIP_MEAN


def projector_path(model: Path) -> Path:
    """The path of a model file's vision encoder: beside it, under a name by which readers find it."""
    return model.with_name(f"mmproj-{model.name}")


def needs_projector(original: Original) -> bool:
    """Whether an encoder goes into an mmproj file: one that Ollama packed stands among the model's own tensors, and is
    copied with them."""
    if original.audio is not None:
        return True
    return original.vision is not None and not any(tensor.name.startswith("v.") for tensor in original.tensors)


def write_projector(original: Original, path: Path) -> int:
    """Writes the encoder, each matrix in the format that it has; returns the size of the file."""
    if original.audio is not None:
        return _write_audio(*original.audio, original, path)
    assert original.vision is not None, "a model without an encoder"
    config, weights = original.vision
    if isinstance(weights, SiglipWeights):
        assert isinstance(config, SiglipConfig), "a config and weights of two kinds"
        return _write_siglip(config, weights, original, path)
    assert isinstance(config, VisionConfig), "a config and weights of two kinds"
    if config.rope_theta != 10000.0:
        raise UnsupportedError(f"the vision encoder's rope theta is {config.rope_theta}; mmproj files have no key for "
                               "it")
    tensors = [_outgoing(config, name, weight, original) for name, weight in _named(original, weights)]
    return write_gguf(path, _metadata(config), tensors)


def _write_siglip(config: SiglipConfig, weights: SiglipWeights, original: Original, path: Path) -> int:
    keys: dict[str, object] = {
        "image_size": config.image_size, "patch_size": config.patch_size, "embedding_length": config.width,
        "feed_forward_length": config.ffn_width, "projection_dim": config.text_width,
        "block_count": config.num_layers, "attention.head_count": config.num_heads,
        "attention.layer_norm_epsilon": config.norm_eps, "projector.scale_factor": config.pool,
        "image_mean": np.array(SIGLIP_MEAN, np.float32), "image_std": np.array(SIGLIP_DEVIATION, np.float32)}
    metadata = {"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True,
                "clip.projector_type": SIGLIP_KIND, "clip.use_gelu": True} | {
                    f"clip.vision.{key}": value for key, value in keys.items()}
    return write_gguf(path, metadata, [
        _siglip_tensor(config, name, weight, original) for name, weight in weights_with_paths(weights)])


def _siglip_tensor(config: SiglipConfig, path: str, weight: Weight, original: Original) -> Outgoing:
    """Vectors, the convolution and positions in F32, which llama.cpp wants; the projection as in transformers."""
    whole = transposed(weight) if path == "projection" else weight
    format = format_of(weight)
    is_kept = len(weight.shape) == 2 and path not in ("patch_conv", "positions") and format in PLAIN
    made = outgoing(Named(siglip_name(path, "gguf"), whole), format if is_kept else "F32", original.forget)
    kernel = (config.width, NUM_CHANNELS, config.patch_size, config.patch_size)
    return replace(made, shape=kernel) if path == "patch_conv" else made


def _write_audio(config: AudioConfig, weights: AudioWeights, original: Original, path: Path) -> int:
    keys: dict[str, object] = {
        "num_mel_bins": config.num_mels, "embedding_length": config.width, "feed_forward_length": config.ffn_width,
        "projection_dim": config.text_width, "block_count": config.num_layers,
        "attention.head_count": config.num_heads, "attention.layer_norm_epsilon": config.norm_eps,
        "projector.stack_factor": config.stack}
    metadata = {"general.architecture": "clip", "general.type": "mmproj", "clip.has_audio_encoder": True,
                "clip.projector_type": AUDIO_KIND, "clip.use_gelu": True} | {
                    f"clip.audio.{key}": value for key, value in keys.items()}
    return write_gguf(path, metadata, [
        _audio_tensor(config, name, weight, original) for name, weight in weights_with_paths(weights)])


def _audio_tensor(config: AudioConfig, path: str, weight: Weight, original: Original) -> Outgoing:
    """Vectors and positions in F32, which llama.cpp wants; convolutions with their three dimensions, in F16 unless they
    are F32, and their biases as columns."""
    format = format_of(weight)
    if path in ("conv1", "conv2"):
        channels = config.num_mels if path == "conv1" else config.width
        made = outgoing(Named(tensor_name(path, "gguf"), weight), "F32" if format == "F32" else "F16", original.forget)
        return replace(made, shape=(config.width, channels, KERNEL))
    is_kept = len(weight.shape) == 2 and path != "positions" and format in PLAIN
    made = outgoing(Named(tensor_name(path, "gguf"), weight), format if is_kept else "F32", original.forget)
    return replace(made, shape=(config.width, 1)) if path in ("conv1_bias", "conv2_bias") else made


def _metadata(config: VisionConfig) -> dict[str, object]:
    keys: dict[str, object] = {
        "image_size": config.image_size, "patch_size": config.patch_size, "embedding_length": config.width,
        "feed_forward_length": config.ffn_width, "projection_dim": config.text_width,
        "block_count": config.num_layers, "attention.head_count": config.num_heads,
        "attention.layer_norm_epsilon": config.norm_eps, "spatial_merge_size": config.merge,
        "image_mean": np.array(MEAN, np.float32), "image_std": np.array(DEVIATION, np.float32)}
    return {"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True,
            "clip.projector_type": "pixtral", "clip.use_silu": True} | {
                f"clip.vision.{key}": value for key, value in keys.items()}


def _named(original: Original, weights: VisionWeights) -> Iterator[tuple[str, Weight]]:
    """Every weight under its GGUF name. The row of [IMG_BREAK] is the text model's where the encoder has none."""
    assert original.vision is not None
    for path, weight in weights_with_paths(replace(weights, break_row=None)):
        yield _name(path), weight
    if weights.break_row is not None:
        yield BREAK_ROW, weights.break_row
    else:
        config = original.vision[0]
        assert isinstance(config, VisionConfig), "a config and weights of two kinds"
        token = config.break_token
        row = float_rows(original.weights.tok_embeddings, token, token + 1)[0]
        yield BREAK_ROW, Dense("F32", row.shape, row)


def _name(path: str) -> str:
    """layers.3.attention.wq as v.blk.3.attn_q.weight."""
    if not path.startswith("layers."):
        return f"{LLAMA_CPP.whole[path]}.weight"
    _, layer, rest = path.split(".", 2)
    return f"v.blk.{layer}.{LLAMA_CPP.layer[rest.rsplit('.', 1)[-1]]}.weight"


def _outgoing(config: VisionConfig, name: str, weight: Weight, original: Original) -> Outgoing:
    """Vectors and the convolution in F32, which llama.cpp wants; the convolution with its four dimensions."""
    is_kernel = name == f"{LLAMA_CPP.whole['patch_conv']}.weight"
    format = format_of(weight)
    made = outgoing(Named(name, weight), "F32" if len(weight.shape) == 1 or is_kernel or format not in PLAIN
                    else format, original.forget)
    if not is_kernel:
        return made
    return replace(made, shape=(config.width, NUM_CHANNELS, config.patch_size, config.patch_size))
