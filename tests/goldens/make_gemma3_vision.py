"""Makes tests/goldens/gemma3_vision.npz from transformers' Gemma3; run by hand, its result is checked in.

    pip install 'brise[goldens]'
    python tests/goldens/make_gemma3_vision.py

It holds `config` (a config.json), weights under the names of transformers' files, `image0` and `image1` (pixels, CHW),
`tokens`, `features` of both images and `logits`. The numbers' grid is make.py's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.goldens.make import GRID, VOCAB_SIZE

IMAGE, BEGIN, END = 90, 91, 92
SIZE, ROWS = 32, 16  # pixels of a side, rows of the text model
CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "tie_word_embeddings": True,
    "image_token_index": IMAGE, "boi_token_index": BEGIN, "eoi_token_index": END, "mm_tokens_per_image": ROWS,
    "text_config": {
        "model_type": "gemma3_text", "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "query_pre_attn_scalar": 16, "sliding_window": 9, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIZE, "patch_size": 4, "vision_use_head": False}}


def build() -> Any:
    """A tiny Gemma 3 with a tiny encoder."""
    inner = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type")}
    config = transformers.Gemma3Config(**json.loads(json.dumps(inner)))
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def randomise(model: Any) -> dict[str, Any]:
    """Puts random numbers of the grid into every parameter; returns them under the names of files."""
    rng, weights = np.random.default_rng(17), {}
    for name, parameter in model.named_parameters():
        is_text_norm = "language_model" in name or "soft_emb" in name  # transformers adds 1
        mean = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) and not is_text_norm else 0.0
        drawn = rng.normal(mean, 0.3 if "norm" in name else 0.2, tuple(parameter.shape))
        grid = np.clip(np.rint(drawn * GRID), -127, 127).astype(np.int8)
        parameter.data = torch.tensor(grid / GRID, dtype=torch.float32)
        weights[name.removeprefix("model.").replace("language_model.", "language_model.model.")] = grid
    return weights


def main() -> None:
    """Writes the file beside this script."""
    model, rng = build(), np.random.default_rng(18)
    weights = randomise(model)
    images = [np.rint(rng.normal(0, 1, (3, SIZE, SIZE)) * GRID).clip(-127, 127).astype(np.int8) for _ in range(2)]
    image = [BEGIN, *[IMAGE] * ROWS, END]
    tokens = torch.tensor([[2, 40, 41, *image, 50, 51, 52, *image, *range(60, 75)]])
    model = model.double()
    pixels = torch.tensor(np.stack(images) / GRID)
    with torch.no_grad():
        features = model.model.get_image_features(pixels).pooler_output
        logits = model(input_ids=tokens, pixel_values=pixels, token_type_ids=(tokens == IMAGE).long(),
                       use_cache=False).logits[0]
    np.savez_compressed(
        Path(__file__).parent / "gemma3_vision.npz", config=json.dumps(CONFIG), image0=images[0], image1=images[1],
        tokens=tokens[0].numpy().astype(np.int32), features=torch.cat(list(features)).numpy().astype(np.float32),
        logits=logits.numpy().astype(np.float32), **weights)


if __name__ == "__main__":
    main()
