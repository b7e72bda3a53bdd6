"""No request keeps the event loop from the others for long, however its body is made."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cpu_time import no_collection
from tests.engine.stub import stub_model
from tests.serve.live import Live, live

HI = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "a"}
MOST_S = 0.03  # of CPU time in one callback: 5 ms are wanted, and machines differ


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model("Hello!", pooling="mean", max_context=1 << 16)) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def longest_s(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], float]]:
    """The most CPU time that one callback of an event loop took."""
    times, run = [0.0], asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begin_s = time.thread_time()
        run(handle)
        times.append(time.thread_time() - begin_s)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    with no_collection():
        yield lambda: max(times)


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "empty lists": ("/v1/chat/completions", {"messages": [HI], "metadata": [[]] * 40_000}),
    "messages": ("/v1/chat/completions", {"messages": [HI] * 5_000}),
    "parts": ("/v1/chat/completions", {"messages": [{**HI, "content": [TEXT] * 5_000}]}),
    "tools": ("/v1/chat/completions", {"messages": [HI], "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"type": "object", "properties": {f"p{i}": {} for i in range(5_000)}}}}]}),
    "escapes": ("/v1/chat/completions", {"messages": [{**HI, "content": "\n\t" * 40_000}]}),
    "token ids": ("/v1/completions", {"prompt": [65] * 40_000}),
    "prompts": ("/v1/completions", {"prompt": ["a"] * 20_000}),
    "inputs": ("/v1/embeddings", {"input": [[65]] * 2_000}),
    "items": ("/v1/responses", {"input": [HI] * 5_000}),
    "blocks": ("/v1/messages", {"max_tokens": 1, "messages": [{**HI, "content": [TEXT] * 5000}]}),
    "count": ("/v1/messages/count_tokens", {"messages": [HI] * 5_000}),
    "ollama chat": ("/api/chat", {"messages": [HI] * 5_000, "stream": False}),
    "ollama generate": ("/api/generate", {"prompt": "a", "context": [65] * 40_000, "stream": False}),
    "ollama embed": ("/api/embed", {"input": ["a"] * 2_000}),
    "tokenize": ("/tokenize", {"prompt": "hi " * 40_000}),
    "tokenize a chat": ("/tokenize", {"messages": [HI] * 5_000}),
    "detokenize": ("/detokenize", {"tokens": [65] * 40_000})}


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_is_read_beside_the_loop(server: Live, longest_s: Callable[[], float], name: str) -> None:
    path, body = BODIES[name]
    answer = server.post(path, content=json.dumps({"model": "stub", **body}), headers={
        "content-type": "application/json"})
    assert answer.status_code in (200, 400, 413), answer.text[:200]
    assert longest_s() < MOST_S
