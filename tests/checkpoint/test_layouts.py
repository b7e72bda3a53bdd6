"""The same weights through every file layout give the same logits, bit for bit, and those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import numbers
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.checkpoint.write_hf import write_hf
from brise.errors import CheckpointError, UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.pixtral import VisionWeights
from brise.models.weights import Array, Weight, place
from tests import tolerances
from tests.backends.under_test import UnderTest, open_backend
from tests.checkpoint import make_folder as make
from tests.checkpoint.golden_gguf import write_gguf
from tests.checkpoint.test_write_hf import write_source
from tests.goldens import golden
from tests.goldens.vision import read_vision

LAYOUTS: dict[str, Callable[[Path, make.Tiny], Path]] = {
    "hf-text": lambda folder, model: make.write_hf(folder, model),
    "hf-old": lambda folder, model: make.write_hf(folder, model, "old"),
    "hf-new": lambda folder, model: make.write_hf(folder, model, "new", num_shards=3),
    "native": lambda folder, model: make.write_native(folder, model),
    "native-sharded": lambda folder, model: make.write_native(folder, model, num_shards=4),
    "gguf": lambda folder, model: write_gguf(folder.parent / "model.gguf", model)}
MINISTRAL = ["ministral3_yarn0_tied", "ministral3_yarn0_untied", "ministral3_yarn1_tied"]
OTHERS = ["llama_tied", "llama3_untied", "llama_linear", "mistral", "mistral_window", "qwen2", "qwen3",
          "ministral3_yarn2_untied", "large3", "large3_all_experts", "smollm3", "mixtral", "mixtral_window",
          "granite", "granite4", "phi3", "phi4_long", "gemma3"]
NATIVE = ["mistral", "mistral_window", "large3", "large3_all_experts", "mixtral"]


@pytest.fixture(scope="module", params=["reference", "native"])
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    if request.param == "reference":
        return open_backend("reference")
    native = pytest.importorskip("brise.backends.native.backend")
    return open_backend(f"native-{native.NativeBackend.available_isas()[0]}")


@pytest.mark.parametrize("name", MINISTRAL)
def test_every_layout_gives_the_same_logits(under_test: UnderTest, tmp_path: Path, name: str) -> None:
    model, expected = make.tiny(name), golden.read(name, "interleaved")
    found = {layout: logits_of(under_test, write(tmp_path / layout, model), expected.tokens)
             for layout, write in LAYOUTS.items()}
    assert np.abs(found["native"] - expected.logits).max() < tolerances.GOLDEN_LOGITS
    for layout, logits in found.items():
        assert np.array_equal(logits, found["native"]), layout


@pytest.mark.parametrize("name", OTHERS)
def test_hugging_face_folders_give_the_golden_logits(under_test: UnderTest, tmp_path: Path, name: str) -> None:
    expected = golden.read(name, "interleaved")
    logits = logits_of(under_test, make.write_hf(tmp_path, make.tiny(name)), expected.tokens)
    assert np.abs(logits - expected.logits).max() < tolerances.GOLDEN_LOGITS


@pytest.mark.parametrize("name", ["smollm3", "granite", "granite4", "phi3", "phi4_long", "gemma3"])
def test_files_of_gguf_and_our_own_have_the_same_logits(under_test: UnderTest, tmp_path: Path, name: str) -> None:
    source, tokens = write_source(tmp_path / "hf", name, "F32"), golden.read(name, "half").tokens
    config = open_checkpoint(source).config
    write_mix(open_original(source), tmp_path / "ours.gguf", "F32")
    write_hf(open_original(source), tmp_path / "ours", "F32")
    write_hf(open_original(tmp_path / "ours.gguf"), tmp_path / "again", "F32")
    theirs = write_gguf(tmp_path / "theirs.gguf", make.tiny(name))
    expected = logits_of(under_test, source, tokens)
    for path in (theirs, tmp_path / "ours.gguf", tmp_path / "ours", tmp_path / "again"):
        own = open_checkpoint(path).config
        assert own.layers_without_rope == config.layers_without_rope
        assert (own.layers_without_window, own.window_rope) == (config.layers_without_window, config.window_rope)
        assert np.array_equal(logits_of(under_test, path, tokens), expected), path


@pytest.mark.parametrize("name", ["mixtral", "mixtral_window"])
def test_mixtral_has_the_same_logits_in_every_layout(under_test: UnderTest, tmp_path: Path, name: str) -> None:
    model, expected = make.tiny(name), golden.read(name, "interleaved")
    source = write_source(tmp_path / "hf", name, "F32")
    write_mix(open_original(source), tmp_path / "ours.gguf", "F32")
    write_hf(open_original(tmp_path / "ours.gguf"), tmp_path / "ours", "F32")
    paths = [make.write_hf(tmp_path / "fused", model, "fused"), make.write_native(tmp_path / "native", model),
             write_gguf(tmp_path / "merged.gguf", model), tmp_path / "ours.gguf", tmp_path / "ours",
             write_gguf(tmp_path / "single.gguf", model, are_merged=False)]
    logits = logits_of(under_test, source, expected.tokens)
    assert np.abs(logits - expected.logits).max() < tolerances.GOLDEN_LOGITS
    for path in paths:
        config = open_checkpoint(path).config
        assert (config.family, config.experts, config.sliding_window) == (
            "mixtral", expected.config.experts, expected.config.sliding_window), path
        assert np.array_equal(logits_of(under_test, path, expected.tokens), logits), path


def test_dense_granite_4_is_read_under_its_older_architecture(under_test: UnderTest, tmp_path: Path) -> None:
    model, tokens = make.tiny("granite4"), golden.read("granite4", "half").tokens
    new, old = (write_gguf(tmp_path / f"{name}.gguf", model, granite=name) for name in ("granite", "granitehybrid"))
    assert np.array_equal(logits_of(under_test, old, tokens), logits_of(under_test, new, tokens))


@pytest.mark.parametrize("kinds", [[0, 2], None])
def test_granite_4_with_mamba_layers_is_refused_by_what_it_is(tmp_path: Path, kinds: list[int] | None) -> None:
    path = write_gguf(tmp_path / "a.gguf", make.tiny("granite4"), granite="granitehybrid", kinds=kinds or 2)
    with pytest.raises(UnsupportedError, match="does not run Granite 4 with Mamba layers, it needs a state"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", NATIVE)
def test_native_folders_give_the_golden_logits(under_test: UnderTest, tmp_path: Path, name: str) -> None:
    expected = golden.read(name, "interleaved")
    logits = logits_of(under_test, make.write_native(tmp_path, make.tiny(name)), expected.tokens)
    assert np.abs(logits - expected.logits).max() < tolerances.GOLDEN_LOGITS


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_is_the_same_in_both_layouts(under_test: UnderTest, tmp_path: Path, dtype: str) -> None:
    model, tokens = make.tiny(MINISTRAL[1]), golden.read(MINISTRAL[1], "half").tokens
    hf = logits_of(under_test, make.write_hf(tmp_path / "hf", model, "old", dtype), tokens)
    native = logits_of(under_test, make.write_native(tmp_path / "native", model, dtype), tokens)
    assert np.array_equal(hf, native)


@pytest.mark.parametrize("write", [
    lambda folder, model: make.write_hf(folder, model, "old"),
    lambda folder, model: make.write_hf(folder, model, "new", num_shards=5), make.write_native],
    ids=["hf-old", "hf-new", "native"])
def test_the_vision_encoder_is_the_same_in_every_layout(
        tmp_path: Path, write: Callable[[Path, make.Tiny], Path]) -> None:
    expected = read_vision()
    checkpoint = open_checkpoint(write(tmp_path, make.tiny("vision")))
    assert checkpoint.vision is not None
    config, weights = checkpoint.vision
    assert config == expected.config
    found, wanted = numbers_of(weights), numbers_of(expected.weights)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    checkpoint.weights()  # nothing of the encoder is left over


def test_a_text_only_copy_keeps_its_vision_config(tmp_path: Path) -> None:
    model = make.tiny("vision")
    folder = make.write_hf(tmp_path, make.Tiny(model.config, model.arrays, model.vision), "old")
    assert open_checkpoint(folder).vision is None


def numbers_of(weights: VisionWeights) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def note(name: str, weight: Weight) -> Weight:
        found[name] = numbers(weight, np.float32)
        return weight

    place(weights, note)
    return found


def logits_of(under_test: UnderTest, path: Path, tokens: Array) -> Array:
    checkpoint = open_checkpoint(path)
    weights = place(checkpoint.weights(), under_test.backend.place)
    count = len(tokens)
    batch = Batch(tokens, np.arange(count, dtype=np.int32), np.array([0, count], np.int32),
                  np.arange(count, dtype=np.int32))
    return decoder.forward(under_test.ops, checkpoint.config, weights, batch)


def test_an_image_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = make.write_hf(tmp_path / "hf", make.tiny("vision"), "old", extra={"image_token_index": 97})
    with pytest.raises(CheckpointError, match="the image token of .* is 97, allowed is 0 to 96"):
        open_checkpoint(folder)
