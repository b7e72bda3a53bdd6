"""A model that goes through another file format and back is the same, bit for bit."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.gguf.write_mmproj import projector_path, write_projector
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import Original, open_original
from brise.checkpoint.write_gguf import write_mix
from brise.checkpoint.write_hf import plain_format, write_hf
from brise.errors import CheckpointError, OutputError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Array, Weight, place
from brise.quant.rows import float_rows, matrix_shape
from tests.checkpoint import make_folder as make
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.goldens import golden

NAMES = ["llama_tied", "llama_untied", "llama3_untied", "llama_linear", "mistral", "mistral_window", "qwen2", "qwen3",
         "ministral3_yarn0_tied", "ministral3_yarn1_untied", "ministral3_yarn2_untied", "large3", "large3_all_experts",
         "smollm3", "mixtral", "granite", "granite4", "phi3", "phi4_long",
         "gemma3"]


def write_source(folder: Path, name: str, dtype: str = "BF16") -> Path:
    """A Hugging Face folder of a golden, with a tokenizer."""
    model = make.tiny(name)
    make.write_hf(folder, model, "old" if model.vision else "text", dtype)
    return write_tokenizer(folder, model.config["vocab_size"])


@pytest.mark.parametrize("name", NAMES)
def test_weights_through_gguf_and_back_are_the_same(tmp_path: Path, name: str) -> None:
    source = write_source(tmp_path / "source", name)
    write_mix(open_original(source), tmp_path / "middle.gguf", "BF16")
    write_hf(open_original(tmp_path / "middle.gguf"), tmp_path / "back", "BF16")
    before, after = tensors_of(source), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for tensor, numbers in before.items():
        assert np.array_equal(numbers, after[tensor]), tensor


@pytest.mark.parametrize("name", NAMES)
def test_logits_through_gguf_and_back_are_the_same(tmp_path: Path, name: str) -> None:
    source = write_source(tmp_path / "source", name, "F32")
    write_mix(open_original(source), tmp_path / "middle.gguf", "F32")
    write_hf(open_original(tmp_path / "middle.gguf"), tmp_path / "back", "F32")
    tokens = golden.read(name, "interleaved").tokens
    expected = logits_of(source, tokens)
    for path in (tmp_path / "middle.gguf", tmp_path / "back"):
        # A GGUF file has Llama 3's rope as float32 factors, and every other number of the configuration in float32.
        assert np.abs(logits_of(path, tokens) - expected).max() < 1e-4, path


@pytest.mark.parametrize("family", ["llama", "mistral3", "qwen2", "qwen3", "smollm3", "gemma3"])
def test_a_gguf_exported_to_hugging_face_has_identical_logits(tmp_path: Path, family: str) -> None:
    source = write_tiny(tmp_path / "source.gguf", family, tied=False)
    write_hf(open_original(source), tmp_path / "out", "F32")
    tokens = np.arange(3, 40, dtype=np.int32)
    assert np.array_equal(logits_of(tmp_path / "out", tokens), logits_of(source, tokens))


def test_the_vision_encoder_goes_along(tmp_path: Path) -> None:
    source = open_original(write_source(tmp_path / "source", "vision"))
    model = tmp_path / "middle.gguf"
    write_mix(source, model, "BF16")
    write_projector(source, projector_path(model))
    write_hf(open_original(model), tmp_path / "back", "BF16")
    before, after = tensors_of(tmp_path / "source"), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys() and "vision.layers.0.attention.wq" in before
    for tensor, numbers in before.items():
        assert np.array_equal(numbers, after[tensor]), tensor


def test_shards_have_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brise.checkpoint.safetensors.write_file.SHARD_BYTES", 30000)
    source = write_source(tmp_path / "source", "llama_untied")
    write_hf(open_original(source), tmp_path / "out", "BF16")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert tensors_of(tmp_path / "out").keys() == tensors_of(source).keys()


def test_the_source_s_own_tokenizer_files_are_kept(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "llama_tied")
    (source / "SYSTEM_PROMPT.txt").write_text("Be kind.")
    write_hf(open_original(source), tmp_path / "out", "BF16")
    for name in ("tokenizer.json", "tokenizer_config.json", "SYSTEM_PROMPT.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(("format", "expected"), [("F32", "F32"), ("F16", "F16"), ("Q4_0", "F16")])
def test_the_format_is_the_source_s_unless_asked(tmp_path: Path, format: str, expected: str) -> None:
    assert plain_format(open_original(write_tiny(tmp_path / "a.gguf", "llama", format=format))) == expected


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    source = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        write_hf(source, tmp_path / "out", "F32")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    monkeypatch.setattr("brise.checkpoint.write_hf.write_safetensors", full)
    with pytest.raises(OutputError, match="no space left"):
        write_hf(source, tmp_path / "out", "F32")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tekken\.json"):
        open_original(make.write_hf(tmp_path / "source", make.tiny("llama_tied")))


def tensors_of(path: Path) -> dict[str, Array]:
    """Every weight of the model under brise's name, as float32."""
    original: Original = open_original(path)
    found: dict[str, Array] = {}

    def note(name: str, weight: Weight) -> Weight:
        found[name] = float_rows(weight, 0, matrix_shape(weight.shape)[0])
        return weight

    place(original.weights, note)
    if original.vision is not None:
        place(original.vision[1], lambda name, weight: note(f"vision.{name}", weight))
    found.pop("vision.break_row", None)  # a row of the embedding, beside the encoder in an mmproj file
    return found


def logits_of(path: Path, tokens: Array) -> Array:
    checkpoint = open_checkpoint(path)
    positions = np.arange(len(tokens), dtype=np.int32)
    batch = Batch(tokens, positions, np.array([0, len(tokens)], np.int32), positions)
    return decoder.forward(ReferenceOps(), checkpoint.config, checkpoint.weights(), batch)
