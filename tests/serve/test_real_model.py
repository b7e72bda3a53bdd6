"""The server runs a real forward pass: a tiny random GGUF on the reference backend, from file to HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from brise.engine.engine import EngineSettings
from brise.engine.model import load
from tests import tolerances
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import Live, live
from tests.serve.test_openai_client import Animal

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path: Path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")
    with live(load(path, backend="reference"), engine_settings=EngineSettings(cache_format="f32")) as running:
        yield running
        running.wait_idle()


def test_stream_and_whole_answer_are_the_same(client: openai.OpenAI) -> None:
    request = {"model": "stub", "messages": HI, "max_tokens": 20, "seed": 7}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True))
    text = whole.choices[0].message.content
    assert text and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_decoded_tokens_score_the_same_in_a_prompt(client: openai.OpenAI) -> None:
    prompt = [100, 101, 102]
    # Only byte tokens (ids 3 to 258) are allowed, so that the text can be sent back as the same tokens.
    bias = {str(token): -100 for token in (*range(3), *range(259, 288))}
    decoded = client.completions.create(model="stub", prompt=prompt, max_tokens=8, temperature=0, logprobs=0,
                                        logit_bias=bias).choices[0]
    assert decoded.logprobs is not None and decoded.logprobs.tokens is not None
    tokens = [3 + int(text[8:], 16) if text.startswith("bytes:") else 3 + text.encode()[0]
              for text in decoded.logprobs.tokens]
    scored = client.completions.create(model="stub", prompt=prompt + tokens, max_tokens=0, echo=True,
                                       logprobs=0).choices[0]
    assert scored.logprobs is not None and scored.logprobs.token_logprobs is not None
    assert scored.logprobs.token_logprobs[3:] == pytest.approx(
        decoded.logprobs.token_logprobs, abs=2 * tolerances.GOLDEN_LOGITS)  # a logit, and the norm over all


def test_a_schema_holds_random_weights_to_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="stub", messages=HI, response_format=Animal, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Animal)
