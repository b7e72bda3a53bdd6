"""The engine on real ops with tiny models: decode == prefill, batch == single, preempted == not, rescored == decoded.

The native backend and a GPU guarantee equal bits whatever else is in the batch; the reference leaves its sums to BLAS,
which adds in another order for other shapes, so there numbers are compared within a tolerance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Delta, Request, Sampling
from brise.errors import UnsupportedError
from brise.models.ops import CacheFormat
from tests.backends.under_test import load_on
from tests.checkpoint.make_gguf import write_tiny
from tests.engine.stub import answer, run_all, tokens_of
from tests.tolerances import GOLDEN_LOGITS

PROMPTS = [tuple((7 * index + 3 * place) % 250 + 3 for place in range(length))
           for index, length in enumerate((5, 40, 33, 64))]
# Logits are off by GOLDEN_LOGITS, a log-probability by that of the token and that of the sum.
TOLERANCE = {"native": 0.0, "vulkan": 0.0, "reference": 2 * GOLDEN_LOGITS}


@pytest.fixture(scope="module", params=["reference", "native", "vulkan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "qwen3.gguf", "qwen3", format="Q8_0")
    return load_on(request.param, path)


def engine_on(model: LoadedModel, num_pages: int = 64, *, max_step_tokens: int = 512,
              prefix_cache: bool = True, cache_format: CacheFormat = "f32") -> Engine:
    return Engine(model, EngineSettings(num_pages=num_pages, max_step_tokens=max_step_tokens,
                                        prefix_cache=prefix_cache, cache_format=cache_format))


def request_for(index: int) -> Request:
    return Request(PROMPTS[index], max_tokens=24, logprobs=2, ignore_eos=True, sampling=Sampling(seed=index))


def assert_equal(model: LoadedModel, left: list[Delta], right: list[Delta]) -> None:
    assert tokens_of(left) == tokens_of(right)
    values = [[delta.logprobs[0].logprob for delta in deltas] for deltas in (left, right)]
    assert values[0] == pytest.approx(values[1], rel=0, abs=TOLERANCE[model.backend.name])


@pytest.mark.parametrize("max_step_tokens", [1, 17])
def test_chunks_do_not_change_an_answer(model: LoadedModel, max_step_tokens: int) -> None:
    chunked = answer(engine_on(model, max_step_tokens=max_step_tokens), request_for(1))
    assert_equal(model, chunked, answer(engine_on(model), request_for(1)))


def test_company_does_not_change_an_answer(model: LoadedModel) -> None:
    engine = engine_on(model)
    ids = []
    out: dict[str, list[Delta]] = {}
    for index in range(4):
        ids.append(engine.submit(request_for(index)))
        for delta in engine.step():
            out.setdefault(delta.request_id, []).append(delta)
    for (request_id, _), deltas in run_all(engine).items():
        out.setdefault(request_id, []).extend(deltas)  # a slow step leaves a prompt to the next one
    for index, request_id in enumerate(ids):
        assert_equal(model, out[request_id], answer(engine_on(model), request_for(index)))


def test_preemption_does_not_change_an_answer(model: LoadedModel) -> None:
    engine = engine_on(model, 9, prefix_cache=False)
    ids = [engine.submit(request_for(index)) for index in range(4)]
    out = run_all(engine)
    assert engine.stats().preemptions > 0
    for index, request_id in enumerate(ids):
        assert_equal(model, out[request_id, 0], answer(engine_on(model), request_for(index)))


@pytest.mark.parametrize("cache_format", ["f32", "f16", "q8", "q4"])
def test_what_was_decoded_scores_the_same_as_a_prompt(model: LoadedModel, cache_format: CacheFormat) -> None:
    engine = engine_on(model, cache_format=cache_format)
    decoded = answer(engine, request_for(2))
    whole = (*PROMPTS[2], *tokens_of(decoded))
    (scored,) = answer(engine, Request(whole, max_tokens=0, prompt_logprobs=2))
    assert scored.prompt_logprobs is not None
    rescored = scored.prompt_logprobs[len(PROMPTS[2]):]
    if model.backend.name != "reference":
        assert rescored == tuple(delta.logprobs[0] for delta in decoded)
    for before, after in zip(decoded, rescored, strict=True):
        assert after is not None and before.logprobs[0].logprob == pytest.approx(after.logprob, abs=0.01)


def test_answers_of_one_request_are_those_without_a_prefix_cache(model: LoadedModel) -> None:
    def answers(prefix_cache: bool) -> list[list[Delta]]:
        engine = engine_on(model, prefix_cache=prefix_cache)
        request_id = engine.submit(Request(PROMPTS[3], max_tokens=8, n=3, logprobs=0, sampling=Sampling(seed=1)))
        out = run_all(engine)
        return [out[request_id, index] for index in range(3)]

    for shared, apart in zip(answers(True), answers(False), strict=True):
        assert_equal(model, shared, apart)


def test_an_embedding_model_embeds(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "embed.gguf", "qwen3", extra_metadata={"qwen3.pooling_type": 3})
    model = load(path, backend="reference")
    assert (model.pooling, model.name) == ("last", "Tiny qwen3")
    together = engine_on(model).embed(PROMPTS)
    apart = [engine_on(model, max_step_tokens=16).embed([prompt])[0] for prompt in PROMPTS]
    assert np.concatenate(together) == pytest.approx(np.concatenate(apart), abs=1e-5)


def test_an_unknown_pooling_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "rank.gguf", "qwen3", extra_metadata={"qwen3.pooling_type": 4})
    with pytest.raises(UnsupportedError, match="pooling_type is 4"):
        load(path, backend="reference")


def test_the_real_model_scores_what_it_decoded_the_same(smollm2_path: Path) -> None:
    pytest.importorskip("brise._native")
    model = load(smollm2_path, threads=1)
    engine = engine_on(model, 16, cache_format="f16")
    prompt = tuple(model.tokenizer.encode("The capital of France is"))
    decoded = answer(engine, Request(prompt, max_tokens=12, logprobs=2, sampling=Sampling(temperature=0)))
    (scored,) = answer(engine, Request((*prompt, *tokens_of(decoded)), max_tokens=0, prompt_logprobs=2))
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[len(prompt):] == tuple(delta.logprobs[0] for delta in decoded)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs Linux's list of mapped files")
def test_no_weight_stays_in_memory_twice(tmp_path: Path) -> None:
    """The pages of a file are released once its weights are placed: `--memory` counts them once."""
    path = write_tiny(tmp_path / "wide.gguf", "llama", format="Q8_0", vocab=40000)
    loaded = load(path, threads=1)
    resident, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line[:1].isupper():  # the head of a mapping
            is_file = line.endswith(str(path))
        elif is_file and line.startswith("Rss:"):
            resident += 1024 * int(line.split()[1])
    assert loaded.config.vocab_size == 40000 and resident < path.stat().st_size / 4
