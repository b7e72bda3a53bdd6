"""Speculation on real kernels changes no bit of an answer: every family of block, cache format, adapters, images, and
the real SmolLM2 with grammars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Delta, Request, Sampling
from brise.models.ops import CacheFormat
from brise.text import images
from brise.text.chat import require
from brise.text.conversation import encoded
from brise.text.inputs import Grammar
from tests.checkpoint.make_adapter import random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_vision_model import picture, write_seeing
from tests.engine.drafted import LinearCost, Oracle, contents
from tests.engine.stub import GREEDY, run_all, tokens_of
from tests.profiles import examples

PLAIN = EngineSettings(max_context=256, num_pages=96)
PROMPTS = [tuple((7 * index + 3 * place) % 250 + 3 for place in range(length))
           for index, length in enumerate((5, 40, 33, 64))]


def played(model: LoadedModel, requests: Sequence[Request], settings_: EngineSettings,
           oracle: Oracle | None = None, adapters: Path | None = None) -> tuple[list[list[Delta]], Engine]:
    """All answers of requests that run at the same time."""
    engine = Engine(model, settings_)
    for path in sorted(adapters.iterdir()) if adapters is not None else ():
        assert engine.adapters is not None
        engine.adapters.add(path.name, path)
    if oracle is not None:
        engine.speculation.cost = LinearCost()
        for name in (None, *(request.adapter for request in requests)):
            engine.drafts.put(name, oracle)
    ids = [engine.submit(request) for request in requests]
    out = run_all(engine)
    return [out[request_id, index] for request_id, request in zip(ids, requests, strict=True)
            for index in range(request.n)], engine


def assert_lossless(model: LoadedModel, requests: Sequence[Request], settings_: EngineSettings = PLAIN, *,
                    wrong: int = 2, most: int = 6, adapters: Path | None = None) -> Engine:
    expected, _ = played(model, requests, settings_, adapters=adapters)
    known: dict[tuple[int, ...], list[list[int]]] = {}
    answers = iter(expected)
    for request in requests:
        known.setdefault(request.prompt, []).extend(tokens_of(next(answers)) for _ in range(request.n))
    deltas, engine = played(model, requests, replace(settings_, max_draft=most), Oracle(known, wrong), adapters)
    assert list(map(contents, deltas)) == list(map(contents, expected))
    return engine


def mixed(seed: int = 0) -> list[Request]:
    """Requests of every kind that a tiny model can be asked."""
    return [
        Request(PROMPTS[0], 24, GREEDY, logprobs=2, ignore_eos=True),
        Request(PROMPTS[1], 24, Sampling(seed=seed, repetition_penalty=1.2, presence_penalty=0.4), n=2, logprobs=0),
        Request(PROMPTS[2], 17, Sampling(seed=seed, top_p=0.8, frequency_penalty=0.3, logit_bias={5: 2.0}),
                ignore_eos=True, prompt_logprobs=1),
        Request(PROMPTS[3], 30, Sampling(seed=seed, top_k=20, min_p=0.01), stop=("e", "xy"), min_tokens=4)]


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "deepseek2", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    pytest.importorskip("brise._native")
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", request.param, format="Q8_0")
    return load(path, backend="native", threads=1)


@pytest.mark.parametrize("cache_format", ["f16", "q8", "q4"])
def test_no_bit_changes_with_any_block_and_cache(model: LoadedModel, cache_format: CacheFormat) -> None:
    engine = assert_lossless(model, mixed(), replace(PLAIN, cache_format=cache_format))
    assert engine.stats().drafts["oracle"].accepted > 20


@settings(max_examples=examples(12))
@given(seed=st.integers(0, 99), wrong=st.integers(0, 8), most=st.integers(1, 12), num_pages=st.integers(16, 40),
       max_step_tokens=st.sampled_from([5, 17, 512]), prefix_cache=st.booleans())
def test_no_bit_changes_with_any_draft_and_schedule(tiny: LoadedModel, seed: int, wrong: int, most: int,
                                                    num_pages: int, max_step_tokens: int, prefix_cache: bool) -> None:
    settings_ = EngineSettings(max_context=256, num_pages=num_pages, max_step_tokens=max_step_tokens,
                               prefix_cache=prefix_cache)
    assert_lossless(tiny, mixed(seed), settings_, wrong=wrong, most=most)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    pytest.importorskip("brise._native")
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"), backend="native", threads=1)


def test_no_bit_changes_with_several_adapters_in_one_batch(tiny: LoadedModel, tmp_path: Path) -> None:
    config = open_checkpoint(tiny.path).config
    for seed, name in enumerate(("one", "two"), 1):
        write_adapter(tmp_path / name, AdapterFile(random_low_ranks(config, seed, rank=2), 2, 2.0), None, config)
    requests = [replace(request, adapter=adapter)
                for request, adapter in zip(mixed(), ("one", None, "two", "one"), strict=True)]
    settings_ = replace(PLAIN, max_adapters=2, max_rank=16)
    engine = assert_lossless(tiny, requests, settings_, adapters=tmp_path)
    assert engine.stats().drafts["oracle"].accepted > 20


def test_no_bit_changes_after_an_image(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    pytest.importorskip("cv2")
    seeing = load(write_seeing(tmp_path), backend="native", threads=1)
    assert seeing.vision is not None
    image = images.prepare(picture(0), seeing.vision.settings, "image")
    prompt = (*seeing.tokenizer.encode("the"), *image.tokens, *seeing.tokenizer.encode("and"))
    request = Request(prompt, 12, GREEDY, ignore_eos=True, images=(image,), logprobs=1)
    engine = assert_lossless(seeing, [request, replace(request, sampling=Sampling(seed=1))],
                             EngineSettings(num_pages=32))
    assert engine.stats().drafts["oracle"].accepted > 0


SCHEMA = json.dumps({
    "type": "object", "additionalProperties": False, "required": ["city", "temperature", "weather"],
    "properties": {"city": {"type": "string", "maxLength": 12}, "temperature": {"type": "number"},
                   "weather": {"enum": ["sunny", "raining", "snowing heavily"]}}})


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> LoadedModel:
    return load(smollm2_path)


def test_no_bit_changes_on_a_real_model(smollm2: LoadedModel) -> None:
    def request(question: str, max_tokens: int, sampling: Sampling, **more: object) -> Request:
        prompt = encoded(require(smollm2.chat), [{"role": "user", "content": question}], ()).tokens
        return Request(tuple(prompt), max_tokens, sampling, **more)  # type: ignore[arg-type]

    text = "Repeat: the wind from the north is cold, the wind from the south is warm, the wind from the west is wet."
    engine = assert_lossless(smollm2, [
        request(text, 40, GREEDY, logprobs=3),
        request(text, 30, Sampling(temperature=0.8, seed=1, repetition_penalty=1.1), n=2),
        request("Describe the weather in Paris as JSON.", 60, Sampling(temperature=0.7, seed=2), logprobs=1,
                grammar=Grammar("json_schema", SCHEMA)),
        request("Describe the weather in Oslo as JSON.", 20, GREEDY, grammar=Grammar("json_schema", SCHEMA))],
        EngineSettings(max_context=512, num_pages=128), most=7)
    drafts = engine.stats().drafts
    assert drafts["oracle"].accepted > 20


def test_what_a_grammar_forces_takes_fewer_steps(smollm2: LoadedModel) -> None:
    prompt = encoded(require(smollm2.chat), [{"role": "user", "content": "The weather in Paris as JSON."}], ()).tokens
    request = Request(tuple(prompt), 60, GREEDY, grammar=Grammar("json_schema", SCHEMA))
    engine = Engine(smollm2, replace(PLAIN, max_draft=7))
    engine.speculation.cost = LinearCost(0.1)
    engine.submit(request)
    ((_, deltas),) = run_all(engine).items()
    (expected,), plain = played(smollm2, [request], PLAIN)
    assert contents(deltas) == contents(expected)
    counts = engine.stats().drafts["grammar"]
    assert counts.accepted >= 0.8 * counts.drafted > 0
    assert engine.stats().steps < 0.85 * plain.stats().steps
