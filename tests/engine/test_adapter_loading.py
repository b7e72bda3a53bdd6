"""Digests of adapters, and gains of adapters with magnitudes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.open import open_checkpoint
from brise.engine.adapter_loading import digest_of, dora_gains
from brise.engine.model import LoadedModel, load
from brise.errors import CheckpointError
from brise.quant.rows import float_rows
from tests.checkpoint.make_adapter import random_low_ranks
from tests.checkpoint.make_gguf import write_tiny


@pytest.fixture(scope="module", params=["reference", "native"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LoadedModel:
    path: Path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")
    return load(path, backend=request.param, threads=2)


def test_digests_are_of_all_that_counts(model: LoadedModel) -> None:
    low_ranks = random_low_ranks(model.config, 1, dora=True)
    path = "layers.0.attention.wq"
    one = low_ranks[path]
    changed = [replace(one, scale=1.0), replace(one, a=one.a + 1), replace(one, b=one.b + 1),
               replace(one, magnitude=one.magnitude + 1), replace(one, magnitude=None)]
    digests = {digest_of(low_ranks), *(digest_of({**low_ranks, path: other}) for other in changed),
               digest_of({name: low for name, low in low_ranks.items() if name != path})}
    assert len(digests) == 7
    assert digest_of(dict(reversed(low_ranks.items()))) == digest_of(low_ranks)


def test_gains_are_magnitudes_over_lengths(model: LoadedModel) -> None:
    low_ranks = random_low_ranks(model.config, 1, dora=True) | random_low_ranks(model.config, 2, modules=("q_proj",))
    gains = dora_gains(model.backend.adapters(model.config, model.weights, 1, 3), low_ranks)
    assert gains.keys() == {path for path in low_ranks if not path.endswith("wq")}
    weight = open_checkpoint(model.path).weights().layers[1].feed_forward.w2
    low_rank = low_ranks["layers.1.feed_forward.w2"]
    whole = float_rows(weight, 0, weight.shape[0]).astype(np.float64) + 2.0 * low_rank.b.astype(float) @ low_rank.a
    expected = low_rank.magnitude / np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(gains["layers.1.feed_forward.w2"], expected, rtol=1e-6)
    assert gains["layers.1.feed_forward.w2"].dtype == np.float32


def test_a_row_of_zeros_has_no_length(model: LoadedModel) -> None:
    path = "layers.0.attention.wq"
    table = model.backend.adapters(model.config, model.weights, 1, 3)
    low_rank = random_low_ranks(model.config, 1, dora=True)[path]
    opposite = replace(low_rank, a=-table.rows(path, 5, 6) / 2, b=np.eye(len(low_rank.b), dtype=np.float32)[:, 5:6])
    with pytest.raises(CheckpointError, match="row of zeros"):
        dora_gains(table, {path: opposite})
