"""Anthropic's client runs against a local model: messages, streams, agent loops, counts and errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import pytest

from brise.errors import RequestError
from brise.serve.anthropic_messages import parse_message
from tests.engine.stub import stub_model
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S

CALL = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
TOOL = {"name": "add", "description": "adds", "input_schema": {
    "type": "object", "properties": {"x": {"type": "integer", "enum": [1, 2]}}, "required": ["x"],
    "additionalProperties": False}}
HI: list[Any] = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"model": "stub", "max_tokens": 300, "messages": HI}
GREEDY = {**BODY, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model(CALL)) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def claude(server: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=LIMIT_S) as opened:
        yield opened


def test_a_message(claude: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}]
    answer = claude.messages.create(**GREEDY, system=system)
    assert answer.content[0].text == CALL and (answer.role, answer.stop_reason) == ("assistant", "end_turn")
    assert answer.usage.output_tokens == len(CALL) + 1 and answer.model == "stub"


def test_an_agent_loop_sends_calls_and_results_back(claude: anthropic.Anthropic) -> None:
    first = claude.messages.create(**GREEDY, tools=[TOOL])
    text, call = first.content
    assert (text.text, call.name, call.input, first.stop_reason) == ("Let me see.", "add", {"x": 1}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "2"}]}
    second = claude.messages.create(**{**GREEDY, "messages": [
        *HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]},
        tools=[TOOL], tool_choice={"type": "none"})
    assert [block.type for block in second.content] == ["text"]


def test_a_stream_says_the_same(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**GREEDY, tools=[TOOL])
    with claude.messages.stream(**GREEDY, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.to_dict() | {"id": ""} for block in final.content] == [
        block.to_dict() | {"id": ""} for block in whole.content]
    assert final.stop_reason == "tool_use" and final.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


@pytest.mark.parametrize("choice", [{"type": "any", "disable_parallel_tool_use": True},
                                    {"type": "tool", "name": "add"}])
def test_a_call_is_made_when_required(claude: anthropic.Anthropic, choice: Any) -> None:
    answer = claude.messages.create(**GREEDY, tools=[TOOL], tool_choice=choice)
    call, = answer.content
    assert answer.stop_reason == "tool_use" and call.input["x"] in (1, 2)


def test_stops_limits_and_the_beginning_of_an_answer(claude: anthropic.Anthropic) -> None:
    stopped = claude.messages.create(**GREEDY, stop_sequences=["see"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == ("Let me ", "stop_sequence", "see")
    cut = claude.messages.create(**{**GREEDY, "max_tokens": 3})
    assert (cut.content[0].text, cut.stop_reason) == ("Let", "max_tokens")
    begun = claude.messages.create(**{**GREEDY, "messages": [*HI, {"role": "assistant", "content": "I"}]})
    assert begun.usage.input_tokens + (begun.usage.cache_read_input_tokens or 0) > 0
    large = claude.messages.with_raw_response.create(**{**GREEDY, "max_tokens": 32000})
    assert large.parse().stop_reason == "end_turn" and "max_tokens" in large.headers["x-brise-ignored"]


def test_a_schema_is_followed(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(**GREEDY, output_config={"format": {"type": "json_schema", "schema": {
        "type": "object", "properties": {"x": {"enum": [7]}}, "required": ["x"], "additionalProperties": False}}})
    assert "7" in answer.content[0].text


def test_tokens_are_counted_as_an_answer_counts_them(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model="stub", messages=HI, system="be", tools=[TOOL])
    usage = claude.messages.create(**GREEDY, system="be", tools=[TOOL]).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors_are_anthropics(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**{**GREEDY, "model": "gpt-9"})
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**GREEDY, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert caught.value.body["error"]["type"] == "invalid_request_error" and "tools[0].type" in str(caught.value)


def test_a_prompt_that_is_too_long_is_an_error_that_claude_code_reads(claude: anthropic.Anthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "wind " * 2000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 10\d{3} tokens > \d+ maximum"):
        claude.messages.create(**{**GREEDY, "messages": long})


def test_sixteen_at_once_get_the_answer_of_one(claude: anthropic.Anthropic) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: claude.messages.create(**GREEDY).content[0].text, range(16)))
    assert answers == [CALL] * 16


def test_a_stream_that_is_left_frees_the_engine() -> None:
    with (live(stub_model("x" * 3000, on_step=lambda _: time.sleep(0.01))) as server,
          anthropic.Anthropic(base_url=server.url, api_key="none") as client):
        with client.messages.create(**{**GREEDY, "max_tokens": 3000}, stream=True) as events:
            assert next(iter(events)).type == "message_start"
        assert "POST /v1/messages 499" in server.log()


def test_thinking_may_be_on_for_a_model_that_cannot_think(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(**GREEDY, thinking={"type": "enabled", "budget_tokens": 1024},
                                    output_config={"effort": "low"})
    assert answer.content[0].type == "text"


def test_images_and_results_become_messages_of_a_chat() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    chat = parse_message({**BODY, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, image]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "t1", "name": "add", "input": {"x": 1}},
            {"type": "tool_use", "id": "t2", "name": "add", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t2", "content": "bad", "is_error": True},
            {"type": "tool_result", "tool_use_id": "t1", "content": [image]}, {"type": "text", "text": "go"}]}]})
    user, answer, second, first, shown, last = chat.messages
    assert len(user.content or ()) == 2 and (answer.reasoning, answer.content, len(answer.calls)) == ("hm", "b", 2)
    assert (second.call_id, second.content, first.call_id) == ("t2", "Error:\nbad", "t1")
    assert (shown.role, last.role, last.content) == ("user", "user", "go")


@pytest.mark.parametrize(("place", "fields"), [
    ("max_tokens", {"max_tokens": None}), ("messages", {"messages": []}), ("temperature", {"temperature": 1.5}),
    ("mcp_servers", {"mcp_servers": [{"url": "x"}]}), ("messages[0].content[0].type", {"messages": [
        {"role": "user", "content": [{"type": "search_result"}]}]}),
    ("messages[0].content[0].tool_use_id", {"messages": [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]})])
def test_refusals_name_the_place(place: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parse_message({**BODY, **fields})
    assert caught.value.param == place
