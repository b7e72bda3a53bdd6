"""What a chat completion is in the words of Anthropic's Messages API, and the other way round."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brise.dialects import sse
from brise.dialects.anthropic_from_chat import MAX_TOKENS, messages_request
from brise.dialects.anthropic_to_chat import Chunks, chat_completion, error_of
from brise.dialects.streams import assemble
from brise.dialects.table import CHAT
from brise.errors import RequestError
from tests.gateway.fake_messages import message, message_events, stream_of

HI = {"role": "user", "content": "hi"}
FUNCTION: dict[str, Any] = {"name": "play", "description": "Plays.", "parameters": {"type": "object"}, "strict": True}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "play", "arguments": '{"what": "Brel"}'}}


def sent(*messages: object, **fields: object) -> dict[str, Any]:
    return messages_request({"model": "big", "messages": [*messages] or [HI], **fields})


def text(*words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": word} for word in words]


def test_a_request_in_full() -> None:
    assert sent({"role": "system", "content": "Be brief."}, {"role": "developer", "content": "In French."}, HI,
                max_completion_tokens=9, temperature=1, top_p=0.5, stop="end", stream=True, user="ann", n=1,
                service_tier="default", logprobs=False, seed=None) == {
        "model": "big", "max_tokens": 9, "system": text("Be brief.", "In French."),
        "messages": [{"role": "user", "content": text("hi")}], "temperature": 1, "top_p": 0.5,
        "stop_sequences": ["end"], "stream": True, "metadata": {"user_id": "ann"}, "service_tier": "standard_only"}


def test_a_limit_is_said_where_the_client_has_none() -> None:
    assert sent() == {"model": "big", "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": text("hi")}]}


def test_calls_and_their_results_are_turns_of_the_two_sides() -> None:
    asked = sent(HI, {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}],
                      "refusal": None, "annotations": []},
                 {"role": "tool", "tool_call_id": "call_1", "content": "plays"},
                 {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "too"}]},
                 {"role": "user", "content": "louder"}, tools=TOOLS)
    use = {"type": "tool_use", "id": "call_1", "name": "play", "input": {"what": "Brel"}}
    assert asked["messages"][1:] == [
        {"role": "assistant", "content": [use, {**use, "id": "call_2"}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": text("plays")},
            {"type": "tool_result", "tool_use_id": "call_2", "content": text("too")}, *text("louder")]}]
    assert asked["tools"] == [{"name": "play", "description": "Plays.", "input_schema": {"type": "object"},
                               "strict": True}]


def test_images_are_data_or_an_address() -> None:
    parts = [{"type": "text", "text": "what?"}, *(
        {"type": "image_url", "image_url": {"url": url}} for url in ("data:image/png;base64,iVBO", "https://a/b.jpg"))]
    assert sent({"role": "user", "content": parts})["messages"][0]["content"] == [
        *text("what?"), {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
        {"type": "image", "source": {"type": "url", "url": "https://a/b.jpg"}}]


@pytest.mark.parametrize("choice, parallel, says", [
    (None, None, None), ("auto", True, {"type": "auto"}), ("none", False, {"type": "none"}),
    ("required", None, {"type": "any"}), (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
    ({"type": "function", "function": {"name": "play"}}, False,
     {"type": "tool", "name": "play", "disable_parallel_tool_use": True})])
def test_which_tool_is_called(choice: object, parallel: object, says: object) -> None:
    assert sent(tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel).get("tool_choice") == says


def test_an_answer_within_a_schema() -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}}}
    assert sent(response_format=asked)["output_config"] == {
        "format": {"type": "json_schema", "schema": {"type": "object"}}}


def test_a_later_system_message_keeps_its_place() -> None:
    later = {"role": "system", "content": "Now in French."}
    assert sent(HI, later)["messages"][1] == {"role": "system", "content": text("Now in French.")}


@pytest.mark.parametrize("name, value", [
    ("n", 2), ("logprobs", True), ("top_logprobs", 3), ("seed", 7), ("presence_penalty", 0.5), ("logit_bias", {"1": 2}),
    ("frequency_penalty", -1), ("temperature", 1.5), ("response_format", {"type": "json_object"}), ("tool_choice", 3),
    ("reasoning_effort", "low"), ("functions", [FUNCTION]), ("service_tier", "priority"), ("service_tier", []),
    ("metadata", {"a": "b"}), ("unheard_of", 1), ("tools", 3)])
def test_what_cannot_be_said_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name) as refused:
        sent(**{name: value})
    assert refused.value.param == name


@pytest.mark.parametrize("messages, param", [
    (3, "messages[0]"), ([3], "messages[0]"), ([{"role": "cat"}], "messages[0].role"), ([{"role": []}], "messages[0]"),
    ([{**HI, "name": "ann"}], "messages[0].name"), ([{**HI, "content": 3}], "messages[0].content"),
    ([{**HI, "content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
    ([{**HI, "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}], "messages[0].content[0].image"),
    ([HI, {"role": "assistant", "content": "and"}], "messages"),
    ([{"role": "assistant", "tool_calls": 3}], "messages[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "[]"}}]}],
     "messages[0].tool_calls[0].function.arguments")])
def test_messages_that_cannot_be_said_are_refused_by_their_place(messages: object, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        messages_request({"messages": messages})
    assert (refused.value.param or "").startswith(param)


@pytest.mark.parametrize("reason, finish", [
    ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
    ("refusal", "content_filter"), ("of_tomorrow", "of_tomorrow")])
def test_why_an_answer_ended(reason: str, finish: str) -> None:
    said = chat_completion(message("hi", reason=reason), 7)
    assert said["choices"][0]["finish_reason"] == finish


def test_a_whole_answer() -> None:
    assert chat_completion(message("hi", [("play", {"what": "é"})]), 7) == {
        "id": "msg_fake", "object": "chat.completion", "created": 7, "model": "claude-fake-1",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "hi", "refusal": None, "tool_calls": [
                {"id": "toolu_0", "type": "function", "function": {"name": "play", "arguments": '{"what": "é"}'}}]}}],
        "usage": {"prompt_tokens": 17, "completion_tokens": 5, "total_tokens": 22,
                  "prompt_tokens_details": {"cached_tokens": 4}}}


@pytest.mark.parametrize("words, calls", [
    ("one two three", []), ("", [("play", {"what": "é"})]), ("both", [("play", {"a": 1}), ("stop", {})])])
def test_a_stream_is_put_together_to_the_whole_answer(words: str, calls: list[tuple[str, Any]]) -> None:
    chunks = Chunks(7, with_usage=True)
    stream = b"".join(map(chunks.push, sse.events(stream_of(message_events(words, calls)))))
    assert stream.endswith(b"data: [DONE]\n\n")
    whole = assemble(CHAT, stream)
    assert whole.error is None and whole.body == chat_completion(message(words, calls), 7)


@pytest.mark.parametrize("event", ["{", '{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}',
                                   '{"type": "error"}'])
def test_what_is_no_stream_of_messages_is_an_error(event: str) -> None:
    with pytest.raises(ValueError, match="event|beginning|error"):
        Chunks(7, with_usage=False).push(sse.ServerSentEvent("", event))


def test_an_error() -> None:
    body = {"type": "error", "error": {"type": "not_found_error", "message": "model: big"}, "request_id": "req_1"}
    assert error_of(json.loads(json.dumps(body))) == {"error": {
        "message": "model: big", "type": "not_found_error", "param": None, "code": "not_found_error"}}


def test_blocks_that_a_chat_has_nothing_for_are_passed_over() -> None:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "model": "big", "usage": {}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use", "id": "s"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"q": 1}'}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "web_search_tool_result", "content": []}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "a_new_delta", "text": "of a new kind"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "a_new_event", "index": []},
        {"type": "message_stop"}]
    chunks = Chunks(0, with_usage=False)
    made = assemble(CHAT, b"".join(chunks.push(sse.ServerSentEvent("", json.dumps(event))) for event in events))
    assert made.error is None and made.body is not None
    assert made.body["choices"][0]["message"] == {"role": "assistant", "content": "Hi", "refusal": None}
