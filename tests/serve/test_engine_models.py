"""EngineModels answers bodies that were written for a large model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from brise.dialects.bodies import Usage
from brise.dialects.table import CHAT, named
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import load
from brise.errors import ContextLengthError, RequestError
from brise.gateway.small_models import Load, SmallModels
from brise.models.batch import Batch
from brise.serve.engine_models import EngineModels
from tests.checkpoint.make_folder import tiny, write_hf
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.engine.stub import stub_model
from tests.serve.test_parse_chat import TOOL, USER

SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@contextmanager
def small(reply: str | None = "Hello there!", on_step: Callable[[Batch], None] | None = None,
          context: int = 1024) -> Iterator[SmallModels]:
    worker = EngineThread(Engine(stub_model(reply, on_step=on_step), EngineSettings(num_pages=64, max_context=context)))
    worker.start()
    try:
        yield EngineModels({"small": worker})
    finally:
        worker.shutdown(drain=False)


def body(**fields: object) -> dict[str, Any]:
    return {"model": "gpt-large", "messages": USER, "temperature": 0, **fields}


def test_a_small_model_answers_under_its_own_name_whatever_model_and_stream_are() -> None:
    with small() as local:
        assert list(local.names()) == ["small"]
        answer = asyncio.run(local.answer("small", CHAT, body(stream=True, stream_options={"include_usage": True})))
    assert answer.body["model"] == "small" and answer.body["choices"][0]["message"]["content"] == "Hello there!"
    assert answer.usage == Usage(answer.body["usage"]["prompt_tokens"], 13, 0) and answer.usage.prompt_tokens > 0
    assert answer.first_token_s is not None and answer.total_s >= answer.first_token_s and not answer.ignored


def test_fields_about_the_large_models_service_are_left_out_and_named() -> None:
    request = body(store=True, service_tier="flex", reasoning_effort="high", user="u", made_up=1,
                 logit_bias={"9999999": 5}, messages=[
                     {"role": "user", "content": [{
                         "type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}])
    with small() as local:
        answer = asyncio.run(local.answer("small", CHAT, request))
    assert answer.ignored.keys() == {"store", "service_tier", "reasoning_effort", "made_up", "logit_bias",
                                  "messages[0].content[0].cache_control"}
    assert answer.ignored["made_up"] == "it is not known here"


@pytest.mark.parametrize("fields, param", [
    ({"modalities": ["text", "audio"]}, "modalities"), ({"web_search_options": {}}, "web_search_options"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"functions": [{"name": "f"}]}, "functions"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
     "messages[0].content[0].input_audio.data"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
     "messages[0].content[0].type")])
def test_fields_that_change_the_answer_are_never_left_out(fields: dict[str, object], param: str) -> None:
    with small() as local, pytest.raises(RequestError) as caught:
        asyncio.run(local.answer("small", CHAT, body(**fields)))
    assert caught.value.param == param


def test_a_limit_over_the_small_context_is_left_out_and_a_prompt_over_it_is_refused() -> None:
    with small(context=64) as local:
        answer = asyncio.run(local.answer("small", CHAT, body(max_tokens=4096)))
        assert answer.ignored.keys() == {"max_tokens"} and "4096" in answer.ignored["max_tokens"]
        with pytest.raises(ContextLengthError):
            asyncio.run(local.answer("small", CHAT, body(messages=[{"role": "user", "content": "x" * 80}])))


def test_tokens_come_with_alternatives_that_the_client_did_not_ask_for() -> None:
    with small() as local:
        plain = asyncio.run(local.answer("small", CHAT, body(), logprobs=3))
        requested = asyncio.run(local.answer("small", CHAT, body(logprobs=True, top_logprobs=1), logprobs=3))
    assert [len(token.top) for token in plain.tokens] == [3] * 13
    assert b"".join(token.text for token in plain.tokens[:-1]) == b"Hello there!"
    assert plain.body["choices"][0]["logprobs"] is None
    assert {len(item["top_logprobs"]) for item in requested.body["choices"][0]["logprobs"]["content"]} == {1}


def test_a_stream_gives_the_objects_of_its_events() -> None:
    async def read() -> list[Any]:
        stream = await local.stream("small", CHAT, body(store=True, stream_options={"include_usage": True}))
        assert stream.ignored.keys() == {"store"}
        return [chunk async for chunk in stream.chunks]

    with small() as local:
        chunks = asyncio.run(read())
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "Hello there!"
    assert chunks[-1]["usage"]["completion_tokens"] == 13 and {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_other_kinds_of_requests() -> None:
    with small() as local:
        completion = asyncio.run(local.answer("small", named("completion"),
                                              {"model": "x", "prompt": "a", "max_tokens": 5}))
        response = asyncio.run(local.answer("small", named("responses"), {"model": "x", "input": "a", "reasoning": {}},
                                            logprobs=0))
        with pytest.raises(RequestError, match="embedding"):
            asyncio.run(local.answer("small", named("embedding"), {"model": "x", "input": "a"}))
    assert completion.body["choices"][0]["text"] == "Hello" and completion.body["object"] == "text_completion"
    assert response.body["output"][0]["content"][0]["text"] == "Hello there!" and len(response.tokens) == 13
    assert response.ignored.keys() == {"reasoning"}


async def rest_of(local: SmallModels, prefix: str, **fields: object) -> list[Any]:
    stream = await local.stream("small", CHAT, body(**fields), prefix=prefix)
    return [chunk async for chunk in stream.chunks]


def content(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_an_answer_continues_a_prefix_and_counts_it() -> None:
    with small() as local:
        rest = asyncio.run(rest_of(local, "Hello th"))
        cut = asyncio.run(rest_of(local, "Hello th", max_tokens=10))
    assert content(rest) == "ere!" and rest[-1]["choices"][0]["finish_reason"] == "stop"
    assert content(cut) == "er" and cut[-1]["choices"][0]["finish_reason"] == "length"


def test_a_json_answer_continues_within_its_schema() -> None:
    with small(reply=None) as local:
        chunks = asyncio.run(rest_of(local, '{"city": "Par', response_format=SCHEMA, max_tokens=200))
        value = '{"city": "Par' + content(chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length" or json.loads(value)["city"].startswith("Par")
        with pytest.raises(RequestError, match="does not fit"):
            asyncio.run(rest_of(local, "Paris is", response_format=SCHEMA))


def test_with_tools_a_json_answer_continues_within_its_schema_too() -> None:
    with small(reply=None) as local:
        chunks = asyncio.run(rest_of(local, '{"city": "Par', response_format=SCHEMA, tools=[TOOL], max_tokens=200))
        value = '{"city": "Par' + content(chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length" or json.loads(value)["city"].startswith("Par")
        with pytest.raises(RequestError, match="does not fit"):
            asyncio.run(rest_of(local, "Paris is", response_format=SCHEMA, tools=[TOOL]))
        for choice in ("auto", "none", "required"):  # text is an answer, or stands before the calls
            assert asyncio.run(rest_of(local, "Paris is", tools=[TOOL], tool_choice=choice, max_tokens=20))


def test_a_completion_continues_a_prefix_unless_the_prompt_is_echoed() -> None:
    async def read(**fields: object) -> str:
        stream = await local.stream("small", named("completion"), {"model": "x", "prompt": "a", **fields}, prefix="Hel")
        return "".join([chunk["choices"][0]["text"] async for chunk in stream.chunks])

    with small() as local:
        assert asyncio.run(read(max_tokens=100)) == "lo there!" and asyncio.run(read(max_tokens=5)) == "lo"
        with pytest.raises(RequestError, match="cannot be continued"):
            asyncio.run(read(echo=True))


def test_tools_reach_the_small_model() -> None:
    with small('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>') as local:
        answer = asyncio.run(local.answer("small", CHAT, body(tools=[TOOL])))
    assert answer.body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "add"


def test_load_leaves_out_background_requests() -> None:
    loads: list[Load] = []
    with small(on_step=lambda _: loads.append(local.load("small"))) as local:
        asyncio.run(local.answer("small", CHAT, body(max_tokens=2), background=True))
        in_background = list(loads)
        asyncio.run(local.answer("small", CHAT, body(max_tokens=2)))
    assert {load.running for load in in_background} == {0} and loads[-1].running == 1


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_models_that_are_sampled_otherwise_have_other_fingerprints(tmp_path: Path, kind: str) -> None:
    def fingerprint(name: str, temperature: float) -> str:
        if kind == "gguf":
            path = write_tiny(tmp_path / f"{name}.gguf", "llama", extra_metadata={"general.sampling.temp": temperature})
        else:
            path = write_tokenizer(write_hf(tmp_path / name, tiny("llama_tied")), 97)
            (path / "generation_config.json").write_text(json.dumps({"temperature": temperature}))
        model = load(path)
        assert model.generation.sampling.temperature == temperature
        return EngineModels({"small": EngineThread(Engine(model))}).fingerprint("small")

    assert fingerprint("one", 0.5) == fingerprint("same", 0.5) != fingerprint("other", 0.25)
