"""The state behind an answer's last token: whose it is, and that asking for it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from brise.engine import last_hidden
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Delta, Request, Sampling
from brise.models.batch import Batch
from tests.checkpoint.make_gguf import write_tiny
from tests.engine.stub import run_all

PROMPT, SETTINGS = tuple(range(40, 52)), EngineSettings(num_pages=64)
ASKED = Request(PROMPT, max_tokens=6, sampling=Sampling(temperature=0.0), ignore_eos=True, last_hidden=True)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp(request.param) / "tiny.gguf", request.param)


def opened(path: Path, backend: Literal["native", "reference"] = "native") -> LoadedModel:
    return load(path, backend=backend, threads=2)


def answers(model: LoadedModel, *requests: Request) -> list[list[Delta]]:
    """The deltas of each request, all of them asked at once."""
    engine = Engine(model, SETTINGS)
    ids = [engine.submit(request) for request in requests]
    deltas = run_all(engine)
    return [deltas[id, 0] for id in ids]


def test_it_is_the_state_from_which_the_last_token_was_drawn(path: Path) -> None:
    [deltas] = answers(opened(path), ASKED)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert len(tokens) == 6 and not any(delta.last_hidden for delta in deltas[:-1])
    seen = np.array([*PROMPT, *tokens[:-1]], np.int32)  # the last token itself was never put in
    model = opened(path, "reference")
    runner = model.backend.runner(model.config, model.weights, 64)
    cache = model.backend.new_cache(model.config, 2, 16, "f16")
    places = np.arange(len(seen), dtype=np.int32)
    batch = Batch(seen, places, np.array([0, len(seen)], np.int32), places[-1:],
                  np.arange(2, dtype=np.int32)[None, :], places)
    expected = last_hidden.reduced(runner.hidden(batch, cache)[0])
    assert len(expected) == last_hidden.WIDTH
    np.testing.assert_allclose(deltas[-1].last_hidden, expected, atol=2e-3)  # four digits, and a cache in f16


def test_company_and_asking_change_nothing(path: Path) -> None:
    model = opened(path)
    others = [replace(ASKED, prompt=PROMPT[number:], last_hidden=number % 2 == 0) for number in range(1, 5)]
    [alone], [plain] = answers(model, ASKED), answers(model, replace(ASKED, last_hidden=False))
    together = answers(model, ASKED, *others)
    assert together[0][-1].last_hidden == alone[-1].last_hidden and not plain[-1].last_hidden
    assert [delta.tokens for delta in alone] == [delta.tokens for delta in plain]
    assert [bool(deltas[-1].last_hidden) for deltas in together] == [True, False, True, False, True]


def test_distances_stay_about_what_they_were() -> None:
    rng = np.random.default_rng(1)
    states = rng.normal(size=(200, 576))
    small = np.array([last_hidden.reduced(state) for state in states])
    was = np.linalg.norm(states[:100] - states[100:], axis=1) / np.sqrt(576)
    now = np.linalg.norm(small[:100] - small[100:], axis=1) / np.sqrt(last_hidden.WIDTH)
    assert np.abs(now / was - 1).max() < 4 / np.sqrt(2 * last_hidden.WIDTH), "four standard deviations"
    assert last_hidden.reduced(np.ones(4, np.float32))[:6] == last_hidden.reduced(np.ones(4))[:6]
