"""Config and weights of every family from a GGUF file; what we do not run is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_model import describe, read_config, read_weights
from brise.checkpoint.gguf.write_keys import hyperparameters
from brise.errors import CheckpointError, UnsupportedError
from brise.models.config import Config, QueryTemperature
from brise.models.rope import Factors, Linear, Rope, Yarn
from brise.models.weights import Attention, Dense, FeedForward, Layer, Quant, Weights
from brise.quant.dequantize import dequantize
from tests.checkpoint.make_gguf import VOCAB_SIZE, sizes, write_tiny

FAMILIES = {"llama": "llama", "mistral3": "ministral3", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3",
            "gemma3": "gemma3_text"}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}


def config_of(tmp_path: Path, family: str, **extra: object) -> Config:
    """The config of a tiny model with more metadata: keys without the family's prefix; None removes one."""
    metadata = {f"{family}.{key}": value for key, value in extra.items()}
    with open_gguf(write_tiny(tmp_path / "m.gguf", family, extra_metadata=metadata)) as file:
        return read_config(file)


def weights_of(path: Path) -> tuple[Config, Weights]:
    file = open_gguf(path)
    config = read_config(file)
    return config, read_weights(file, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_has_the_sizes_of_the_file(tmp_path: Path, family: str) -> None:
    config, expected = config_of(tmp_path, family), sizes(family)
    assert config.family == FAMILIES[family]
    assert (config.vocab_size, config.width, config.num_layers) == (VOCAB_SIZE, expected.width, expected.num_layers)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 32)
    assert (config.ffn_width, config.max_context) == (expected.ffn_width, 512)
    assert config.norm_eps == pytest.approx(1e-5, rel=1e-7)
    assert config.sliding_window == (24 if family == "gemma3" else None)


@pytest.mark.parametrize(("family", "layout"), [("llama", "interleaved"), ("mistral3", "interleaved"),
                                                ("qwen2", "half"), ("qwen3", "half"), ("smollm3", "interleaved"),
                                                ("gemma3", "half")])
def test_rope_layout_belongs_to_the_family(tmp_path: Path, family: str, layout: str) -> None:
    assert config_of(tmp_path, family).rope.layout == layout


@pytest.mark.parametrize("format", ["F32", "BF16", "Q4_1", "Q5_K"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_files_numbers(tmp_path: Path, family: str, format: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", family, format=format)
    _, weights = weights_of(path)
    expected = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                for tensor in gguf.GGUFReader(path).tensors}
    actual = named(weights)
    assert actual.keys() == expected.keys()
    for name, weight in actual.items():
        np.testing.assert_array_equal(numbers(weight), expected[name].reshape(weight.shape), err_msg=name)


def test_matrices_and_vectors_have_their_kinds(tmp_path: Path) -> None:
    _, weights = weights_of(write_tiny(tmp_path / "m.gguf", "qwen2", format="Q8_0"))
    layer = weights.layers[0]
    assert isinstance(layer.attention.wq, Quant) and layer.attention.wq.data.shape == (128, 4 * 34)
    assert isinstance(layer.attention.bq, Dense) and layer.attention.bq.format == "F32"


def test_a_file_without_output_weight_is_tied(tmp_path: Path) -> None:
    _, tied = weights_of(write_tiny(tmp_path / "tied.gguf", "llama", tied=True))
    _, untied = weights_of(write_tiny(tmp_path / "untied.gguf", "llama", tied=False))
    assert tied.output is tied.tok_embeddings and untied.output is not untied.tok_embeddings


def test_ministral3_has_yarn_and_query_temperature(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mistral3")
    assert config.rope.scaling == Yarn(32.0, 16, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0)
    assert config.query_temperature == QueryTemperature(float(np.float32(0.1)), 16)


def test_temperature_length_overrides_the_original_context(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mistral3", **{"attention.temperature_length": 64})
    assert config.query_temperature is not None and config.query_temperature.period == 64


def test_the_other_spelling_of_mistral3_keys_gives_the_same_config(tmp_path: Path) -> None:
    spelled = {
        "rope.scaling.yarn_beta_fast": None, "rope.scaling.beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": None, "rope.scaling.beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": None, "rope.scaling.mscale_all_dim": 1.0,
        "rope.scaling.mscale": 1.0, "attention.temperature_scale": None, "rope.scaling_beta": 0.1,
        "vision.block_count": 24, "mm.projector_bias": False, "image_token_index": 10,
        "spatial_merge_size": 2}
    assert config_of(tmp_path, "mistral3", **spelled) == config_of(tmp_path, "mistral3")


def test_mistral3_without_scaling_is_plain(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mistral3", **{
        "rope.scaling.type": "", "rope.scaling.factor": 0.0, "rope.scaling.yarn_log_multiplier": None,
        "rope.scaling.original_context_length": None, "attention.temperature_scale": None})
    assert config.rope == Rope(10000.0, 32, "interleaved") and config.query_temperature is None


def test_vision_tensors_in_a_mistral3_file_are_left_alone(tmp_path: Path) -> None:
    extra = {"v.patch_embd.weight": np.zeros((4, 4)), "mm.1.weight": np.zeros((4, 4))}
    config, weights = weights_of(write_tiny(tmp_path / "m.gguf", "mistral3", extra_tensors=extra))
    assert len(weights.layers) == config.num_layers


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_yarn_without_a_log_multiplier_scales_by_the_papers_magnitude(tmp_path: Path, family: str) -> None:
    assert config_of(tmp_path, family, **YARN).rope.scaling == Yarn(4.0, 128)


@pytest.mark.parametrize("keys", [{"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
                                  {"rope.scaling.factor": 2.0}, {"rope.scale_linear": 2.0}])
def test_linear_scaling_is_read_in_each_spelling(tmp_path: Path, keys: dict[str, object]) -> None:
    assert config_of(tmp_path, "llama", **keys).rope.scaling == Linear(2.0)


def test_rope_freqs_tensor_becomes_factors(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 16, dtype=np.float32)
    path = write_tiny(tmp_path / "m.gguf", "llama", extra_tensors={"rope_freqs.weight": factors})
    config, _ = weights_of(path)
    assert config.rope.scaling == Factors(tuple(factors.tolist()))


def test_defaults_where_keys_may_be_missing(tmp_path: Path) -> None:
    missing = dict.fromkeys(["attention.key_length", "attention.value_length", "attention.head_count_kv",
                             "rope.dimension_count", "rope.freq_base", "vocab_size"])
    file = open_gguf(write_tiny(tmp_path / "m.gguf", "llama",
                                extra_metadata={f"llama.{key}": None for key in missing}))
    config = read_config(file)
    assert (config.head_dim, config.num_kv_heads, config.vocab_size) == (32, 4, VOCAB_SIZE)
    assert config.rope == Rope(10000.0, 32, "interleaved")


def test_a_window_smaller_than_the_context_makes_it_a_mistral(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama", **{"attention.sliding_window": 128})
    assert (config.family, config.sliding_window) == ("mistral", 128)
    assert config_of(tmp_path, "llama", **{"attention.sliding_window": 512}).sliding_window is None


NOT_IMPLEMENTED = [
    ("qwen3", "expert_count", 8), ("llama", "logit_scale", 0.5), ("llama", "attention.scale", 0.1),
    ("llama", "attention.causal", False), ("llama", "something.new_scale", 1),
    ("llama", "rope.scaling.attn_factor", 2.0),
    ("llama", "rope.scaling.yarn_log_multiplier", 1.0), ("llama", "attention.temperature_scale", 0.1),
    ("llama", "attention.value_length", 64), ("llama", "feed_forward_length", [192, 96]),
    ("llama", "rope.dimension_sections", [8, 8]), ("llama", "vision.block_count", 24),
    ("qwen2", "attention.sliding_window", 128), ("qwen3", "rope.scaling.type", "dynamic"),
    ("mistral3", "final_logit_softcapping", 30.0)]


@pytest.mark.parametrize(("family", "key", "value"), NOT_IMPLEMENTED)
def test_a_key_that_is_not_implemented_is_refused_by_name(tmp_path: Path, family: str, key: str,
                                                          value: object) -> None:
    with pytest.raises(UnsupportedError, match=key.replace(".", r"\.")):
        config_of(tmp_path, family, **{key: value})


def test_neutral_values_of_such_keys_are_fine(tmp_path: Path) -> None:
    config_of(tmp_path, "llama", **{"expert_count": 0, "logit_scale": 1.0, "attention.causal": True})


@pytest.mark.parametrize(("key", "value"), [
    ("block_count", None), ("block_count", 0), ("block_count", "2"), ("context_length", (1 << 32) - 1),
    ("attention.head_count_kv", 3), ("attention.layer_norm_rms_epsilon", float("nan")),
    ("rope.freq_base", 0.5), ("rope.dimension_count", 33), ("rope.dimension_count", 64), ("vocab_size", 287)])
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        config_of(tmp_path, "llama", **{key: value})


def test_two_spellings_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope.scaling_beta is 0.5"):
        config_of(tmp_path, "mistral3", **{"rope.scaling_beta": 0.5})


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with open_gguf(write_tiny(tmp_path / "m.gguf", "llama", extra_metadata={
            "general.architecture": "gemma2"})) as file, pytest.raises(UnsupportedError, match="gemma2"):
        read_config(file)


def test_a_split_model_is_refused(tmp_path: Path) -> None:
    with open_gguf(write_tiny(tmp_path / "m.gguf", "llama", extra_metadata={"split.count": 3})) as file, \
            pytest.raises(UnsupportedError, match="split over 3 files"):
        read_config(file)


@pytest.mark.parametrize(("family", "as_family", "tensor"), [
    ("qwen2", "llama", "attn_q.bias"), ("qwen3", "llama", "attn_q_norm"), ("llama", "qwen2", "attn_q.bias")])
def test_tensors_that_the_family_lacks_or_needs_are_named(tmp_path: Path, family: str, as_family: str,
                                                          tensor: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", family)
    with open_gguf(write_tiny(tmp_path / "other.gguf", as_family)) as other:
        config = read_config(other)
    config = replace(config, width=sizes(family).width)
    with open_gguf(path) as file, pytest.raises((UnsupportedError, CheckpointError), match=tensor):
        read_weights(file, config)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", extra_metadata={"llama.feed_forward_length": 160})
    with pytest.raises(CheckpointError, match=r"ffn_gate.weight is \(192, 128\), allowed is \(160, 128\)"):
        weights_of(path)


def test_more_layers_than_tensors_is_a_missing_tensor(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", extra_metadata={"llama.block_count": 1 << 30})
    with pytest.raises(CheckpointError, match=r"blk\.2\.attn_norm\.weight is missing"):
        weights_of(path)


def test_smollm2_is_the_model_that_design_says(smollm2_path: Path) -> None:
    config, weights = weights_of(smollm2_path)
    assert (config.family, config.num_layers, config.width, config.ffn_width) == ("llama", 30, 576, 1536)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert weights.output is weights.tok_embeddings and config.rope == Rope(100000.0, 64, "interleaved")


def named(weights: Weights) -> dict[str, Dense | Quant]:
    """The weights under their GGUF names."""
    names = {"attention_norm": "attn_norm.weight", "wq": "attn_q.weight", "wk": "attn_k.weight",
             "wv": "attn_v.weight", "wo": "attn_output.weight", "ffn_norm": "ffn_norm.weight",
             "w1": "ffn_gate.weight", "w2": "ffn_down.weight", "w3": "ffn_up.weight", "bq": "attn_q.bias",
             "bk": "attn_k.bias", "bv": "attn_v.bias", "q_norm": "attn_q_norm.weight",
             "k_norm": "attn_k_norm.weight", "attention_post_norm": "post_attention_norm.weight",
             "ffn_post_norm": "post_ffw_norm.weight"}
    parts = (Layer, Attention, FeedForward)
    fields = {name for part in parts for name in part.__dataclass_fields__} - {"attention", "feed_forward"}
    assert names.keys() == fields
    out = {"token_embd.weight": weights.tok_embeddings, "output_norm.weight": weights.norm}
    for index, layer in enumerate(weights.layers):
        held = vars(layer) | vars(layer.attention) | vars(layer.feed_forward)
        out |= {f"blk.{index}.{name}": held[field] for field, name in names.items() if held[field] is not None}
    return out


def numbers(weight: Dense | Quant) -> np.ndarray:
    rows = np.atleast_2d(weight.data).view(np.uint8)
    return dequantize(weight.format, rows, weight.shape[-1]).reshape(weight.shape)


def test_an_unknown_key_is_accepted_and_reported(tmp_path: Path) -> None:
    extra = {"llama.future_flag": True, "llama.new_attention_scale": 0.0}
    with open_gguf(write_tiny(tmp_path / "m.gguf", "llama", extra_metadata=extra)) as file:
        assert {key.name: key.is_known for key in describe(file).ignored} == {
            "llama.future_flag": False, "llama.new_attention_scale": True}


@pytest.mark.parametrize(("keys", "longest"), [
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 512}, 4096),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 128}, 512),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 2048), ({"rope.scale_linear": 4.0}, 2048), ({}, 512)])
def test_rotary_scaling_extends_the_context(tmp_path: Path, keys: dict[str, object], longest: int) -> None:
    config = config_of(tmp_path, "qwen2", **keys)
    assert config.max_context == longest
    written = {key: value for key, value in hyperparameters(config).items() if key.startswith("qwen2.")}
    assert config_of(tmp_path, "qwen2", **{key.removeprefix("qwen2."): value for key, value in written.items()
                                           if key != "qwen2.vocab_size"}) == config


def test_a_whole_number_may_be_a_float(tmp_path: Path) -> None:
    assert config_of(tmp_path, "llama", context_length=512.0).max_context == 512
    with pytest.raises(CheckpointError, match="context_length is 512.5"):
        config_of(tmp_path, "llama", context_length=512.5)
