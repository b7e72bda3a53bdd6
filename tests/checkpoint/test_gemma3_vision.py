"""Gemma 3's vision encoder is the same in every file layout, and what does not fit is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceBackend, numbers
from brise.checkpoint.gguf.write_mmproj import projector_path, write_projector
from brise.checkpoint.open import Vision, open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.write_gguf import write_mix
from brise.checkpoint.write_hf import write_hf
from brise.engine.vision import open_vision
from brise.errors import BriseError
from brise.models.rope import Linear
from brise.models.siglip import SiglipConfig
from brise.models.weights import Array, Weight, place
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.goldens import gemma3_vision
from tests.goldens.gemma3_vision import Spelling, read

CONFIG = SiglipConfig(width=24, num_layers=2, num_heads=2, ffn_width=40, patch_size=4, image_size=32, pool=2,
                      norm_eps=1e-6, text_width=32, image_token=90, begin_token=91, end_token=92)


@pytest.mark.parametrize("spelling", ["saved", "old", "new"])
def test_every_spelling_gives_the_same_features(tmp_path: Path, spelling: Spelling) -> None:
    golden = read()
    checkpoint = open_checkpoint(gemma3_vision.write_hf(tmp_path, golden, spelling))
    assert checkpoint.vision is not None and checkpoint.vision[0] == CONFIG
    checkpoint.weights()  # nothing of the encoder is left over
    features = features_of(checkpoint.vision, golden.images)
    assert np.abs(features - golden.features).max() < 3e-5


def test_an_mmproj_file_has_the_same_numbers_and_gguf_reads_it(tmp_path: Path) -> None:
    source = write_source(tmp_path / "hf")
    write_mix(open_original(source), tmp_path / "m.gguf", "F32")
    write_projector(open_original(source), projector_path(tmp_path / "m.gguf"))
    before, after = open_checkpoint(source).vision, open_checkpoint(tmp_path / "m.gguf").vision
    assert before is not None and after is not None
    assert isinstance(after[0], SiglipConfig) and replace(after[0], norm_eps=1e-6) == before[0]  # float32 in the file
    assert same_numbers(before, after)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(projector_path(tmp_path / "m.gguf")).tensors}
    projection = read().arrays["multi_modal_projector.mm_input_projection_weight"]
    np.testing.assert_array_equal(theirs["mm.input_projection.weight"].data, projection)
    norm = read().arrays["multi_modal_projector.mm_soft_emb_norm.weight"]
    np.testing.assert_array_equal(theirs["mm.soft_emb_norm.weight"].data, norm + np.float32(1))


def test_a_folder_made_from_gguf_has_the_same_numbers(tmp_path: Path) -> None:
    source = write_source(tmp_path / "hf")
    write_mix(open_original(source), tmp_path / "m.gguf", "F32")
    write_projector(open_original(source), projector_path(tmp_path / "m.gguf"))
    write_hf(open_original(tmp_path / "m.gguf"), tmp_path / "back", "F32")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "back")
    assert before.vision is not None and after.vision is not None and before.vision[0] == after.vision[0]
    assert same_numbers(before.vision, after.vision)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["model_type"] == "gemma3" and config["mm_tokens_per_image"] == 16


def test_transformers_reads_a_folder_of_ours(tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    write_hf(open_original(write_source(tmp_path / "hf")), tmp_path / "out", "F32")
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        str(tmp_path / "out"), attn_implementation="eager").eval()
    golden = read()
    tokens = torch.tensor(golden.tokens[None].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=tokens, pixel_values=torch.tensor(np.stack(golden.images)),
                       token_type_ids=(tokens == gemma3_vision.IMAGE).long(), use_cache=False).logits[0].numpy()
    assert np.abs(logits - golden.logits).max() < 1e-4


@pytest.mark.parametrize(("part", "change", "message"), [
    ("vision_config", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
    ("vision_config", {"model_type": "clip_vision_model"}, "model_type is 'clip_vision_model'"),
    ("vision_config", {"vision_use_head": True}, "vision_use_head"),
    ("vision_config", {"num_attention_heads": 5}, "num_attention_heads is 5"),
    ("vision_config", {"image_size": 30}, "mm_tokens_per_image"),
    ("vision_config", {"image_size": 4096}, "image_size is 4096"),
    ("", {"mm_tokens_per_image": 15}, "mm_tokens_per_image is 15"),
    ("text_config", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("text_config", {"final_logit_softcapping": 30.0}, "final_logit_softcapping")])
def test_what_brise_does_not_run_is_refused_by_name(part: str, change: dict[str, Any], message: str) -> None:
    config = read().config
    (config[part] if part else config).update(change)
    with pytest.raises(BriseError, match=message):
        read_config(config)


def write_source(folder: Path) -> Path:
    """A folder with a tokenizer that has the tokens of images."""
    gemma3_vision.write_hf(folder, read())
    names = {90: "<image_soft_token>", 91: "<start_of_image>", 92: "<end_of_image>"}
    write_tokenizer(folder, 97)
    document = json.loads((folder / "tokenizer.json").read_text())
    renamed = {token: next((own for index, own in names.items() if index == number), token)
               for token, number in document["model"]["vocab"].items()}
    document["model"]["vocab"] = {renamed[token]: number for token, number in document["model"]["vocab"].items()}
    document["added_tokens"] += [{"id": index, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                                  "normalized": False, "special": True} for index, name in names.items()]
    document["added_tokens"].sort(key=lambda token: int(token["id"]))
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def features_of(vision: Vision, images: tuple[Array, Array]) -> Array:
    return np.concatenate(open_vision(*vision, ReferenceBackend()).encode(images))


def same_numbers(first: Vision, second: Vision) -> bool:
    found: list[list[Array]] = [[], []]
    for own, vision in zip(found, (first, second), strict=True):
        def note(name: str, weight: Weight, own: list[Array] = own) -> Weight:
            own.append(numbers(weight, np.float32))
            return weight

        place(vision[1], note)
    return all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


# As published: what the file leaves out, transformers' class has.
TEXT_270M: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "_sliding_window_pattern": 6, "head_dim": 256,
    "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None, "hidden_size": 640,
    "hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 2048, "max_position_embeddings": 32768,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "num_attention_heads": 4,
    "num_hidden_layers": 18, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
    "torch_dtype": "bfloat16", "use_bidirectional_attention": False, "use_cache": True, "vocab_size": 262144}
TEXT_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "cache_implementation": "hybrid",
    "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6,
    "max_position_embeddings": 32768, "rope_theta": 1000000, "rope_local_base_freq": 10000, "vocab_size": 262144,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh"}
WHOLE_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": 255999,
    "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256,
    "initializer_range": 0.02,
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024},
    "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "patch_size": 14,
                      "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
                      "vision_use_head": False}}


@pytest.mark.parametrize(("values", "sizes"), [
    (TEXT_270M, (640, 18, 32768, 512, 262144)), (TEXT_1B, (1152, 26, 32768, 512, 262144)),
    (WHOLE_4B, (2560, 34, 131072, 1024, 262208))], ids=["270m", "1b", "4b"])
def test_published_configurations_are_read(values: dict[str, Any], sizes: tuple[int, ...]) -> None:
    description = read_config(values)
    config = description.config
    found = config.width, config.num_layers, config.max_context, config.sliding_window, config.vocab_size
    assert found == sizes and config.head_dim == 256 and config.softmax_scale is None
    assert config.layers_without_window == tuple(range(5, config.num_layers, 6))
    assert config.window_rope is not None and (config.rope.theta, config.window_rope.theta) == (1e6, 1e4)
    assert config.rope.scaling == (Linear(8.0) if config.num_layers == 34 else None)
    if values is WHOLE_4B:
        assert description.vision == SiglipConfig(
            width=1152, num_layers=27, num_heads=16, ffn_width=4304, patch_size=14, image_size=896, pool=4,
            norm_eps=1e-6, text_width=2560, image_token=262144, begin_token=255999, end_token=256000)
