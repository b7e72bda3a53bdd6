"""`brise serve --device` from the command line to HTTP: a tiny model on the software device, beside the reference."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from brise.checkpoint.open import open_checkpoint
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from tests.backends.vulkan.driver import require_driver
from tests.checkpoint.make_adapter import written
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_vision_model import picture, write_seeing
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S, wait_until

HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}
NO_DRIVER = {"VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama",
                      extra_metadata={"llama.context_length": 2048})


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> Path:
    return written(tiny.parent / "adapter", open_checkpoint(tiny).config)


@pytest.fixture(scope="module")
def gpu(tiny: Path, adapter: Path) -> Iterator[httpx.Client]:
    require_driver()
    with serving(tiny, "--device", "vulkan", "--adapter", f"winds={adapter}", "--any-base") as client:
        yield client


@pytest.fixture(scope="module")
def reference(tiny: Path, adapter: Path) -> Iterator[Live]:
    settings = EngineSettings(cache_format="f16", max_adapters=1, max_rank=8)
    with live(load(tiny, backend="reference"), engine_settings=settings) as running:
        running.worker.add_adapter("winds", adapter, any_base=True)
        yield running


@contextmanager
def serving(model: Path, *words: str, context: int = 2048) -> Iterator[httpx.Client]:
    """A client of a server in a process of its own, which serves the model as "stub" and ends well."""
    command = [sys.executable, "-m", "brise", "serve", f"stub={model}", "--port", "0", "--context", str(context),
               *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(found[1] for line in server.stderr if (found := re.search(r"(http://\S+)/v1$", line)))
            with httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as client:
                yield client
            server.terminate()
            assert "Traceback" not in server.stderr.read() and server.wait(LIMIT_S) == 0
        finally:
            server.kill()


def chat(client: httpx.Client, **more: object) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={
        "model": "stub", "messages": HI, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("model", ["stub", "winds"])
def test_a_text_scores_as_by_the_reference(gpu: httpx.Client, reference: Live, model: str) -> None:
    body = {"model": model, "prompt": [*range(60, 110)], "max_tokens": 0, "echo": True, "logprobs": 0}
    on_gpu, expected = (logprobs(post.json()) for post in (
        gpu.post("/v1/completions", json=body), reference.post("/v1/completions", body)))
    # Of 12.7 at most; the adapter moves them by up to 6. Both caches are f16, and round other float32 values (measured:
    # 4e-4).
    assert on_gpu == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("options", [(), ("--experts", "1MB")])
def test_latents_and_experts_are_served(tmp_path: Path, options: tuple[str, ...]) -> None:
    require_driver()
    path = write_tiny(tmp_path / "tiny.gguf", "deepseek2", extra_metadata={"deepseek2.context_length": 2048})
    body = {"model": "stub", "prompt": [*range(60, 110)], "max_tokens": 0, "echo": True, "logprobs": 0}
    with serving(path, "--device", "vulkan", *options) as client, live(
            load(path, backend="reference"), engine_settings=EngineSettings(cache_format="f16")) as reference:
        expected = logprobs(reference.post("/v1/completions", body).json())
        assert logprobs(client.post("/v1/completions", json=body).json()) == pytest.approx(expected, abs=5e-3)
        alone = chat(client, max_tokens=40)
        together = chat(client, n=3, max_tokens=40)
        assert [choice["message"] for choice in together["choices"]] == [alone["choices"][0]["message"]] * 3


def logprobs(answer: Mapping[str, Any]) -> list[float]:
    found: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    return found


def test_a_stream_says_what_the_whole_answer_does(gpu: httpx.Client) -> None:
    whole = chat(gpu, n=2, seed=7, temperature=1)
    texts = ["", ""]
    body = {"model": "stub", "messages": HI, "max_tokens": 12, "ignore_eos": True, "n": 2, "seed": 7, "temperature": 1,
            "stream": True}
    with gpu.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [choice["message"]["content"] for choice in whole["choices"]] and texts[0] != texts[1]


def test_a_call_of_a_tool_is_held_to_its_schema(gpu: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}}
    answer = chat(gpu, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=400)
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_the_next_answer_is_right_when_a_client_went_away(gpu: httpx.Client) -> None:
    before = chat(gpu)["choices"]
    body = {"model": "stub", "messages": HI, "max_tokens": 900, "stream": True, "ignore_eos": True}
    with gpu.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    assert chat(gpu)["choices"] == before
    wait_until(lambda: 'status="499"} 1.0' in gpu.get("/metrics").text)
    assert 'brise_engine_running{model="stub"} 0.0' in gpu.get("/metrics").text


def test_metrics_and_the_page_name_the_device(gpu: httpx.Client) -> None:
    [line] = re.findall(r'brise_engine_info\{.*', gpu.get("/metrics").text)
    assert "(vulkan:0)" in line
    machine = gpu.get("/page/api/machine").json()
    assert "(vulkan:0)" in machine["plans"][0]["headline"]
    [models] = [section["parts"] for section in machine["sections"] if section["title"] == "Models"]
    assert "(vulkan:0)" in json.dumps(models)


def test_an_image_is_seen_as_by_the_reference(tmp_path: Path) -> None:
    require_driver()
    pytest.importorskip("cv2")
    path = write_seeing(tmp_path)
    answers = []
    with serving(path, "--device", "vulkan", context=256) as client, live(load(path, backend="reference")) as expected:
        for seed in (0, 1):
            url = "data:image/png;base64," + base64.b64encode(picture(seed)).decode()
            content = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
            body = {"model": "stub", "messages": [{"role": "user", "content": content}], "temperature": 0,
                    "max_tokens": 12, "ignore_eos": True}
            answers.append([post("/v1/chat/completions", body) for post in (
                lambda path, body: client.post(path, json=body), expected.post)])
    texts = [[answer.json()["choices"][0]["message"]["content"] for answer in both] for both in answers]
    assert texts[0][0] == texts[0][1] and texts[1][0] == texts[1][1] and texts[0] != texts[1]


def test_without_a_driver_the_server_says_so_and_ends(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_driver()
    for name, value in NO_DRIVER.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "brise", "serve", str(tiny), "--port", "0", "--device", "vulkan"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 1 and "has no driver of any device\nhint: " in ended.stderr


def test_auto_serves_on_the_cpu_without_a_driver(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_driver()
    for name, value in NO_DRIVER.items():
        monkeypatch.setenv(name, value)
    with serving(tiny, "--device", "auto") as client:
        assert chat(client)["usage"]["completion_tokens"] == 12
        assert 'brise_engine_info{device="the CPU",model="stub"} 1.0' in client.get("/metrics").text
