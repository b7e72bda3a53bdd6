"""OpenAI's client gets every kind of answer over real HTTP, in its own types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import openai
import pytest
from pydantic import BaseModel

from brise.checkpoint.matryoshka import Matryoshka
from tests.engine.stub import stub_model
from tests.serve.live import Live, live

REPLY = "Hello there!"
HI = [{"role": "user", "content": "hi"}]
GREEDY = {"model": "stub", "messages": HI, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"x": {"type": "integer", "enum": [1, 2]}}, "required": ["x"],
    "additionalProperties": False}}}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


class Animal(BaseModel):
    """A schema that even a model with random weights completes."""

    kind: Literal["cat", "dog"]
    is_tame: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model(REPLY)) as running:
        yield running
        running.wait_idle()


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (REPLY, "assistant", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == len(REPLY) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert (answer.model, answer.object) == ("stub", "chat.completion")


def test_chat_stream_says_the_same_and_ends_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, **WITH_USAGE))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_max_tokens_and_stop(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(**GREEDY, max_completion_tokens=5)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("Hello", "length")
    stopped = client.chat.completions.create(**GREEDY, stop=["the"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("Hello ", "stop")


def test_several_choices_count_the_prompt_once(client: openai.OpenAI) -> None:
    one = client.chat.completions.create(**GREEDY)
    three = client.chat.completions.create(**GREEDY, n=3)
    assert [(c.index, c.message.content) for c in three.choices] == [(0, REPLY), (1, REPLY), (2, REPLY)]
    assert one.usage is not None and three.usage is not None
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_seed_makes_it_repeatable(client: openai.OpenAI) -> None:
    def text(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="stub", messages=HI, temperature=2, seed=seed, max_tokens=12, logit_bias={"72": -100},
            extra_body={"ignore_eos": True})
        return answer.choices[0].message.content

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_vllms_fields_of_the_end(client: openai.OpenAI) -> None:
    def text(**body: object) -> str:
        chat = client.chat.completions.create(**GREEDY, max_tokens=20, extra_body=body)
        raw = client.completions.create(model="stub", prompt="x", temperature=0, max_tokens=20, extra_body=body)
        assert raw.choices[0].text[:len(REPLY)] == (chat.choices[0].message.content or "")[:len(REPLY)]
        return raw.choices[0].text

    assert text(stop_token_ids=[ord("t")]) == "Hello " and text(min_tokens=15)[:len(REPLY)] == REPLY
    assert len(text(min_tokens=15)) > len(REPLY)
    assert text(stop="the", include_stop_str_in_output=True) == "Hello the"
    with pytest.raises(openai.BadRequestError, match="stop_token_ids has 9999"):
        text(stop_token_ids=[9999])


def test_logprobs_belong_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert b"".join(bytes(item.bytes or b"") for item in logprobs.content).decode() == REPLY
    assert logprobs.content[-1].token == "<|im_end|>" and logprobs.content[-1].bytes is None
    assert all(len(item.top_logprobs) == 3 and item.logprob <= 0 for item in logprobs.content)
    assert logprobs.content[0].top_logprobs[0].logprob == logprobs.content[0].logprob


def test_streamed_logprobs_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=1).choices[0].logprobs
    chunks = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=1, stream=True)
    items = [item for chunk in chunks if chunk.choices[0].logprobs is not None
             for item in chunk.choices[0].logprobs.content or []]
    assert whole is not None and items == whole.content


def test_parse_with_a_pydantic_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**GREEDY, response_format=Animal, max_tokens=300)
    assert isinstance(answer.choices[0].message.parsed, Animal)


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, response_format={"type": "json_object"}, max_tokens=1,
                                            logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].message.content == "{"  # the stub would say H
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].logprob == pytest.approx(0, abs=1e-4)  # nothing else is allowed


def test_a_malformed_schema_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**GREEDY, response_format={
            "type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}})
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_tool_calls_are_made_when_required(client: openai.OpenAI, choice: object) -> None:
    answer = client.chat.completions.create(**GREEDY, tools=[TOOL], tool_choice=choice, max_tokens=600,
                                            parallel_tool_calls=False)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    assert message.tool_calls is not None and message.tool_calls[0].function.name == "add"
    assert isinstance(json.loads(message.tool_calls[0].function.arguments)["x"], int)


def test_streamed_tool_calls_accumulate(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**GREEDY, tools=[TOOL], tool_choice="required", max_tokens=600,
                                        parallel_tool_calls=False) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert final.choices[0].finish_reason == "tool_calls"
    assert calls is not None and isinstance(json.loads(calls[0].function.arguments)["x"], int)


def test_a_call_in_free_text_and_the_conversation_after_it() -> None:
    reply = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    with live(stub_model(reply)) as server, server.client() as client:
        answer = client.chat.completions.create(**GREEDY, tools=[TOOL])
        message = answer.choices[0].message
        assert message.content == "Let me see." and message.tool_calls is not None
        assert json.loads(message.tool_calls[0].function.arguments) == {"x": 1}
        assert answer.choices[0].finish_reason == "tool_calls"
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}
        again = client.chat.completions.create(
            **{**GREEDY, "messages": [*HI, message, result]}, tools=[TOOL], tool_choice="none")
        assert again.choices[0].finish_reason == "stop"


def test_legacy_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="stub", prompt=["a", "b"], n=2, temperature=0, max_tokens=50)
    assert [(c.index, c.text) for c in answer.choices] == [(i, REPLY) for i in range(4)]
    assert answer.usage is not None and answer.usage.prompt_tokens == 2
    assert client.completions.create(model="stub", prompt=[104, 105], temperature=0).choices[0].text == REPLY


def test_legacy_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI) -> None:
    scored = client.completions.create(model="stub", prompt="Hé!", echo=True, logprobs=2, max_tokens=0)
    choice = scored.choices[0]
    assert (choice.text, choice.finish_reason) == ("Hé!", "length") and choice.logprobs is not None
    assert choice.logprobs.tokens == ["H", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert choice.logprobs.text_offset == [0, 1, 1, 2]
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])


def test_legacy_stream_says_the_same(client: openai.OpenAI) -> None:
    request = {"model": "stub", "prompt": "a", "temperature": 0, "echo": True, "logprobs": 1}
    whole = client.completions.create(**request).choices[0]
    chunks = list(client.completions.create(**request, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text == "a" + REPLY
    offsets = [offset for chunk in chunks for offset in (chunk.choices[0].logprobs.text_offset or [])]
    assert whole.logprobs is not None and offsets == whole.logprobs.text_offset


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="stub", input="hi", instructions="be short", temperature=0)
    assert (answer.output_text, answer.status) == (REPLY, "completed")
    assert answer.usage is not None and answer.usage.output_tokens == len(REPLY) + 1
    cut = client.responses.create(model="stub", input="hi", temperature=0, max_output_tokens=5)
    assert (cut.output_text, cut.status) == ("Hello", "incomplete")
    assert cut.incomplete_details is not None and cut.incomplete_details.reason == "max_output_tokens"


def test_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="stub", input="hi", temperature=0) as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == REPLY
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == REPLY
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


def test_responses_parse(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="stub", input="hi", text_format=Animal, temperature=0)
    assert isinstance(answer.output_parsed, Animal)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["stub"]
    assert client.models.retrieve("stub").owned_by == "brise"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")


def test_embeddings_are_refused_by_a_model_that_makes_none(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="stub", input="hi")
    assert caught.value.code == "model_not_embedding"


def test_embeddings_of_a_model_that_makes_them() -> None:
    with live(stub_model(pooling="mean")) as server, server.client() as client:
        packed = client.embeddings.create(model="stub", input=["hi", "you"])
        plain = client.embeddings.create(model="stub", input=[[104, 105]], encoding_format="float",
                                         dimensions=8)
        assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding)
        assert (len(packed.data[1].embedding), packed.usage.prompt_tokens) == (8, 5)
        with pytest.raises(openai.BadRequestError, match="'dimensions' is 7, the model has 8"):
            client.embeddings.create(model="stub", input="hi", dimensions=7)


@pytest.mark.parametrize(("shorter", "allowed", "refused"), [
    (Matryoshka((2, 4)), (2, 4, 8), ((3, "allowed are also 2, 4"), (9, "the model has 8"))),
    (Matryoshka(usual=4), (1, 4, 8), ((9, "allowed are 1 to 8"),)), (None, (8,), ((4, "not trained for shorter"),))])
def test_shorter_vectors_of_a_model_that_was_trained_for_them(
        shorter: Matryoshka | None, allowed: tuple[int, ...], refused: tuple[tuple[int, str], ...]) -> None:
    model = replace(stub_model(pooling="mean"), matryoshka=shorter)
    with live(model) as server, server.client() as client:
        whole = np.array(client.embeddings.create(model="stub", input="hi", dimensions=8).data[0].embedding)
        for size in allowed:
            vector = client.embeddings.create(model="stub", input="hi", dimensions=size, user="u").data[0].embedding
            assert vector == pytest.approx(whole[:size] / np.linalg.norm(whole[:size]))
        usual = client.embeddings.create(model="stub", input=["a", "b"], encoding_format="float").data[1].embedding
        assert len(usual) == (shorter.usual if shorter is not None and shorter.usual else 8)
        for size, message in refused:
            with pytest.raises(openai.BadRequestError, match=f"'dimensions' is {size}, .*{message}"):
                client.embeddings.create(model="stub", input="hi", dimensions=size)


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_unknown_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**GREEDY, extra_body={"guided_json": {}})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "guided_json")


def test_async_client_with_many_at_once(server: Live) -> None:
    async def ask() -> list[str | None]:
        async with server.async_client() as client:
            answers = await asyncio.gather(*[client.chat.completions.create(**GREEDY) for _ in range(16)])
            texts = [answer.choices[0].message.content for answer in answers]
            stream = await client.chat.completions.create(**GREEDY, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [*texts, streamed]

    assert asyncio.run(ask()) == [REPLY] * 17
