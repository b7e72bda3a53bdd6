"""OpenAI's own client through the gateway: what it asks reaches the large model, and what that says reaches it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.fake_answers import MODEL, chat_body, chat_events
from tests.gateway.fake_upstream import answer, chat, events, refuse
from tests.gateway.rig import Rig

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
PNG = "data:image/png;base64,iVBORw0KGgo="
CALLS = [("set_temperature", '{"celsius": 21}'), ("play", '{"what": "Brel"}')]
TOOLS: list[Any] = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
                    for name, _ in CALLS]


@pytest.fixture
def client(made: Rig) -> Iterator[openai.OpenAI]:
    with made.live.client("sk-secret") as opened:
        yield opened


def test_an_answer_with_logprobs_and_usage(made: Rig, client: openai.OpenAI) -> None:
    body = chat_body("hi")
    body["choices"][0]["logprobs"] = {"content": [{"token": "hi", "logprob": -0.5, "bytes": [104, 105],
                                                   "top_logprobs": []}], "refusal": None}
    made.fake.then(answer(body))
    said = client.chat.completions.create(model="big", messages=HI, logprobs=True, seed=7, user="ann")
    assert said.model_dump(exclude_unset=True) == body
    assert made.fake.received[0].json == {"model": "big", "messages": HI, "logprobs": True, "seed": 7, "user": "ann"}
    assert made.captured.wait()[0].response == body


@pytest.mark.parametrize("streams", [False, True])
def test_parallel_calls(made: Rig, client: openai.OpenAI, streams: bool) -> None:
    made.fake.then(chat(calls=CALLS))
    if streams:
        with client.chat.completions.stream(model="big", messages=HI, tools=TOOLS) as stream:
            said = stream.get_final_completion().choices[0].message
    else:
        said = client.chat.completions.create(model="big", messages=HI, tools=TOOLS).choices[0].message
    assert [(call.function.name, call.function.arguments) for call in said.tool_calls or ()
            if call.type == "function"] == CALLS
    exchange = made.captured.wait()[0]
    assert exchange.response is not None and exchange.context_digest is not None
    kept = exchange.response["choices"][0]["message"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in kept] == CALLS


def test_a_stream_with_usage(made: Rig, client: openai.OpenAI) -> None:
    made.fake.then(chat("one two"))
    stream = client.chat.completions.create(model="big", messages=HI, stream=True,
                                            stream_options={"include_usage": True})
    *_, last = stream
    assert last.usage is not None and last.usage.completion_tokens == 2
    exchange = made.captured.wait()[0]
    assert exchange.usage is not None and (exchange.usage.prompt_tokens, exchange.usage.completion_tokens) == (10, 2)
    assert exchange.response is not None and exchange.response["choices"] == chat_body("one two")["choices"]
    assert (exchange.served_by, exchange.fingerprint) == (MODEL, "fp_fake")


def test_images_and_tool_results_go_on(made: Rig, client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "what?"},
                                     {"type": "image_url", "image_url": {"url": PNG}}]},
        {"role": "assistant", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "21"}]
    client.chat.completions.create(model="big", messages=messages)
    assert made.fake.received[0].json["messages"] == messages
    assert made.captured.wait()[0].request == {"model": "big", "messages": messages}


def test_embeddings(made: Rig, client: openai.OpenAI) -> None:
    made.fake.then(answer({"object": "list", "model": "e", "usage": {"prompt_tokens": 3, "total_tokens": 3}, "data": [
        {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]}))
    assert client.embeddings.create(model="e", input="a", encoding_format="float").data[0].embedding == [0.5, -0.25]
    exchange = made.captured.wait()[0]
    assert exchange.kind == "embedding" and exchange.usage is not None and exchange.usage.prompt_tokens == 3


def test_legacy_completions_as_a_stream(made: Rig, client: openai.OpenAI) -> None:
    chunks = [{"id": "c", "object": "text_completion", "created": 1, "model": "old", "choices": [
        {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}]} for text, finish in
        (("one", None), (" two", "stop"))]
    made.fake.then(events([*chunks, "[DONE]"]))
    stream = client.completions.create(model="old", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "one two"
    exchange = made.captured.wait()[0]
    assert exchange.response is not None and exchange.response["choices"][0]["text"] == "one two"


def test_responses_as_a_stream(made: Rig, client: openai.OpenAI) -> None:
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": MODEL, "status": "completed", "output": [
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "hello", "annotations": []}]}],
        "usage": {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6,
                  "input_tokens_details": {"cached_tokens": 2}}}
    made.fake.then(events([
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in (
            {"type": "response.created", "response": {**whole, "output": [], "status": "in_progress", "usage": None}},
            {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0,
             "delta": "hello"},
            {"type": "response.completed", "response": whole})]))
    *_, last = client.responses.create(model="big", input="hi", stream=True)
    assert last.type == "response.completed" and last.response.output_text == "hello"
    exchange = made.captured.wait()[0]
    assert exchange.kind == "responses" and exchange.error is None and exchange.response == whole
    assert exchange.usage is not None and exchange.usage.cached_tokens == 2


@pytest.mark.parametrize(("status", "raised"), [
    (400, openai.BadRequestError), (401, openai.AuthenticationError), (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError), (422, openai.UnprocessableEntityError), (429, openai.RateLimitError),
    (500, openai.InternalServerError)])
def test_errors(made: Rig, client: openai.OpenAI, status: int, raised: type[openai.APIStatusError]) -> None:
    made.fake.then(refuse(status, "theirs", {"x-request-id": "req_1", "x-ratelimit-reset": "9"}))
    with pytest.raises(raised, match="theirs") as caught:
        client.chat.completions.create(model="big", messages=HI)
    assert caught.value.request_id == "req_1" and caught.value.response.headers["x-ratelimit-reset"] == "9"
    exchange = made.captured.wait()[0]
    assert exchange.status == status and exchange.mode == ("failed" if status in (429, 500) else "hosted")


def test_an_error_in_a_stream_is_passed_on(made: Rig, client: openai.OpenAI) -> None:
    made.fake.then(events([*chat_events("one two")[:2], {"error": {"message": "overloaded", "type": "server_error"}}]))
    with pytest.raises(openai.APIError, match="overloaded"):
        list(client.chat.completions.create(model="big", messages=HI, stream=True))
    assert made.captured.wait()[0].error is not None


def test_any_other_path_method_and_body(made: Rig, client: openai.OpenAI) -> None:
    made.fake.then(answer(b"ID3\x00\xff", headers={"content-type": "audio/mpeg"}))
    assert client.audio.speech.create(model="tts", voice="alloy", input="hi").read() == b"ID3\x00\xff"
    made.fake.then(answer({"id": "f1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a",
                           "purpose": "batch", "status": "processed"}))
    assert client.files.create(file=("a.jsonl", b"\x00\xffx"), purpose="batch").id == "f1"
    assert b"\x00\xffx" in made.fake.received[1].body
    assert (made.fake.received[1].header("content-type") or "").startswith("multipart/form-data; boundary=")
    made.fake.then(answer({"id": "f1", "object": "file", "deleted": True}))
    assert client.files.delete("f1").deleted
    made.fake.then(answer({"object": "list", "data": [], "has_more": False}))
    client.files.list(limit=3, purpose="batch")
    assert [(each.method, each.target) for each in made.fake.received[2:]] == [
        ("DELETE", "/v1/files/f1"), ("GET", "/v1/files?limit=3&purpose=batch")]


def test_models_are_those_of_both(made: Rig, client: openai.OpenAI) -> None:
    theirs = {"id": "big", "object": "model", "created": 1, "owned_by": "them"}
    made.fake.then(answer({"object": "list", "data": [theirs]}))
    assert [model.id for model in client.models.list()] == ["stub", "big"]
    made.fake.then(refuse(500))
    assert [model.id for model in client.models.list()] == ["stub"]
    made.fake.then(answer(theirs))
    assert (client.models.retrieve("big").owned_by, client.models.retrieve("stub").owned_by) == ("them", "brise")
