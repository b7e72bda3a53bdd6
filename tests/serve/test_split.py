"""Models with their last layers on a GPU and their first on the CPU, by HTTP: streams, adapters, scores, grammars,
preemption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from brise.checkpoint.open import open_checkpoint
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from tests.backends.vulkan.driver import require_driver
from tests.checkpoint.make_adapter import written
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import Live, live

# The CPU's best logit leads by 1.0 at each step of these (tests/backends/vulkan/test_smollm2.py).
DAYS, UNITS = "Day 1\nDay 2\nDay 3\nDay 4\nDay 5\nDay", "Unit 1\nUnit 2\nUnit 3\nUnit 4\nUnit"
LAYERS, PAGES = 4, 5  # of 30 on the GPU; pages of 16 tokens, which do not hold both answers


@pytest.fixture(scope="module")
def split(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    require_driver()
    adapter = written(tmp_path_factory.mktemp("winds") / "adapter", open_checkpoint(smollm2_path).config)
    settings = EngineSettings(cache_format="f16", num_pages=PAGES, page_size=16, max_adapters=1, max_rank=8)
    model = load(smollm2_path, device="vulkan", gpu_layers=LAYERS, threads=1)
    with live(model, engine_settings=settings) as running:
        running.worker.add_adapter("winds", adapter, any_base=True)
        yield running


def completed(running: Live, prompt: str, model: str = "stub", tokens: int = 16) -> str:
    answer = running.post("/v1/completions", body(prompt, model, tokens))
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def body(prompt: str, model: str, tokens: int, **more: object) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


def test_a_stream_says_what_the_cpu_says(split: Live, smollm2_path: Path) -> None:
    with live(load(smollm2_path, threads=1), engine_settings=EngineSettings(num_pages=PAGES, page_size=16)) as cpu:
        expected = completed(cpu, DAYS)
    lines = split.post("/v1/completions", body(DAYS, "stub", 16, stream=True)).text.splitlines()
    parts = [json.loads(line[6:])["choices"] for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for choices in parts for choice in choices) == expected
    assert "layers" in split.worker.model.device


def test_answers_beside_an_adapter_and_after_a_preemption_are_those_alone(split: Live) -> None:
    requests = [(DAYS, "stub", 24), (UNITS, "winds", 24)]
    alone = [completed(split, *request) for request in requests]
    assert completed(split, UNITS, "stub", 24) != alone[1]
    split.wait_idle()
    before = split.worker.stats().preemptions
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda request: completed(split, *request), requests))
    assert together == alone
    assert split.worker.stats().preemptions > before


def test_scores_and_calls_of_a_tiny_model_are_those_of_the_reference(tmp_path: Path) -> None:
    require_driver()
    path = write_tiny(tmp_path / "tiny.gguf", "llama", extra_metadata={"llama.context_length": 2048})
    adapter = written(tmp_path / "adapter", open_checkpoint(path).config)
    # In f16 the CPU's cache and the GPU's are of different formats; in f32 all three are the same.
    settings = EngineSettings(cache_format="f32", max_adapters=1, max_rank=8, num_pages=64)
    with live(load(path, device="vulkan", gpu_layers=1, threads=1), engine_settings=settings) as both, live(
            load(path, backend="reference"), engine_settings=settings) as reference:
        for running in (both, reference):
            running.worker.add_adapter("winds", adapter, any_base=True)
        for model in ("stub", "winds"):
            asked = {"model": model, "prompt": [*range(60, 110)], "max_tokens": 0, "echo": True, "logprobs": 0}
            found, expected = (running.post("/v1/completions", asked).json()["choices"][0]["logprobs"]["token_logprobs"]
                               for running in (both, reference))
            assert found[1:] == pytest.approx(expected[1:], abs=1e-3)
        tool = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": False}}}
        answer = both.chat(tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=400)
        [call] = answer.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
