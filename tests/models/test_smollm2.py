"""The real SmolLM2-135M gives the logits of transformers' own GGUF loader, or as near as int8 allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_model import read_config, read_weights
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.weights import Array, Weights, place
from tests import tolerances
from tests.backends.emulate import RoundedActivationOps
from tests.backends.under_test import UnderTest
from tests.goldens.golden import FOLDER


@dataclass(frozen=True)
class Stored:
    """The prompt, and some logits of each of its positions."""

    tokens: Array  # (T,)
    ids: Array  # (T, N)
    logits: Array  # (T, N)


@pytest.fixture(scope="session")
def stored() -> Stored:
    with np.load(FOLDER / "real_smollm2.npz") as file:
        fixed = np.broadcast_to(file["fixed_ids"], file["fixed_logits"].shape)
        return Stored(file["tokens"], np.concatenate([file["top_ids"], fixed], axis=1),
                      np.concatenate([file["top_logits"], file["fixed_logits"]], axis=1))


@pytest.fixture(scope="session")
def emulated(model: tuple[Config, Weights], stored: Stored) -> Array:
    """Logits with activations rounded to int8 as the native backend does, and nothing else changed."""
    config, weights = model
    return decoder.forward(RoundedActivationOps(), config, weights, prompt(stored))


@pytest.fixture(scope="session")
def model(smollm2_path: Path) -> Iterator[tuple[Config, Weights]]:
    gguf = open_gguf(smollm2_path)
    config = read_config(gguf)
    yield config, read_weights(gguf, config)
    gguf.close()


def test_reference_logits(model: tuple[Config, Weights], stored: Stored) -> None:
    config, weights = model
    logits = decoder.forward(ReferenceOps(), config, weights, prompt(stored))
    errors = np.take_along_axis(logits, stored.ids, 1) - stored.logits
    assert np.abs(errors).max() < tolerances.SMOLLM2_LOGITS
    assert (logits.argmax(axis=1) == stored.ids[:, 0]).all()


def test_native_logits_to_the_quantisation_s_own_error(
        under_test: UnderTest, model: tuple[Config, Weights], stored: Stored, emulated: Array) -> None:
    if not under_test.is_quantized:
        pytest.skip("the reference is compared more closely above")
    config, weights = model
    placed = place(weights, under_test.backend.place)
    cache = under_test.backend.new_cache(config, 1, 16, "f16")
    logits = under_test.backend.runner(config, placed, 16).logits(prompt(stored, cached=True), cache)
    limit = tolerances.SMOLLM2_NATIVE_OVER_EMULATED * deviation(emulated, stored)
    assert deviation(logits, stored) < limit
    assert logits[-1].argmax() == stored.ids[-1, 0]


def deviation(logits: Array, stored: Stored) -> float:
    """Root mean square of the difference to the stored logits, apart from a shift of a whole position."""
    errors = np.take_along_axis(logits, stored.ids, 1) - stored.logits
    return float(np.sqrt(np.mean((errors - errors.mean(axis=1, keepdims=True))**2)))


def prompt(stored: Stored, *, cached: bool = False) -> Batch:
    positions = np.arange(len(stored.tokens), dtype=np.int32)
    return Batch(stored.tokens, positions, np.array([0, len(positions)], np.int32), positions,
                 page_table=np.zeros((1, 1), np.int32) if cached else None,
                 slots=positions if cached else None)
