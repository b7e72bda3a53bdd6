"""Gemma 3 sees: features and logits are transformers', on every backend, however a prompt is cut into steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.open import open_checkpoint
from brise.engine.vision import LoadedVision, open_vision
from brise.errors import UnsupportedError
from brise.models import decoder, siglip
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.weights import Array, Weights, place
from tests import tolerances
from tests.backends.under_test import UnderTest
from tests.goldens.gemma3_vision import IMAGE, SiglipGolden, read, write_hf

PAGE_SIZE = 16
WHOLE = (0, 57)
AROUND_IMAGES = (0, 3, 4, 20, 25, 41, 44, *range(45, 58))  # the rows of an image are in one step


@pytest.fixture(scope="module")
def golden() -> SiglipGolden:
    return read()


@pytest.fixture
def model(under_test: UnderTest, golden: SiglipGolden, tmp_path: Path) -> tuple[LoadedVision, Config, Weights]:
    checkpoint = open_checkpoint(write_hf(tmp_path, golden))
    assert checkpoint.vision is not None
    weights = place(checkpoint.weights(), under_test.backend.place)
    return open_vision(*checkpoint.vision, under_test.backend), checkpoint.config, weights


def test_features_of_two_images_at_once(model: tuple[LoadedVision, Config, Weights], golden: SiglipGolden) -> None:
    features = np.concatenate(model[0].encode(golden.images))
    assert features.shape == golden.features.shape and features.dtype == np.float32
    assert np.abs(features - golden.features).max() < tolerances.SIGLIP_FEATURES


def test_an_image_alone_gives_what_it_gives_in_company(model: tuple[LoadedVision, Config, Weights],
                                                       golden: SiglipGolden, under_test: UnderTest) -> None:
    for image, features in zip(golden.images, model[0].encode(golden.images), strict=True):
        alone = model[0].encode([image])[0]
        assert np.abs(alone - features).max() <= (0 if under_test.is_native else tolerances.SIGLIP_FEATURES)


def test_row_blocks_change_nothing(model: tuple[LoadedVision, Config, Weights], golden: SiglipGolden,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siglip, "BLOCK_ROWS", 5)
    features = np.concatenate(model[0].encode(golden.images))
    assert np.abs(features - golden.features).max() < tolerances.SIGLIP_FEATURES


def test_logits_of_a_prompt_with_two_images(model: tuple[LoadedVision, Config, Weights], golden: SiglipGolden,
                                            under_test: UnderTest) -> None:
    vision, config, weights = model
    features = np.concatenate(vision.encode(golden.images))
    logits = decoder.forward(under_test.ops, config, weights, step(golden, features, *WHOLE, cached=False))
    assert np.abs(logits - golden.logits).max() < tolerances.SIGLIP_LOGITS


def test_a_prompt_in_steps_has_the_same_logits(model: tuple[LoadedVision, Config, Weights], golden: SiglipGolden,
                                               under_test: UnderTest) -> None:
    vision, config, weights = model
    features = np.concatenate(vision.encode(golden.images))
    found = []
    for ends in (WHOLE, AROUND_IMAGES):
        cache = under_test.backend.new_cache(config, 4, PAGE_SIZE, "f32")
        runner = under_test.backend.runner(config, weights, 64)
        found.append(np.concatenate([runner.logits(step(golden, features, first, end), cache).copy()
                                     for first, end in pairwise(ends)]))
    assert np.abs(found[0] - golden.logits).max() < tolerances.SIGLIP_LOGITS
    if under_test.is_native:
        assert np.array_equal(found[0], found[1])


def test_images_are_seen_as_wholes(model: tuple[LoadedVision, Config, Weights], golden: SiglipGolden,
                                   under_test: UnderTest) -> None:
    vision, config, weights = model
    features = np.concatenate(vision.encode(golden.images))
    causal = replace(step(golden, features, *WHOLE, cached=False), reach=None)
    assert np.abs(decoder.forward(under_test.ops, config, weights, causal) - golden.logits).max() > 0.1


def test_another_size_of_images_is_refused(model: tuple[LoadedVision, Config, Weights]) -> None:
    assert model[0].with_image_size(32) == model[0]
    with pytest.raises(UnsupportedError, match="16 pixels was requested; the model allows 32 to 32"):
        model[0].with_image_size(16)


def step(golden: SiglipGolden, features: Array, first: int, end: int, *, cached: bool = True) -> Batch:
    """Tokens first to end of the prompt, with all logits wanted."""
    is_image = golden.tokens == IMAGE
    rows = np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32)
    positions = np.arange(len(golden.tokens), dtype=np.int32)
    reach = positions.copy()
    for index in range(2):
        own = (rows >= 16 * index) & (rows < 16 * index + 16)
        reach[own] = positions[own].max()
    slots = np.array([2, 0, 3, 1], np.int32)[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    part, count = slice(first, end), end - first
    return Batch(golden.tokens[part], positions[part], np.array([0, count], np.int32), np.arange(count, dtype=np.int32),
                 np.array([[2, 0, 3, 1]], np.int32) if cached else None,
                 slots[part] if cached else None, features, rows[part], reach=reach[part])
