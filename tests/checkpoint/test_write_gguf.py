"""Quantising a file: formats by the recipe, values near, metadata kept, wrong sources refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.imatrix import load_importance, save_importance
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import planned_bytes, write_mix
from brise.errors import CheckpointError, UnsupportedError
from brise.quant.dequantize import dequantize
from brise.quant.importance import Collector, Importance
from brise.quant.rows import float_rows
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.test_write_hf import write_source

MIXES = ["Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "F16",
         "BF16"]
NAME = "blk.1.ffn_up.weight"


@pytest.mark.parametrize("mix", MIXES)
def test_every_mix_is_written_and_near(tmp_path: Path, mix: str) -> None:
    # The widths of the K file are multiples of 256, those of the other are not: both ways of each mix.
    source = write_tiny(tmp_path / "a.gguf", "mistral3")
    original = open_original(source)
    written = write_mix(original, tmp_path / "b.gguf", mix)
    assert written.tensor_bytes == planned_bytes(original, mix)
    with open_gguf(tmp_path / "b.gguf") as result, open_gguf(source) as before:
        assert list(result.tensors) == list(before.tensors)
        tensor, cols = result.tensors[NAME], result.tensors[NAME].shape[1]
        raw = np.ascontiguousarray(result.array(NAME)).view(np.uint8).reshape(tensor.shape[0], -1)
        error = dequantize(tensor.format, raw, cols) - before.array(NAME)
        assert np.sqrt(np.mean(error**2)) < 0.11 * np.std(before.array(NAME))


def test_metadata_is_kept_and_says_what_the_file_is(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "a.gguf", "llama", extra_metadata={"general.license": "apache-2.0"})
    write_mix(open_original(source), tmp_path / "b.gguf", "Q4_0")
    with open_gguf(tmp_path / "b.gguf") as result, open_gguf(source) as before:
        assert result.metadata["general.file_type"] == 2 and result.metadata["general.quantization_version"] == 2
        assert result.metadata["general.license"] == "apache-2.0"
        assert list(result.metadata["tokenizer.ggml.tokens"]) == list(before.metadata["tokenizer.ggml.tokens"])


def test_blocks_are_quantised_again_only_if_asked(tmp_path: Path) -> None:
    source = open_original(write_tiny(tmp_path / "a.gguf", "llama", format="Q8_0"))
    with pytest.raises(UnsupportedError, match="quantised already: blk.0.attn_q.weight has the format Q8_0"):
        write_mix(source, tmp_path / "b.gguf", "Q4_0")
    assert write_mix(source, tmp_path / "b.gguf", "Q4_0", requantize=True).formats["Q4_0"] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    source = write_tiny(tmp_path / "a.gguf", "llama")
    _poke(source, NAME, value)
    with pytest.raises(CheckpointError, match=f"{NAME} has a number that is not finite"):
        write_mix(open_original(source), tmp_path / "b.gguf", "Q4_0")
    assert not (tmp_path / "b.gguf").exists()


def test_numbers_too_large_for_f16_are_refused_by_name(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "a.gguf", "llama")
    _poke(source, NAME, 1e5)
    with pytest.raises(CheckpointError, match="F16 and blocks hold up to 65504"):
        write_mix(open_original(source), tmp_path / "b.gguf", "F16")


def test_experts_are_quantised_and_read_back(tmp_path: Path) -> None:
    source = open_original(write_source(tmp_path / "source", "large3"))
    write_mix(source, tmp_path / "b.gguf", "Q8_0")
    result = open_original(tmp_path / "b.gguf")
    assert result.config.experts == source.config.experts and result.config.latent == source.config.latent
    before = next(t.weight for t in source.tensors if t.name == "blk.1.ffn_up_exps.weight")
    after = next(t.weight for t in result.tensors if t.name == "blk.1.ffn_up_exps.weight")
    rows = before.shape[0] * before.shape[1]
    assert np.abs(float_rows(before, 0, rows) - float_rows(after, 0, rows)).max() < 0.02


def test_importance_lowers_the_error_where_it_counts(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    inputs = np.random.default_rng(0).standard_normal((64, 128)) * np.geomspace(0.01, 10, 128)
    importance = importance_of(NAME, inputs)
    errors = []
    for name, given in (("plain.gguf", None), ("weighted.gguf", importance)):
        write_mix(original, tmp_path / name, "Q4_1", given)
        before = next(t.weight for t in original.tensors if t.name == NAME)
        after = next(t.weight for t in open_original(tmp_path / name).tensors if t.name == NAME)
        difference = float_rows(before, 0, 192) - float_rows(after, 0, 192)
        errors.append(np.mean((inputs @ difference.T)**2))
    assert errors[1] < 0.8 * errors[0]


def test_an_importance_matrix_survives_its_file(tmp_path: Path) -> None:
    importance = importance_of(NAME, np.ones((3, 4)))
    save_importance(tmp_path / "i.gguf", importance, window=512)
    loaded = load_importance(tmp_path / "i.gguf")
    assert loaded.source == "test" and np.array_equal(loaded.sums[NAME].squares, [[3, 3, 3, 3]])
    assert np.array_equal(loaded.sums[NAME].counts, [3])


def test_another_model_s_importance_is_refused(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    with pytest.raises(CheckpointError, match="made for another model"):
        write_mix(original, tmp_path / "b.gguf", "Q4_0", importance_of(NAME, np.ones((3, 4))))


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no importance matrix"):
        load_importance(write_tiny(tmp_path / "a.gguf", "llama"))


def importance_of(name: str, x: np.ndarray) -> Importance:
    collector = Collector()
    collector.add_inputs(name, x)
    return collector.finish(len(x), "test")


def _poke(path: Path, name: str, value: float) -> None:
    """Writes one number over the first of a tensor in F32."""
    with open_gguf(path) as source:
        offset = source.tensors[name].offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(value).tobytes())
