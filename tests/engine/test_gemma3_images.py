"""Images of Gemma 3, whose rows see each other: answers do not depend on how prompts are cut and batched."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from brise.backends import open_planner
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Delta, Request, Sampling
from brise.errors import UnsupportedError
from brise.memory import serving_plan
from brise.memory.model_header import read_header
from brise.memory.serving_plan import MemoryRequest
from brise.models.weights import Weight, place
from brise.text import images
from brise.text.inputs import ImageInput
from tests.checkpoint.test_gemma3_vision import write_source
from tests.engine.stub import answer, run_all, tokens_of

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    pytest.importorskip("brise.backends.native.backend")
    return load(write_source(tmp_path_factory.mktemp("gemma")), backend="native", threads=2)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def seen(model: LoadedModel, seed: int) -> ImageInput:
    assert model.vision is not None
    return images.prepare(picture(seed), model.vision.settings, "image")


def request(model: LoadedModel, *seeds: int, words: int = 5) -> Request:
    """Words, and after each of them an image, as long as there are any."""
    shown = tuple(seen(model, seed) for seed in seeds)
    prompt: tuple[int, ...] = ()
    for number in range(max(words, len(shown))):
        prompt += (30 + number, *(shown[number].tokens if number < len(shown) else ()))
    return Request((2, *prompt), 8, Sampling(temperature=0), ignore_eos=True, images=shown, logprobs=3)


def settings(max_step_tokens: int = 64, *, prefix_cache: bool = True) -> EngineSettings:
    return EngineSettings(num_pages=64, max_step_tokens=max_step_tokens, prefix_cache=prefix_cache)


def logprobs_of(deltas: list[Delta]) -> list[object]:
    return [logprob for delta in deltas for logprob in delta.logprobs]


@pytest.mark.parametrize("max_step_tokens", [19, 20, 33, 512])
def test_the_size_of_steps_changes_nothing(model: LoadedModel, max_step_tokens: int) -> None:
    expected = answer(Engine(model, settings()), request(model, 0, 1))
    found = answer(Engine(model, settings(max_step_tokens=max_step_tokens)), request(model, 0, 1))
    assert tokens_of(found) == tokens_of(expected) and logprobs_of(found) == logprobs_of(expected)


def test_company_and_the_prefix_cache_change_nothing(model: LoadedModel) -> None:
    asked = [request(model, 0, 1), request(model, 1, words=9), request(model, words=20),
             request(model, 0, 1, words=7)]
    alone = [answer(Engine(model, settings(prefix_cache=False)), one) for one in asked]
    engine = Engine(model, settings(max_step_tokens=30))
    for _ in range(2):  # the second time from the prefix cache
        ids = [engine.submit(one) for one in asked]
        found = run_all(engine)
        for request_id, expected in zip(ids, alone, strict=True):
            assert tokens_of(found[request_id, 0]) == tokens_of(expected)
            assert logprobs_of(found[request_id, 0]) == logprobs_of(expected)


def test_an_image_matters(model: LoadedModel) -> None:
    engine = Engine(model, settings())
    assert logprobs_of(answer(engine, request(model, 0))) != logprobs_of(
        answer(engine, request(model, 1)))


def test_steps_that_hold_no_image_are_refused(model: LoadedModel) -> None:
    with pytest.raises(UnsupportedError, match="steps of 18 tokens were requested; an image of .* has 18"):
        Engine(model, settings(max_step_tokens=18))


def test_the_pixels_are_those_of_transformers(model: LoadedModel) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.models.gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil(
        size={"height": 32, "width": 32})
    theirs = processor(Image.open(io.BytesIO(picture(3))), return_tensors="np")["pixel_values"][0]
    assert np.abs(seen(model, 3).pixels() - theirs).max() < 1e-6


def test_the_plan_counts_the_encoder_and_knows_one_size(tmp_path: Path) -> None:
    header = read_header(write_source(tmp_path), "gemma")
    backend = open_planner(1)
    plan = serving_plan.make(header, MemoryRequest(), backend)
    assert {"vision", "projector"} <= {part.name for part in plan.parts} and plan.image_size == 32
    loaded = load(tmp_path, backend="native", threads=1)
    assert loaded.vision is not None
    total = 0

    def add(name: str, weight: Weight) -> Weight:
        nonlocal total
        total += backend.nbytes(weight).host
        return weight

    place(loaded.vision.weights, add)
    assert sum(part.nbytes for part in plan.parts if part.name in ("vision", "projector")) == total
    with pytest.raises(UnsupportedError, match="16 pixels was requested; gemma allows 32 to 32"):
        serving_plan.make(header, MemoryRequest(image_size=16), backend)
