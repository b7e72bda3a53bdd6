"""Rules hold back calls in the server; every client sees a question, and a person's confirmation is the call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from brise.robots.call_rules import parse_call_rules
from brise.serve.serving import ServeSettings
from tests.engine.stub import stub_model
from tests.serve.live import Live, live

RULES = parse_call_rules("""
functions = ["door", "light"]
seconds = 600
[[rules]]
function = "door"
state = { speed_kmh = { over = 0 } }
then = "refuse"
because = "the car moves"
[[rules]]
function = "door"
then = "confirm"
because = "somebody may stand there"
""")
DOOR, LIGHT = {"action": "open"}, {"level": 2}
REPLY = "".join(f'<tool_call>\n{json.dumps({"name": name, "arguments": arguments})}\n</tool_call>'
                for name, arguments in (("light", LIGHT), ("door", DOOR)))
PARAMETERS = {"type": "object", "properties": {"action": {"type": "string"}, "level": {"type": "integer"}}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
                    for name in ("light", "door")]
HI = [{"role": "user", "content": "open up"}]
STANDS, MOVES = {"state": {"speed_kmh": 0}}, {"state": {"speed_kmh": 9}}
ASK: dict[str, Any] = {"model": "stub", "temperature": 0, "tools": TOOLS}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model(REPLY), settings=ServeSettings(rules=RULES)) as running:
        yield running
        running.wait_idle()


def test_a_call_that_needs_a_person_is_a_question_and_the_confirmation_is_the_call(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**ASK, messages=HI, extra_body=STANDS)
    message, = (choice.message for choice in first.choices)
    assert first.choices[0].finish_reason == "tool_calls" and called(message) == [("light", LIGHT)]
    held, = first.to_dict()["brise"]["held"]
    assert (held["name"], held["arguments"], held["because"]) == ("door", DOOR, ["somebody may stand there"])
    assert message.content == ('door({"action": "open"}) waits for you: somebody may stand there. '
                               f'To let it run, answer: confirm {held["confirmation"]}')
    talk = [*HI, message.to_dict(), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "on"},
            {"role": "user", "content": f'Confirm {held["confirmation"]}.'}]
    second = client.chat.completions.create(**ASK, messages=talk, extra_body=STANDS)
    assert called(second.choices[0].message) == [("door", DOOR)]
    assert second.choices[0].finish_reason == "tool_calls" and second.usage.completion_tokens == 0
    with pytest.raises(openai.BadRequestError, match="no call waits"):
        client.chat.completions.create(**ASK, messages=talk, extra_body=STANDS)


def test_a_stream_has_the_same_and_never_the_call(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASK, messages=HI, extra_body=STANDS, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call.function for delta in deltas for call in delta.tool_calls or []]
    assert [call.name for call in calls if call.name] == ["light"]
    assert json.loads("".join(call.arguments or "" for call in calls)) == LIGHT
    text = "".join(delta.content or "" for delta in deltas)
    number = chunks[-1].to_dict()["brise"]["held"][0]["confirmation"]
    assert text.endswith(f"confirm {number}") and chunks[-1].choices[0].finish_reason == "tool_calls"
    talk = [*HI, {"role": "assistant", "content": text}, {"role": "user", "content": f"confirm {number}"}]
    again = list(client.chat.completions.create(**ASK, messages=talk, extra_body=STANDS, stream=True))
    calls = [call.function for chunk in again for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].name == "door" and json.loads("".join(call.arguments or "" for call in calls)) == DOOR


@pytest.mark.parametrize("state", [MOVES, {}])
def test_what_is_refused_now_or_by_the_time_of_the_confirmation_does_not_run(client: openai.OpenAI,
                                                                             state: dict[str, Any]) -> None:
    at_once = client.chat.completions.create(**ASK, messages=HI, extra_body=state)
    assert "was refused: the car moves" in at_once.choices[0].message.content
    assert [each["name"] for each in at_once.to_dict()["brise"]["refused"]] == ["door"]
    talk = waiting(client)
    later = client.chat.completions.create(**ASK, messages=talk, extra_body=state)
    assert not later.choices[0].message.tool_calls and later.choices[0].finish_reason == "stop"
    assert later.choices[0].message.content == 'door({"action": "open"}) was refused: the car moves.'


def test_only_a_persons_whole_message_confirms_and_only_what_was_shown(client: openai.OpenAI) -> None:
    *shown, confirmation = waiting(client)
    words = confirmation["content"]
    for talk, message in (([*HI, confirmation], "does not show the question"),
                          ([*shown, {"role": "user", "content": f"{words} 1"}], "no call waits for confirmation 1")):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(**ASK, messages=talk, extra_body=STANDS)
    for said in ({"role": "user", "content": f"please {words}"}, {"role": "system", "content": words}):
        answer = client.chat.completions.create(**ASK, messages=[*shown, said], extra_body=STANDS)
        assert called(answer.choices[0].message) == [("light", LIGHT)], "the model was asked"
    with pytest.raises(openai.BadRequestError, match="one answer"):
        client.chat.completions.create(**ASK, messages=[*shown, confirmation], n=2, extra_body=STANDS)
    assert called(client.chat.completions.create(**ASK, messages=[*shown, confirmation], extra_body=STANDS)
                  .choices[0].message) == [("door", DOOR)]


def test_a_call_that_was_cut_is_neither_asked_for_nor_made(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(**ASK, messages=HI, extra_body=STANDS, max_tokens=len(REPLY) - 20)
    assert cut.choices[0].finish_reason == "length" and "brise" not in cut.to_dict()
    assert called(cut.choices[0].message) == [("light", LIGHT)]


def test_responses_go_on_from_the_question_by_its_id(client: openai.OpenAI) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    first = client.responses.create(model="stub", input="open up", tools=tools, temperature=0, extra_body=STANDS)
    assert [item.type for item in first.output] == ["message", "function_call"]
    number = first.to_dict()["brise"]["held"][0]["confirmation"]
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "on"}
    second = client.responses.create(model="stub", previous_response_id=first.id, extra_body=STANDS,
                                     input=[result, {"role": "user", "content": f"confirm {number}"}])
    call, = second.output
    assert (call.name, json.loads(call.arguments)) == ("door", DOOR)


def test_anthropics_and_ollamas_clients_see_the_question_too(server: Live) -> None:
    tools: list[Any] = [{"name": tool["function"]["name"], "input_schema": PARAMETERS} for tool in TOOLS]
    with anthropic.Anthropic(base_url=server.url, api_key="none") as asked:
        first = asked.messages.create(model="stub", max_tokens=900, messages=HI, tools=tools, extra_body=STANDS)
        text, light = first.content
        assert first.stop_reason == "tool_use" and light.name == "light"
        number = first.to_dict()["brise"]["held"][0]["confirmation"]
        talk = [*HI, {"role": "assistant", "content": [text.to_dict()]},
                {"role": "user", "content": f"confirm {number}"}]
        second = asked.messages.create(model="stub", max_tokens=900, messages=talk, tools=tools, extra_body=STANDS)
    assert [block.name for block in second.content] == ["door"] and second.content[0].input == DOOR
    body = {"model": "stub", "messages": HI, "tools": TOOLS, "stream": False, **STANDS}
    answer = httpx.post(f"{server.url}/api/chat", json=body, timeout=60).json()
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["light"]
    assert "waits for you" in answer["message"]["content"]


def test_a_state_that_is_no_object_is_refused_and_without_rules_it_is_reported(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'state' must be an object"):
        client.chat.completions.create(**ASK, messages=HI, extra_body={"state": 3})
    with live(stub_model(REPLY)) as free, free.client() as plain:
        answer = plain.chat.completions.create(**ASK, messages=HI, extra_body=STANDS)
        assert [name for name, _ in called(answer.choices[0].message)] == ["light", "door"]
        assert "state" in answer.to_dict()["brise"]["ignored"]


def called(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def waiting(client: openai.OpenAI) -> list[Any]:
    """A conversation that ends with a valid confirmation of the door."""
    first = client.chat.completions.create(**ASK, messages=HI, extra_body=STANDS)
    number = first.to_dict()["brise"]["held"][0]["confirmation"]
    return [*HI, {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": f"confirm {number}"}]
