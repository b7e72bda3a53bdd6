"""OpenAI's client runs agent loops over /v1/responses: calls, results, reasoning, and answers that are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

from brise.errors import RequestError
from brise.serve.stored_responses import StoredResponse, StoredResponses, memory_size
from tests.engine.stub import stub_model
from tests.serve.live import Live, live

CALL = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
TOOL = {"type": "function", "name": "add", "strict": True, "parameters": {
    "type": "object", "properties": {"x": {"type": "integer", "enum": [1, 2]}}, "required": ["x"],
    "additionalProperties": False}}
GREEDY = {"model": "stub", "input": "hi", "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model(CALL)) as running:
        yield running
        running.wait_idle()


def test_an_agent_loop_sends_the_call_and_its_result_back(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, tools=[TOOL])
    message, call = first.output
    assert (first.output_text, first.status, message.type) == ("Let me see.", "completed", "message")
    assert call.type == "function_call" and call.name == "add" and json.loads(call.arguments) == {"x": 1}
    second = client.responses.create(model="stub", temperature=0, tools=[TOOL], tool_choice="none", input=[
        {"role": "user", "content": "hi"}, *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "2"}])
    assert [item.type for item in second.output] == ["message"] and second.tools[0].name == "add"


def test_a_stored_response_is_continued_by_its_id(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, tools=[TOOL])
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "2"}
    again = client.responses.create(model="stub", temperature=0, previous_response_id=first.id, input=[result])
    whole = client.responses.create(model="stub", temperature=0, input=[
        {"role": "user", "content": "hi"}, *first.output, result])
    assert again.usage is not None and whole.usage is not None
    assert again.usage.input_tokens == whole.usage.input_tokens and again.previous_response_id == first.id
    third = client.responses.create(model="stub", temperature=0, previous_response_id=again.id, input="more")
    assert third.usage is not None and third.usage.input_tokens > again.usage.input_tokens


def test_a_stored_response_is_read_and_forgotten(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    for call in (lambda: client.responses.retrieve(first.id),
                 lambda: client.responses.create(**GREEDY, previous_response_id=first.id)):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "previous_response_not_found"


def test_a_response_that_may_not_be_stored_is_not(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, store=False)
    assert first.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**GREEDY, previous_response_id=first.id)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add"},
                                    {"type": "allowed_tools", "mode": "required", "tools": [
                                        {"type": "function", "name": "add"}]}])
def test_a_call_is_made_when_required(client: openai.OpenAI, choice: object) -> None:
    answer = client.responses.create(**GREEDY, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False,
                                     max_output_tokens=300)
    call, = answer.output
    assert call.type == "function_call" and json.loads(call.arguments)["x"] in (1, 2)
    assert call.status == "completed" and answer.output_text == ""


def test_a_streamed_call_accumulates_and_is_stored(client: openai.OpenAI) -> None:
    with client.responses.stream(**GREEDY, tools=[TOOL]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output[1].arguments == '{"x": 1}' and final.output_text == "Let me see."
    assert "".join(event.delta for event in events
                   if event.type == "response.function_call_arguments.delta") == '{"x": 1}'
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in done] == ["message", "function_call"]
    assert client.responses.retrieve(final.id).output_text == "Let me see."


def test_a_call_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(**GREEDY, tools=[TOOL], max_output_tokens=60)
    assert answer.status == "incomplete" and answer.output[-1].status == "incomplete"


def test_log_probabilities_are_included_when_asked_for(client: openai.OpenAI) -> None:
    answer = client.responses.create(**GREEDY, include=["message.output_text.logprobs"], top_logprobs=2)
    part = answer.output[0].content[0]
    assert "".join(item.token for item in part.logprobs[:-1]) == CALL and len(part.logprobs[0].top_logprobs) == 2
    events = client.responses.create(**GREEDY, include=["message.output_text.logprobs"], stream=True)
    streamed = [item for event in events if event.type == "response.output_text.delta" for item in event.logprobs]
    assert [item.logprob for item in streamed] == [item.logprob for item in part.logprobs[:len(streamed)]]


def test_an_id_that_is_not_known_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**GREEDY, previous_response_id="resp_x")


def test_what_is_stored_is_bounded_and_belongs_to_its_key() -> None:
    stored, size = StoredResponses(max_bytes=1000), memory_size(["x" * 272])
    assert size == 400
    for name in ("a", "b", "c"):
        stored.put(name, StoredResponse({}, ["x" * 272], "me", size))
    stored.put("large", StoredResponse({}, [], "me", 1001))
    for name, owner in (("a", "me"), ("large", "me"), ("b", "you"), ("c", None)):
        with pytest.raises(RequestError):
            stored.get(name, owner)
    assert stored.get("b", "me").items == ["x" * 272] and stored.get("c", "me")
