"""The official Python client: chat completions and responses."""

from __future__ import annotations

import json
from typing import Literal

import openai
from cells import (
    KEY,
    LONG_STORY,
    MODEL,
    PLACES,
    QUESTION,
    TOO_LONG,
    URL,
    WEATHER,
    goes_on,
    raises,
    run,
    same_at_once,
    wait_until_idle,
)
from pydantic import BaseModel

CLIENT = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 30}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
                                           "parameters": WEATHER, "strict": True}}]


class Wind(BaseModel):
    """A schema with an enumeration and a nullable field."""

    place: Literal["Paris", "Rome"]
    speed: int | None


ASK_RESPONSES = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 30}
FLAT_TOOLS = [{"type": "function", **TOOLS[0]["function"]}]


class Chat:
    """Chat completions."""

    def chat(self) -> str:
        answer = CLIENT.chat.completions.create(**ASK)
        assert answer.choices[0].message.content and answer.usage.total_tokens > 0
        return answer.choices[0].finish_reason

    def stream(self) -> str:
        whole = CLIENT.chat.completions.create(**ASK).choices[0].message.content
        chunks = list(CLIENT.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.completion_tokens > 0
        return goes_on([chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices], whole)

    def tools(self) -> str:
        calling = {**ASK, "tools": TOOLS, "tool_choice": "required", "max_tokens": 100}
        first = CLIENT.chat.completions.create(**calling)
        message = first.choices[0].message
        call = message.tool_calls[0]
        assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in PLACES
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        rest = [{"role": "tool", "tool_call_id": other.id, "content": "sunny"} for other in message.tool_calls[1:]]
        again = CLIENT.chat.completions.create(**{**ASK, "messages": [*ASK["messages"], message, result, *rest]},
                                               tools=TOOLS, tool_choice="none")
        assert again.choices[0].message.content
        with CLIENT.chat.completions.stream(**calling) as events:
            streamed = events.get_final_completion().choices[0].message.tool_calls
        assert json.loads(streamed[0].function.arguments)["city"] in PLACES
        return call.function.arguments

    def structured(self) -> str:
        answer = CLIENT.chat.completions.parse(**{**ASK, "max_tokens": 60}, response_format=Wind)
        assert answer.choices[0].message.parsed.place in PLACES
        back = [*ASK["messages"], answer.choices[0].message, *ASK["messages"]]
        assert CLIENT.chat.completions.create(**{**ASK, "messages": back}).choices[0].message.content
        return answer.choices[0].message.content

    def logprobs(self) -> str:
        content = CLIENT.chat.completions.create(**ASK, logprobs=True, top_logprobs=3).choices[0].logprobs.content
        assert all(item.logprob <= 0 and len(item.top_logprobs) == 3 for item in content)
        return f"{len(content)} tokens"

    def too_long(self) -> str:
        long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
        try:
            CLIENT.chat.completions.create(**long)
        except openai.BadRequestError as error:
            assert error.code == "context_length_exceeded", error
            return error.code
        raise AssertionError("no error")

    def bad_model(self) -> str:
        return raises(openai.NotFoundError,
                      lambda: CLIENT.chat.completions.create(**{**ASK, "model": "gpt-0"}), "gpt-0")

    def bad_key(self) -> str:
        return raises(openai.AuthenticationError,
                      lambda: CLIENT.with_options(api_key="wrong").chat.completions.create(**ASK))

    def abort(self) -> str:
        long = {**ASK, "messages": [{"role": "user", "content": LONG_STORY}], "max_tokens": 4000}
        with CLIENT.chat.completions.create(**long, stream=True, extra_body={"ignore_eos": True}) as chunks:
            for _ in range(3):
                next(iter(chunks))
        return wait_until_idle()

    def at_once(self) -> str:
        return same_at_once(lambda: CLIENT.chat.completions.create(**ASK).choices[0].message.content)


class Responses:
    """The Responses API."""

    def chat(self) -> str:
        answer = CLIENT.responses.create(**ASK_RESPONSES)
        assert answer.output_text and answer.usage.total_tokens > 0
        again = CLIENT.responses.create(**ASK_RESPONSES, previous_response_id=answer.id)
        assert again.output_text and again.usage.input_tokens > answer.usage.input_tokens
        return answer.status

    def stream(self) -> str:
        whole = CLIENT.responses.create(**ASK_RESPONSES).output_text
        with CLIENT.responses.stream(**ASK_RESPONSES) as events:
            return goes_on([event.delta for event in events if event.type == "response.output_text.delta"], whole)

    def tools(self) -> str:
        calling = {**ASK_RESPONSES, "tools": FLAT_TOOLS, "tool_choice": "required", "max_output_tokens": 100}
        first = CLIENT.responses.create(**calling)
        calls = [item for item in first.output if item.type == "function_call"]
        assert json.loads(calls[0].arguments)["city"] in PLACES
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
        question = {"role": "user", "content": QUESTION}
        again = CLIENT.responses.create(**{**ASK_RESPONSES, "input": [question, *first.output, *results]},
                                        tools=FLAT_TOOLS, tool_choice="none")
        assert again.output_text
        return calls[0].arguments

    def structured(self) -> str:
        answer = CLIENT.responses.parse(**{**ASK_RESPONSES, "max_output_tokens": 60}, text_format=Wind)
        assert answer.output_parsed.place in PLACES
        return answer.output_text

    def logprobs(self) -> str:
        answer = CLIENT.responses.create(**ASK_RESPONSES, include=["message.output_text.logprobs"], top_logprobs=2)
        found = answer.output[-1].content[0].logprobs
        assert found and all(item.logprob <= 0 for item in found)
        return f"{len(found)} tokens"

    def too_long(self) -> str:
        try:
            CLIENT.responses.create(**{**ASK_RESPONSES, "input": TOO_LONG})
        except openai.BadRequestError as error:
            assert error.code == "context_length_exceeded", error
            return error.code
        raise AssertionError("no error")

    def bad_model(self) -> str:
        return raises(openai.NotFoundError, lambda: CLIENT.responses.create(**{**ASK_RESPONSES, "model": "gpt-0"}))

    def bad_key(self) -> str:
        return raises(openai.AuthenticationError,
                      lambda: CLIENT.with_options(api_key="wrong").responses.create(**ASK_RESPONSES))

    def abort(self) -> str:
        long = {**ASK_RESPONSES, "input": LONG_STORY, "max_output_tokens": 4000}
        with CLIENT.responses.create(**long, stream=True) as events:
            for _ in range(6):
                next(iter(events))
        return wait_until_idle()

    def at_once(self) -> str:
        return same_at_once(lambda: CLIENT.responses.create(**ASK_RESPONSES).output_text)


run("chat completions", Chat())
run("responses", Responses())
