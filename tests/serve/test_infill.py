"""Filling in the middle over HTTP: `suffix` in OpenAI's completions and in Ollama's prompts."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from brise.text.infill import infill_of
from brise.text.load import Tokens
from tests.engine.stub import stub_model
from tests.serve.live import Live, live
from tests.text.test_infill import QWEN
from tests.text.vocabulary import tokenizer

TOKENS = Tokens(tokenizer(control=QWEN, eos_token_id=4), None)
ASK = {"model": "stub", "prompt": "the in", "suffix": "er", "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model("all<|fim_pad|>the", tokens=TOKENS)) as running:
        yield running
        running.wait_idle()


def num_prompt_tokens() -> int:
    infill = infill_of(TOKENS.tokenizer, {})
    assert infill is not None
    return len(infill.encode(TOKENS.tokenizer, "the in", "er"))


def test_a_completion_fills_in_the_middle_and_ends_before_the_next_file(client: openai.OpenAI) -> None:
    answer = client.completions.create(**ASK)  # type: ignore[call-overload]
    assert answer.choices[0].text == "all" and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == num_prompt_tokens()
    streamed = client.completions.create(**ASK, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in streamed) == "all"


@pytest.mark.parametrize(("more", "param"), [({"echo": True}, "echo"), ({"prompt": [1, 2]}, "prompt"),
                                             ({"suffix": 5}, "suffix")])
def test_what_does_not_go_with_a_suffix_is_refused(server: Live, more: dict[str, object], param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={**ASK, **more})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_ollamas_prompt_has_a_suffix_too(server: Live) -> None:
    body = {"model": "stub", "prompt": "the in", "suffix": "er", "stream": False, "options": {"temperature": 0}}
    answer = httpx.post(f"{server.url}/api/generate", json=body).json()
    assert answer["response"] == "all" and answer["prompt_eval_count"] == num_prompt_tokens()
    refused = httpx.post(f"{server.url}/api/generate", json={**body, "system": "S"})
    assert refused.status_code == 400 and "system" in refused.json()["error"]


def test_a_model_without_the_tokens_refuses_it_by_name() -> None:
    with live(stub_model("x")) as plain:
        for path in ("/v1/completions", "/api/generate"):
            answer = httpx.post(f"{plain.url}{path}", json=ASK if path[1] == "v" else {
                "model": "stub", "prompt": "a", "suffix": "b"})
            assert answer.status_code == 400 and "suffix" in answer.text and "no tokens" in answer.text
        assert httpx.post(f"{plain.url}/v1/completions", json={**ASK, "suffix": ""}).status_code == 200
        plain.wait_idle()
