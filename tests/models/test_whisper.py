"""The audio encoder gives transformers' features, and audio in a prompt its logits, on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brise.engine.audio import open_audio
from brise.models import decoder, pixtral
from brise.models.batch import Batch
from brise.models.weights import Array, place
from tests import tolerances
from tests.backends.under_test import UnderTest
from tests.goldens.audio import AudioGolden, read_audio


@pytest.fixture(scope="module")
def golden() -> AudioGolden:
    return read_audio()


def features_of(golden: AudioGolden, under_test: UnderTest) -> Array:
    encoder = open_audio(golden.config, golden.weights, under_test.backend)
    return np.concatenate([encoder.encode(mels) for mels in golden.mels])


def test_features_of_two_chunks(under_test: UnderTest, golden: AudioGolden) -> None:
    features = features_of(golden, under_test)
    assert features.shape == golden.features.shape and features.dtype == np.float32
    assert np.abs(features - golden.features).max() < tolerances.AUDIO_FEATURES


def test_row_blocks_change_nothing(under_test: UnderTest, golden: AudioGolden, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = features_of(golden, under_test)
    monkeypatch.setattr(pixtral, "BLOCK_ROWS", 5)
    blocks = features_of(golden, under_test)
    assert np.array_equal(blocks, whole) if under_test.is_native else np.allclose(blocks, whole, atol=1e-5)


def test_logits_of_a_prompt_with_two_audios(under_test: UnderTest, golden: AudioGolden) -> None:
    weights = place(golden.text.weights, under_test.backend.place)
    batch = spliced(golden, features_of(golden, under_test))
    logits = decoder.forward(under_test.ops, golden.text.config, weights, batch)
    assert np.abs(logits - golden.text.logits).max() < tolerances.AUDIO_LOGITS


def spliced(golden: AudioGolden, features: Array) -> Batch:
    """The golden's prompt without a cache, the features at its audio tokens, all logits wanted."""
    tokens = golden.text.tokens
    is_audio = tokens == golden.config.audio_token
    feature_rows = np.where(is_audio, np.cumsum(is_audio) - 1, -1).astype(np.int32)
    places = np.arange(len(tokens), dtype=np.int32)
    plain = Batch(tokens, places, np.array([0, len(tokens)], np.int32), places)
    return replace(plain, features=features, feature_rows=feature_rows)
