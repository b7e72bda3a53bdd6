"""Anthropic's Python client on messages."""

from __future__ import annotations

import sys

import anthropic
from cells import (
    KEY,
    LONG_STORY,
    MODEL,
    PLACES,
    QUESTION,
    TOO_LONG,
    URL,
    WEATHER,
    MissingError,
    goes_on,
    raises,
    run,
    same_at_once,
    wait_until_idle,
)

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
HI = [{"role": "user", "content": QUESTION}]
ASK = {"model": MODEL, "messages": HI, "max_tokens": 30, "extra_body": {"temperature": 0}}
TOOLS = [{"name": "get_weather", "description": "The weather of a city", "input_schema": WEATHER}]


def text(answer: anthropic.types.Message) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


def chat() -> str:
    system = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    answer = CLIENT.messages.create(**ASK, system=system)
    assert text(answer) and answer.usage.output_tokens > 0
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=HI, system=system)
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    return answer.stop_reason


def stream() -> str:
    whole = text(CLIENT.messages.create(**ASK))
    with CLIENT.messages.stream(**ASK) as events:
        return goes_on(list(events.text_stream), whole)


def tools() -> str:
    first = CLIENT.messages.create(**{**ASK, "max_tokens": 100}, tools=TOOLS, tool_choice={"type": "any"})
    calls = [block for block in first.content if block.type == "tool_use"]
    assert calls[0].input["city"] in PLACES and first.stop_reason == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
    again = CLIENT.messages.create(**{**ASK, "messages": [
        *HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]},
        tools=TOOLS, tool_choice={"type": "none"})
    assert text(again)
    return str(calls[0].input)


def structured() -> str:
    answer = CLIENT.messages.create(**{**ASK, "max_tokens": 60}, output_config={
        "format": {"type": "json_schema", "schema": WEATHER}})
    assert any(place in text(answer) for place in PLACES)
    return text(answer)


def logprobs() -> str:
    raise MissingError("the Messages API has none")


def too_long() -> str:
    return raises(anthropic.BadRequestError, lambda: CLIENT.messages.create(
        **{**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}), "prompt is too long")


def bad_model() -> str:
    return raises(anthropic.NotFoundError, lambda: CLIENT.messages.create(**{**ASK, "model": "gpt-0"}), "gpt-0")


def bad_key() -> str:
    return raises(anthropic.AuthenticationError,
                  lambda: CLIENT.with_options(api_key="wrong").messages.create(**ASK))


def abort() -> str:
    long = {**ASK, "messages": [{"role": "user", "content": LONG_STORY}], "max_tokens": 4000}
    with CLIENT.messages.create(**long, stream=True) as events:
        for _ in range(5):
            next(iter(events))
    return wait_until_idle()


def at_once() -> str:
    return same_at_once(lambda: text(CLIENT.messages.create(**ASK)))


run("messages", sys.modules[__name__])
