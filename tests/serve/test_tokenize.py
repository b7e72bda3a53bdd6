"""/tokenize and /detokenize speak as vLLM and as llama-server do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.live import Live, live

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as running:
        yield running


def test_text_becomes_tokens_and_text_again(server: Live) -> None:
    answer = server.post("/tokenize", {"model": "stub", "prompt": "hé", "return_token_strs": True}).json()
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == ([104, 195, 169], 3, 4096)
    assert len(answer["token_strs"]) == 3
    assert server.post("/tokenize", {"content": "hé"}).json()["tokens"] == [104, 195, 169]
    assert server.post("/detokenize", {"tokens": [104, 195, 169]}).json() == {"prompt": "hé", "content": "hé"}


def test_a_conversation_has_the_tokens_that_its_answer_counts(server: Live) -> None:
    count = server.post("/tokenize", {"model": "stub", "messages": HI}).json()["count"]
    assert count == server.chat("hi").json()["usage"]["prompt_tokens"]


def test_what_lm_eval_asks_before_it_scores_texts_by_the_server(server: Live) -> None:
    info = server.get("/tokenizer_info").json()
    assert (info["eos_token"], info["model_max_length"]) == ("<|endoftext|>", 4096)
    assert "messages" in info["chat_template"]
    assert server.get("/tokenizer_info?model=x").status_code == 404


@pytest.mark.parametrize(("path", "body", "place"), [
    ("/tokenize", {}, "content"), ("/tokenize", {"prompt": 5}, "prompt"), ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"), ("/detokenize", {"tokens": [10**6]}, "tokens"),
    ("/detokenize", {"tokens": [True]}, "tokens"), ("/tokenize", {"model": "x", "prompt": "a"}, "model")])
def test_errors_name_the_field(server: Live, path: str, body: object, place: str) -> None:
    answer = server.post(path, body)
    assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == place
