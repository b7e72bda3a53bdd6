"""The vision encoder gives transformers' features, and images in a prompt its logits, on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brise.engine.vision import LoadedVision, open_vision
from brise.models import decoder, pixtral
from brise.models.batch import Batch
from brise.models.weights import Array, place
from tests import tolerances
from tests.backends.under_test import UnderTest
from tests.goldens.vision import VisionGolden, read_vision


@pytest.fixture(scope="module")
def golden() -> VisionGolden:
    return read_vision()


def encoder(golden: VisionGolden, under_test: UnderTest) -> LoadedVision:
    return open_vision(golden.config, golden.weights, under_test.backend)


def test_features_of_two_images_at_once(under_test: UnderTest, golden: VisionGolden) -> None:
    features = np.concatenate(encoder(golden, under_test).encode(golden.images))
    assert features.shape == golden.features.shape and features.dtype == np.float32
    assert np.abs(features - golden.features).max() < tolerances.VISION_FEATURES


def test_an_image_alone_gives_what_it_gives_in_company(under_test: UnderTest, golden: VisionGolden) -> None:
    vision = encoder(golden, under_test)
    together = vision.encode(golden.images)
    for image, features in zip(golden.images, together, strict=True):
        alone = vision.encode([image])[0]
        assert np.abs(alone - features).max() < (1e-12 if under_test.is_native else tolerances.VISION_FEATURES)


def test_row_blocks_change_nothing(under_test: UnderTest, golden: VisionGolden,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixtral, "BLOCK_ROWS", 5)
    features = np.concatenate(encoder(golden, under_test).encode(golden.images))
    assert np.abs(features - golden.features).max() < tolerances.VISION_FEATURES


def test_logits_of_a_prompt_with_two_images(under_test: UnderTest, golden: VisionGolden) -> None:
    features = np.concatenate(encoder(golden, under_test).encode(golden.images))
    weights = place(golden.text.weights, under_test.backend.place)
    logits = decoder.forward(under_test.ops, golden.text.config, weights, spliced(golden, features))
    assert np.abs(logits - golden.text.logits).max() < tolerances.VISION_LOGITS


def spliced(golden: VisionGolden, features: Array) -> Batch:
    """The golden's prompt without a cache, the features at its image tokens, all logits wanted."""
    tokens = golden.text.tokens
    is_image = tokens == golden.config.image_token
    feature_rows = np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32)
    places = np.arange(len(tokens), dtype=np.int32)
    plain = Batch(tokens, places, np.array([0, len(tokens)], np.int32), places)
    return replace(plain, features=features, feature_rows=feature_rows)
