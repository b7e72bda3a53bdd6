"""Makes tests/goldens/audio.npz from transformers' Voxtral; run by hand, its result is checked in.

    pip install 'brise[goldens]'
    python -m tests.goldens.make_audio

It holds `config` and `audio` (brise's Config and AudioConfig as JSON), text weights and, with the prefix `audio.`, the
encoder's under brise's names, `mels0` and `mels1` (spectrograms of two chunks, frames x bands), `tokens`, `features` of
both chunks and `logits`. The numbers' grid and the order of q and k are make.py's; the positions are Whisper's
sinusoids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.goldens.make import GRID, VOCAB_SIZE, brise_name

AUDIO, BEGIN = 24, 25
WIDTH, MELS, POSITIONS, STACK = 64, 16, 16, 4
TAILS = {"self_attn_layer_norm.weight": "attention_norm", "self_attn_layer_norm.bias": "attention_norm_bias",
         "self_attn.q_proj.weight": "wq", "self_attn.q_proj.bias": "bq", "self_attn.k_proj.weight": "wk",
         "self_attn.v_proj.weight": "wv", "self_attn.v_proj.bias": "bv", "self_attn.out_proj.weight": "wo",
         "self_attn.out_proj.bias": "bo", "final_layer_norm.weight": "ffn_norm",
         "final_layer_norm.bias": "ffn_norm_bias", "fc1.weight": "w1", "fc1.bias": "b1", "fc2.weight": "w2",
         "fc2.bias": "b2"}
WHOLE = {"audio_tower.conv1.weight": "conv1", "audio_tower.conv1.bias": "conv1_bias",
         "audio_tower.conv2.weight": "conv2", "audio_tower.conv2.bias": "conv2_bias",
         "audio_tower.embed_positions.weight": "positions", "audio_tower.layer_norm.weight": "norm",
         "audio_tower.layer_norm.bias": "norm_bias", "multi_modal_projector.linear_1.weight": "w_in",
         "multi_modal_projector.linear_2.weight": "w_out"}


def build() -> Any:
    """A tiny Llama with a tiny encoder of audio."""
    config = transformers.VoxtralConfig(
        text_config={
            "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e8}},
        audio_config={
            "model_type": "voxtral_encoder", "hidden_size": WIDTH, "intermediate_size": WIDTH * STACK,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_mel_bins": MELS, "max_source_positions": POSITIONS},
        audio_token_id=AUDIO, tie_word_embeddings=False)
    for part in (config, config.text_config, config.audio_config):
        part._attn_implementation = "eager"
    return transformers.VoxtralForConditionalGeneration(config).eval()


def randomise(model: Any) -> dict[str, Any]:
    """Puts random numbers of the grid into every parameter; returns them under brise's names."""
    rng, weights = np.random.default_rng(17), {}
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            parameter.data = torch.tensor(sinusoids(*parameter.shape))
            weights[_name(name)] = parameter.data.numpy()
            continue
        is_norm = name.endswith("norm.weight")
        drawn = rng.normal(1.0 if is_norm else 0.0, 0.3 if is_norm else 0.2, tuple(parameter.shape))
        grid = np.clip(np.rint(drawn * GRID), -127, 127).astype(np.int8)
        parameter.data = torch.tensor(grid / GRID, dtype=torch.float32)
        weights[_name(name)] = grid.reshape(len(grid), -1) if "conv" in name and grid.ndim == 3 else grid
    return weights


def sinusoids(length: int, width: int) -> Any:
    """Whisper's: sines of `width` / 2 timescales from 1 to 10000, then cosines."""
    scales = 10000.0 ** (np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] / scales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _name(name: str) -> str:
    tail = name.removeprefix("model.")
    if tail.startswith("language_model.") or name == "lm_head.weight":
        return brise_name(tail.replace("language_model.", "model."))
    if tail in WHOLE:
        return f"audio.{WHOLE[tail]}"
    _, _, layer, rest = tail.split(".", 3)  # audio_tower.layers.N.rest
    return f"audio.layers.{layer}.{TAILS[rest]}"


def main() -> None:
    """Writes the file beside this script."""
    model, rng = build(), np.random.default_rng(18)
    weights = randomise(model)
    given = torch.tensor(sinusoids(POSITIONS, WIDTH))
    from transformers.models.whisper.modeling_whisper import sinusoids as theirs  # noqa: PLC0415

    assert torch.allclose(given, theirs(POSITIONS, WIDTH), atol=1e-6)
    mels = [np.rint(rng.normal(0, 1, (2 * POSITIONS, MELS)) * GRID).clip(-127, 127).astype(np.int8) for _ in range(2)]
    tokens = [1, 40, BEGIN, *[AUDIO] * (POSITIONS // STACK), 50, 51, 52, BEGIN, *[AUDIO] * (POSITIONS // STACK),
              *range(60, 75)]
    model = model.double()
    features = torch.tensor(np.stack([chunk.T for chunk in mels]) / GRID)
    with torch.no_grad():
        out = model.get_audio_features(features, return_dict=True).pooler_output
        logits = model(input_ids=torch.tensor([tokens]), input_features=features, use_cache=False).logits[0]
    audio = {"width": WIDTH, "num_layers": 2, "num_heads": 4, "ffn_width": WIDTH * STACK, "num_mels": MELS,
             "num_positions": POSITIONS, "stack": STACK, "norm_eps": 1e-5, "text_width": 48, "audio_token": AUDIO,
             "begin_token": BEGIN}
    config = {"family": "llama", "vocab_size": VOCAB_SIZE, "width": 48, "num_layers": 2, "num_heads": 4,
              "num_kv_heads": 2, "head_dim": 16, "ffn_width": 80, "norm_eps": 1e-5, "max_context": 128,
              "sliding_window": None, "query_temperature": None, "rope": {"theta": 1e8, "dim": 16, "scaling": None}}
    np.savez_compressed(
        Path(__file__).parent / "audio.npz", config=json.dumps(config), audio=json.dumps(audio), mels0=mels[0],
        mels1=mels[1], tokens=np.array(tokens, np.int32), features=out.numpy().astype(np.float32),
        logits=logits.numpy().astype(np.float32), **weights)


if __name__ == "__main__":
    main()
