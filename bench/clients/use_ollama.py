"""Ollama's Python client on /api."""

from __future__ import annotations

import json
import sys
from typing import Any

import ollama
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

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
                                           "parameters": WEATHER}}]


def ask(question: str = QUESTION, model: str = MODEL, key: str = KEY, tokens: int = 30, **more: Any) -> Any:
    client = ollama.Client(host=URL, headers={"Authorization": f"Bearer {key}"}, timeout=120)
    messages = more.pop("messages", [{"role": "user", "content": question}])
    return client.chat(model, messages, options={"temperature": 0, "num_predict": tokens}, **more)


def chat() -> str:
    client = ollama.Client(host=URL, headers={"Authorization": f"Bearer {KEY}"})
    names = [each.model.removesuffix(":latest") for each in client.list().models]
    assert MODEL in names or not names  # a gateway lists what it serves itself
    answer = ask()
    assert answer.message.content and answer.eval_count > 0
    return answer.done_reason


def stream() -> str:
    return goes_on([part.message.content for part in ask(stream=True)], ask().message.content)


def tools() -> str:
    # Ollama's API lets the model choose, and SmolLM2 does not call: so a call and its result are sent back.
    call = {"function": {"name": "get_weather", "arguments": {"city": PLACES[0]}}}
    back = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_name": "get_weather", "content": "sunny"}]
    answer = ask(messages=back, tools=TOOLS)
    assert answer.message.content or answer.message.tool_calls
    return "a call and its result are read"


def structured() -> str:
    text = ask(format=WEATHER, tokens=60).message.content
    assert json.loads(text)["city"] in PLACES
    return text


def logprobs() -> str:
    found = ask(logprobs=True, top_logprobs=2).logprobs
    assert found and all(item.logprob <= 0 for item in found)
    return f"{len(found)} tokens"


def too_long() -> str:
    return raises(ollama.ResponseError, lambda: ask(TOO_LONG), "maximum context length")


def bad_model() -> str:
    return raises(ollama.ResponseError, lambda: ask(model="gpt-0"), "gpt-0", "404")


def bad_key() -> str:
    return raises(ollama.ResponseError, lambda: ask(key="wrong"), "401")


def abort() -> str:
    parts = ask(LONG_STORY, tokens=4000, stream=True)
    next(parts), next(parts)
    parts.close()
    return wait_until_idle()


def at_once() -> str:
    return same_at_once(lambda: ask().message.content)


run("/api/chat", sys.modules[__name__])
