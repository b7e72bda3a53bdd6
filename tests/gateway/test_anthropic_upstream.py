"""OpenAI's own client before a server of Anthropic's Messages API: asked, answered, failing and replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.retry import Retries, RetrySettings
from tests.engine.stub import stub_model
from tests.gateway.fake_messages import fails, message, message_events, says
from tests.gateway.fake_upstream import Hold, answer, events
from tests.gateway.rig import Rig, rig
from tests.gateway.test_fault_matrix import BODY, read_stream, stand_in

HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "play", "parameters": {"type": "object"}}}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    with rig(is_anthropic=True, breaker=Breaker(BreakerSettings(failures=1000))) as running:
        yield running


@pytest.fixture
def client(made: Rig) -> Iterator[openai.OpenAI]:
    with made.live.client("sk-secret") as opened:
        yield opened


def test_an_answer_and_what_is_written_down_of_it(made: Rig, client: openai.OpenAI) -> None:
    made.fake.then(says("hello"))
    said = client.chat.completions.with_raw_response.create(model="big", messages=HI, max_tokens=9)
    assert said.parse().choices[0].message.content == "hello" and said.headers["x-request-id"] == "req_fake"
    received = made.fake.received[0]
    assert (received.method, received.target) == ("POST", "/v1/messages")
    assert received.json == {"model": "big", "max_tokens": 9, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    assert received.header("x-api-key") == "sk-secret" and received.header("authorization") is None
    assert received.header("anthropic-version") == "2023-06-01"
    exchange = made.captured.wait()[0]
    assert exchange.kind == "chat" and exchange.request == {"model": "big", "messages": HI, "max_tokens": 9}
    assert exchange.response == said.parse().model_dump(exclude_unset=True) and exchange.served_by == "claude-fake-1"
    assert exchange.usage is not None and (exchange.usage.prompt_tokens, exchange.usage.cached_tokens) == (17, 4)


@pytest.mark.parametrize("streams", [False, True])
def test_parallel_calls(made: Rig, client: openai.OpenAI, streams: bool) -> None:
    made.fake.then(says("so", [("play", {"what": "Brel"}), ("play", {})]))
    if streams:
        with client.chat.completions.stream(model="big", messages=HI, tools=TOOLS) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(model="big", messages=HI, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "so"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"what": "Brel"}, {}]


@pytest.mark.parametrize("has_usage", [False, True])
def test_a_stream_leaves_event_by_event(made: Rig, client: openai.OpenAI, has_usage: bool) -> None:
    hold = Hold()
    made.fake.then(says("one two", hold=hold, hold_after=4))
    options: Any = {"stream_options": {"include_usage": True}} if has_usage else {}
    stream = client.chat.completions.create(model="big", messages=HI, stream=True, **options)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "one"]
    hold.release()
    *_, last = stream
    assert (None if last.usage is None else last.usage.completion_tokens) == (5 if has_usage else None)
    response = made.captured.wait()[0].response
    assert response is not None and response["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize("status, kind", [(400, "invalid_request_error"), (401, "authentication_error"),
                                          (429, "rate_limit_error"), (529, "overloaded_error")])
def test_an_error_keeps_its_status_and_its_reason(made: Rig, status: int, kind: str) -> None:
    made.fake.then(fails(status, kind, {"retry-after": "9"}))
    said = made.live.post(CHAT, BODY)
    assert (said.status_code, said.headers["retry-after"]) == (status, "9")
    assert said.json() == {"error": {"message": "no", "type": kind, "param": None, "code": kind}}


def test_a_proxys_error_on_the_way_passes(made: Rig) -> None:
    made.fake.then(answer({"detail": "no way"}, 407))
    said = made.live.post(CHAT, BODY)
    assert (said.status_code, said.json()) == (407, {"detail": "no way"})


@pytest.mark.parametrize("body", [{"object": "chat.completion"}, b"<html>"])
def test_an_answer_of_another_api_is_none(made: Rig, body: object) -> None:
    made.fake.then(answer(body))
    said = made.live.post(CHAT, BODY)
    assert (said.status_code, said.json()["error"]["code"]) == (502, "upstream_malformed")


def test_what_cannot_be_said_does_not_reach_the_upstream(made: Rig, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="seed") as refused:
        client.chat.completions.create(model="big", messages=HI, seed=7)
    assert (refused.value.param, refused.value.code) == ("seed", "unsupported_parameter")
    assert made.live.post(CHAT, content=b"{").json()["error"]["code"] == "invalid_json"
    assert not made.fake.received and [row.status for row in made.captured.wait(2)] == [400, 400]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/files"])
def test_other_paths_name_the_dialect(made: Rig, path: str) -> None:
    said = made.live.post(path, {"model": "big", "input": "hi"})
    assert said.status_code == 404 and said.json()["error"]["code"] == "unsupported_path"
    assert "dialect is anthropic" in said.json()["error"]["message"] and not made.fake.received


def test_messages_pass_as_they_are(made: Rig) -> None:
    made.fake.then(says("hello"), answer({"input_tokens": 3}))
    sent = {"model": "big", "max_tokens": 9, "messages": HI, "top_k": 3}
    keys = {"x-api-key": "sk-ant", "anthropic-version": "2023-06-01"}
    assert made.live.post("/v1/messages", sent, headers=keys).json() == message("hello")
    assert made.live.post("/v1/messages/count_tokens", sent, headers=keys).json() == {"input_tokens": 3}
    assert [each.json for each in made.fake.received] == [sent, sent]
    assert {each.header("x-api-key") for each in made.fake.received} == {"sk-ant"}


def test_the_gateways_own_key_goes_in_place_of_the_clients() -> None:
    with rig(is_anthropic=True, key="sk-own") as made, made.live.client("sk-clients") as client:
        made.fake.then(says("hello"))
        client.chat.completions.create(model="big", messages=HI)
        received = made.fake.received[0]
        assert received.header("x-api-key") == "sk-own" and "sk-clients" not in str(received.headers)


def test_a_refused_attempt_is_sent_again() -> None:
    with rig(is_anthropic=True, retries=Retries(RetrySettings(retries=1))) as made:
        made.fake.then(fails(529, "overloaded_error", {"retry-after": "0"}), says("hello"))
        said = made.live.post(CHAT, BODY)
        assert said.json()["choices"][0]["message"]["content"] == "hello" and len(made.fake.received) == 2


@pytest.mark.parametrize("num_events", [0, 3, 5])
@pytest.mark.parametrize("fault", ["cut", "error", "malformed"])
def test_a_stream_that_breaks_is_gone_on_with(num_events: int, fault: str) -> None:
    text = "one two three four five"
    broken = {"cut": [], "error": [{"type": "error", "error": {"type": "overloaded_error", "message": "oh"}}],
              "malformed": ["{"]}[fault]
    with rig(is_anthropic=True, model=stub_model(text), around=stand_in) as made:
        made.fake.then(events([*message_events(text)[:num_events], *broken], ends=fault != "cut"))
        got = read_stream(made.live.post(CHAT, {**BODY, "stream": True}), "degraded")
    assert got.text == text and got.error is None and got.label["mode"] == "degraded"
