"""Makes tests/goldens/vision.npz from transformers' Mistral3; run by hand, its result is checked in.

    pip install 'brise[goldens]'
    python tests/goldens/make_vision.py

It holds `config` and `vision` (brise's Config and VisionConfig as JSON), text weights and, with the prefix
`vision.`, the encoder's under brise's names, `image0` and `image1` (pixels, CHW), `tokens`, `features` of both
images and `logits`. The numbers' grid and the order of q and k are make.py's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.goldens.make import GRID, VOCAB_SIZE, brise_name

PATCH, MERGE = 4, 2
IMAGE, BREAK, END = 10, 12, 13
SIZES = ((16, 24), (32, 8))  # pixels of the two images, height and width
VISION_EPS, TEXT_EPS = 1e-5, 1e-6  # transformers hard-codes the encoder's
YARN = {"factor": 16.0, "beta_fast": 4.0, "beta_slow": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
TAILS = {"attention_norm.weight": "attention_norm", "ffn_norm.weight": "ffn_norm",
         "attention.q_proj.weight": "attention.wq", "attention.k_proj.weight": "attention.wk",
         "attention.v_proj.weight": "attention.wv", "attention.o_proj.weight": "attention.wo",
         "feed_forward.gate_proj.weight": "feed_forward.w1", "feed_forward.down_proj.weight": "feed_forward.w2",
         "feed_forward.up_proj.weight": "feed_forward.w3"}
WHOLE = {"vision_tower.patch_conv.weight": "patch_conv", "vision_tower.ln_pre.weight": "ln_pre",
         "multi_modal_projector.norm.weight": "norm",
         "multi_modal_projector.patch_merger.merging_layer.weight": "merging_layer",
         "multi_modal_projector.linear_1.weight": "w_in", "multi_modal_projector.linear_2.weight": "w_out"}


def build() -> Any:
    """A tiny Ministral 3 with a tiny encoder."""
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "ministral3", "vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 128, "rms_norm_eps": TEXT_EPS, "sliding_window": None,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "llama_4_scaling_beta": 0.1,
                                "original_max_position_embeddings": 8, **YARN}},
        vision_config={
            "model_type": "pixtral", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "head_dim": 16, "intermediate_size": 96, "patch_size": PATCH, "image_size": 40, "hidden_act": "silu",
            "rope_parameters": {"rope_theta": 10000.0}},
        image_token_index=IMAGE, spatial_merge_size=MERGE, multimodal_projector_bias=False,
        projector_hidden_act="gelu", vision_feature_layer=-1, tie_word_embeddings=False)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    return transformers.Mistral3ForConditionalGeneration(config).eval()


def randomise(model: Any) -> dict[str, Any]:
    """Puts random numbers of the grid into every parameter; returns them under brise's names."""
    rng, weights = np.random.default_rng(7), {}
    for name, parameter in model.named_parameters():
        is_norm = name.endswith(("norm.weight", "ln_pre.weight"))
        drawn = rng.normal(1.0 if is_norm else 0.0, 0.3 if is_norm else 0.2, tuple(parameter.shape))
        grid = np.clip(np.rint(drawn * GRID), -127, 127).astype(np.int8)
        parameter.data = torch.tensor(grid / GRID, dtype=torch.float32)
        weights[_name(name)] = grid.reshape(len(grid), -1) if "patch_conv" in name else grid
    return weights


def _name(name: str) -> str:
    tail = name.removeprefix("model.")
    if tail.startswith("language_model.") or name == "lm_head.weight":
        return brise_name(tail.replace("language_model.", "model."))
    if tail in WHOLE:
        return f"vision.{WHOLE[tail]}"
    _, _, _, layer, rest = tail.split(".", 4)  # vision_tower.transformer.layers.N.rest
    return f"vision.layers.{layer}.{TAILS[rest]}"


def image_tokens(height: int, width: int) -> list[int]:
    """A break after every row of the grid, the end after the last."""
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    return ([IMAGE] * columns + [BREAK]) * (rows - 1) + [IMAGE] * columns + [END]


def main() -> None:
    """Writes the file beside this script."""
    model, rng = build(), np.random.default_rng(8)
    weights = randomise(model)
    images = [np.rint(rng.normal(0, 1, (3, *size)) * GRID).clip(-127, 127).astype(np.int8) for size in SIZES]
    padded = np.zeros((2, 3, max(h for h, _ in SIZES), max(w for _, w in SIZES)))
    for index, (height, width) in enumerate(SIZES):
        padded[index, :, :height, :width] = images[index] / GRID
    tokens = [1, 40, 41, *image_tokens(*SIZES[0]), 50, 51, 52, *image_tokens(*SIZES[1]), *range(60, 75)]
    model = model.double()
    given = {"pixel_values": torch.tensor(padded), "image_sizes": torch.tensor(SIZES)}
    with torch.no_grad():
        features = model.model.get_image_features(**given).pooler_output
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False, **given).logits[0]
    vision = {"width": 64, "num_layers": 2, "num_heads": 4, "head_dim": 16, "ffn_width": 96, "patch_size": PATCH,
              "image_size": 40, "merge": MERGE, "norm_eps": VISION_EPS, "projector_norm_eps": TEXT_EPS,
              "rope_theta": 10000.0, "text_width": 48, "image_token": IMAGE, "break_token": BREAK,
              "end_token": END}
    config = {"family": "ministral3", "vocab_size": VOCAB_SIZE, "width": 48, "num_layers": 2, "num_heads": 4,
              "num_kv_heads": 2, "head_dim": 16, "ffn_width": 80, "norm_eps": TEXT_EPS, "max_context": 128,
              "sliding_window": None, "query_temperature": {"beta": 0.1, "period": 8},
              "rope": {"theta": 100.0, "dim": 16, "scaling": {"kind": "Yarn", "original_context": 8, **YARN}}}
    np.savez_compressed(
        Path(__file__).parent / "vision.npz", config=json.dumps(config), vision=json.dumps(vision),
        image0=images[0], image1=images[1], tokens=np.array(tokens, np.int32),
        features=torch.cat(list(features)).numpy().astype(np.float32), logits=logits.numpy().astype(np.float32),
        **weights)


if __name__ == "__main__":
    main()
