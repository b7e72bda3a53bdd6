"""Mistral Large 3 from a GGUF file of the architecture deepseek2; what DeepSeek does differently is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps, numbers
from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_model import read_config, read_weights
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.checkpoint.gguf.write_keys import hyperparameters
from brise.errors import CheckpointError, UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config, Experts, Latent, QueryTemperature
from brise.models.rope import Rope, Yarn
from brise.models.weights import Array, FeedForward, LatentAttention, Mixture, Stack, Weights
from tests.checkpoint.make_gguf import write_tiny

YARN = Yarn(32.0, 16, attention_factor=1.0)


def write(tmp_path: Path, *, format: str = "F32", tensors: dict[str, Array] | None = None, **extra: object) -> Path:
    """A tiny model with more metadata: keys without the architecture's prefix; None removes one."""
    return write_tiny(tmp_path / "m.gguf", "deepseek2", format=format, tied=False, extra_tensors=tensors,
                      extra_metadata={f"deepseek2.{key}": value for key, value in extra.items()})


def config_of(tmp_path: Path, **extra: object) -> Config:
    with open_gguf(write(tmp_path, **extra)) as file:
        return read_config(file)


def opened(path: Path) -> tuple[Config, Weights]:
    file = open_gguf(path)
    config = read_config(file)
    return config, read_weights(file, config)


def logits(config: Config, weights: Weights) -> Array:
    positions = np.arange(24, dtype=np.int32)
    batch = Batch(positions + 5, positions, np.array([0, 24], np.int32), positions)
    return decoder.forward(ReferenceOps(), config, weights, batch)


def test_config_has_the_sizes_of_the_file(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert (config.family, config.width, config.num_layers, config.num_heads) == ("mistral4", 128, 2, 4)
    assert config.latent == Latent(query_rank=96, rank=64, nope_dim=32, value_dim=64)
    assert config.experts == Experts(6, 2, 64, shared_width=64, num_dense_layers=1)
    assert (config.num_kv_heads, config.head_dim, config.cache_dim) == (1, 48, 80)
    assert config.rope == Rope(10000.0, 16, "interleaved", YARN)
    assert config.query_temperature == QueryTemperature(pytest.approx(0.1), 16)


def test_the_softmax_scale_is_plain_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config.softmax_scale is None and config.attention_scale == pytest.approx(48**-0.5)
    assert config_of(tmp_path, **{"attention.scale": 0.25}).attention_scale == 0.25


def test_older_files_give_the_lengths_of_heads_themselves(tmp_path: Path) -> None:
    older = {"attention.key_length": 48, "attention.value_length": 64, "attention.key_length_mla": None,
             "attention.value_length_mla": None, "attention.head_count_kv": 4}
    assert config_of(tmp_path, **older) == config_of(tmp_path)


@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0", "Q4_K"])
def test_weights_are_the_files_numbers(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format=format)
    _, weights = opened(path)
    file = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in gguf.GGUFReader(path).tensors}
    attention, mixture = weights.layers[1].attention, weights.layers[1].feed_forward
    assert isinstance(weights.layers[0].feed_forward, FeedForward)
    assert isinstance(attention, LatentAttention) and isinstance(mixture, Mixture) and mixture.shared is not None
    named = {"attn_q_a": attention.wq_a, "attn_q_b": attention.wq_b, "attn_kv_a_mqa": attention.wkv_a,
             "attn_k_b": attention.wk_b, "attn_v_b": attention.wv_b, "ffn_gate_inp": mixture.router,
             "ffn_gate_exps": mixture.w1, "ffn_down_exps": mixture.w2, "ffn_up_exps": mixture.w3,
             "ffn_down_shexp": mixture.shared.w2}
    for name, weight in named.items():
        matrices = weight.matrices if isinstance(weight, Stack) else (weight,)
        expected = file[f"blk.1.{name}.weight"].reshape(len(matrices), *matrices[0].shape)
        np.testing.assert_array_equal([numbers(matrix, np.float32) for matrix in matrices], expected, err_msg=name)


def test_experts_are_slices_of_the_file(tmp_path: Path) -> None:
    _, weights = opened(write(tmp_path, format="Q8_0"))
    mixture = weights.layers[1].feed_forward
    assert isinstance(mixture, Mixture) and isinstance(mixture.w1, Stack)
    assert all(matrix.data.base is not None for matrix in mixture.w1.matrices if not callable(matrix))


def test_one_matrix_of_keys_and_values_gives_the_same_logits(tmp_path: Path) -> None:
    split = write_tiny(tmp_path / "split.gguf", "deepseek2", tied=False)
    config, weights = opened(split)
    joined = tmp_path / "joined.gguf"
    rewrite_joined(split, joined)
    np.testing.assert_array_equal(logits(*opened(joined)), logits(config, weights))
    other = replace(config, softmax_scale=config.attention_scale * 1.5)
    assert np.abs(logits(other, weights) - logits(config, weights)).max() > 0.1


def rewrite_joined(source: Path, path: Path) -> None:
    """The same file with attn_kv_b in place of attn_k_b and attn_v_b, as older converters wrote it."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "deepseek2")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture", "tokenizer.")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, data in tensors.items():
        if name.endswith("attn_k_b.weight"):
            values = tensors[name.replace("attn_k_b", "attn_v_b")]
            both = np.concatenate([data.swapaxes(1, 2), values], axis=1)
            writer.add_tensor(name.replace("attn_k_b", "attn_kv_b"), both.reshape(-1, both.shape[-1]).copy())
        elif not name.endswith("attn_v_b.weight"):
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("key", "value"), [
    ("expert_gating_func", 2), ("expert_weights_norm", False), ("expert_weights_norm", None),
    ("expert_group_count", 8), ("expert_group_used_count", 4), ("attention.temperature_scale", None),
    ("rope.scaling.type", "linear"), ("nextn_predict_layers", 1), ("attention.sliding_window", 128)])
def test_what_large_3_has_not_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=key.replace(".", r"\.")):
        config_of(tmp_path, **{key: value})


def test_a_correction_bias_of_the_router_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, tensors={"blk.1.exp_probs_b.bias": np.zeros(6, np.float32)})
    with pytest.raises(UnsupportedError, match=r"blk\.1\.exp_probs_b\.bias"):
        opened(path)


@pytest.mark.parametrize(("key", "value"), [
    ("attention.q_lora_rank", None), ("attention.kv_lora_rank", None), ("attention.key_length", 48),
    ("attention.head_count_kv", 2), ("rope.dimension_count", 15), ("expert_used_count", 7), ("expert_count", None),
    ("leading_dense_block_count", 3), ("expert_weights_norm", 1)])
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        config_of(tmp_path, **{key: value})


def test_a_stack_of_another_number_of_experts_is_refused_with_both_shapes(tmp_path: Path) -> None:
    path = write(tmp_path, expert_count=5)
    with pytest.raises(CheckpointError, match=r"ffn_gate_inp.weight is \(6, 128\), allowed is \(5, 128\)"):
        opened(path)


def as_mistral4(source: Path, path: Path, *, joins_experts: bool) -> Path:
    """The same model as llama.cpp names Mistral Small 4; gates and ups of its experts are one tensor."""
    file = open_gguf(source)
    metadata = {key.replace("deepseek2.", "mistral4."): value for key, value in file.metadata.items()}
    arrays = {name: np.asarray(file.array(name)) for name in file.tensors}
    for name in [name for name in arrays if "ffn_gate_exps" in name and joins_experts]:
        gates, ups = arrays.pop(name), arrays.pop(name.replace("gate", "up"))
        arrays[name.replace("gate", "gate_up")] = np.concatenate([gates, ups], axis=1)
    write_gguf(path, metadata | {"general.architecture": "mistral4"}, [
        Outgoing(name, "F32", array.shape, lambda array=array: iter([array]))  # type: ignore[misc]
        for name, array in arrays.items()])
    return path


@pytest.mark.parametrize("joins_experts", [False, True])
def test_small_4_has_a_name_of_its_own(tmp_path: Path, joins_experts: bool) -> None:
    source = write(tmp_path)
    path = as_mistral4(source, tmp_path / "small4.gguf", joins_experts=joins_experts)
    config, weights = opened(path)
    assert config == opened(source)[0]
    np.testing.assert_array_equal(logits(config, weights), logits(*opened(source)))


def test_small_4_may_lack_a_query_temperature(tmp_path: Path) -> None:
    path = as_mistral4(write(tmp_path, **{"attention.temperature_scale": 0.0}), tmp_path / "small4.gguf",
                       joins_experts=True)
    assert opened(path)[0].query_temperature is None


def test_the_new_name_is_written(tmp_path: Path) -> None:
    keys = hyperparameters(config_of(tmp_path))
    assert keys["general.architecture"] == "mistral4" and "mistral4.attention.kv_lora_rank" in keys
