"""Voxtral through every file layout: the same encoder and logits, bit for bit; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import numbers
from brise.checkpoint.gguf.write_mmproj import projector_path, write_projector
from brise.checkpoint.open import num_parameters, open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.checkpoint.write_hf import write_hf
from brise.engine.audio import open_audio
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.models import decoder
from brise.models.weights import Array, Weight, place
from brise.models.whisper import AudioWeights
from tests import tolerances
from tests.backends.under_test import UnderTest, open_backend
from tests.checkpoint import make_audio_model as make
from tests.goldens.audio import read_audio
from tests.models.test_whisper import spliced

LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    "hf-old": make.write_hf, "hf-new": lambda folder: make.write_hf(folder, "new"), "native": make.write_native,
    "gguf": make.write_gguf}


@pytest.fixture(scope="module", params=["reference", "native"])
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    if request.param == "reference":
        return open_backend("reference")
    native = pytest.importorskip("brise.backends.native.backend")
    return open_backend(f"native-{native.NativeBackend.available_isas()[0]}")


def test_every_layout_gives_the_same_features_and_logits(under_test: UnderTest, tmp_path: Path) -> None:
    golden = read_audio()
    found = {name: heard(under_test, write(tmp_path / name)) for name, write in LAYOUTS.items()}
    features, logits = found["hf-old"]
    assert np.abs(features - golden.features).max() < tolerances.AUDIO_FEATURES
    assert np.abs(logits - golden.text.logits).max() < tolerances.AUDIO_LOGITS
    for name, (own_features, own_logits) in found.items():
        assert np.array_equal(own_features, features) and np.array_equal(own_logits, logits), name


def test_our_own_files_give_them_too(under_test: UnderTest, tmp_path: Path) -> None:
    source = make.write_hearing(tmp_path / "source")
    original = open_original(source)
    (tmp_path / "ours").mkdir()
    write_mix(original, tmp_path / "ours" / "ours.gguf", "F32")
    write_projector(original, projector_path(tmp_path / "ours" / "ours.gguf"))
    write_hf(open_original(tmp_path / "ours"), tmp_path / "hf", "F32")
    features, logits = heard(under_test, source)
    for path in (tmp_path / "ours", tmp_path / "hf"):
        own_features, own_logits = heard(under_test, path)
        assert np.array_equal(own_features, features) and np.array_equal(own_logits, logits), path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_encoder_is_the_same_in_every_layout(tmp_path: Path, layout: str) -> None:
    golden = read_audio()
    checkpoint = open_checkpoint(LAYOUTS[layout](tmp_path / "model"))
    assert checkpoint.audio is not None and checkpoint.vision is None
    config, weights = checkpoint.audio
    assert replace(config, norm_eps=golden.config.norm_eps) == golden.config  # GGUF has it as float32
    found, wanted = numbers_of(weights), numbers_of(golden.weights)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    checkpoint.weights()  # nothing of the encoder is left over
    assert num_parameters(checkpoint) > sum(array.size for array in wanted.values())


@pytest.mark.parametrize(("write", "message"), [
    (lambda path: make.write_hf(path, extra={"audio_config": {"activation_function": "relu"}}), "activation_function"),
    (lambda path: make.write_hf(path, extra={"audio_config": {"scale_embedding": True}}), "scale_embedding"),
    (lambda path: make.write_hf(path, extra={"audio_config": {"num_attention_heads": 3}}), "num_key_value_heads is 4"),
    (lambda path: make.write_hf(path, extra={"audio_config": {"intermediate_size": 100}}), "intermediate_size is 100"),
    (lambda path: make.write_hf(path, extra={"audio_config": {"max_source_positions": 18}}), "18 positions"),
    (lambda path: make.write_hf(path, extra={"audio_config": {"num_mel_bins": 300}}), "300 bands"),
    (lambda path: make.write_hf(path, extra={"projector_hidden_act": "relu"}), "projector_hidden_act"),
    (lambda path: make.write_hf(path, extra={"audio_token_id": 97}), "the audio token of .* is 97"),
    (lambda path: make.write_hf(path, extra={"model_type": "voxtral_realtime"}), "Voxtral Realtime"),
    (lambda path: make.write_native(path, {"causal": True}), "causal"),
    (lambda path: make.write_native(path, {"ffn_type": "swiglu"}), "ffn_type"),
    (lambda path: make.write_native(path, {"n_kv_heads": 2}), "n_kv_heads"),
    (lambda path: make.write_gguf(path, {"clip.projector_type": "ultravox"}), "type 'ultravox', allowed is 'voxtral'"),
    (lambda path: make.write_gguf(path, {"clip.audio.projection_dim": 49}), "clip.audio.projection_dim"),
    (lambda path: make.write_gguf(path, {"clip.audio.projector.stack_factor": 3}), "16 positions"),
    (lambda path: make.write_gguf(path, without="layers.1.bq"), "a.blk.1.attn_q.bias is missing"),
    (lambda path: make.write_gguf(path, without="positions"), "a.position_embd.weight is missing")])
def test_what_is_not_implemented_is_named(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        open_checkpoint(write(tmp_path / "model"))


def test_an_mmproj_file_of_another_model_is_ignored_beside_a_file_that_is_named(tmp_path: Path) -> None:
    folder = make.write_gguf(tmp_path / "model", {"clip.audio.projection_dim": 49})
    assert open_checkpoint(folder / "model.gguf").audio is None
    with pytest.raises(BriseError, match="mmproj-model.gguf"):
        open_checkpoint(folder)


def numbers_of(weights: AudioWeights) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def note(name: str, weight: Weight) -> Weight:
        found[name] = numbers(weight, np.float32)
        return weight

    place(weights, note)
    return found


def heard(under_test: UnderTest, path: Path) -> tuple[Array, Array]:
    """Features of the golden's chunks, and the logits of its prompt."""
    golden, checkpoint = read_audio(), open_checkpoint(path)
    assert checkpoint.audio is not None
    encoder = open_audio(*checkpoint.audio, under_test.backend)
    features = np.concatenate([encoder.encode(mels) for mels in golden.mels])
    weights = place(checkpoint.weights(), under_test.backend.place)
    return features, decoder.forward(under_test.ops, checkpoint.config, weights, spliced(golden, features))
