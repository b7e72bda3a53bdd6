"""DSPy on chat completions."""

from __future__ import annotations

import json
import sys
from typing import Any

import dspy
import litellm
from cells import KEY, MODEL, PLACES, QUESTION, TOO_LONG, URL, WEATHER, MissingError, raises, run, same_at_once
from dspy.utils.exceptions import ContextWindowExceededError

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
                                           "parameters": WEATHER}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}


def model(name: str = MODEL, key: str = KEY, **more: Any) -> dspy.LM:
    return dspy.LM(f"openai/{name}", **{"api_base": f"{URL}/v1", "api_key": key, "temperature": 0.0, "max_tokens": 30,
                                       "cache": False, "num_retries": 0, **more})


def ask(question: str = QUESTION, **more: Any) -> Any:
    return model(**more)(question)[0]


def chat() -> str:
    return ask()


def stream() -> str:
    raise MissingError("DSPy streams fields of programs, as its own adapter finds them")


def tools() -> str:
    call = ask(tools=TOOLS, tool_choice="required", max_tokens=100)["tool_calls"][0]
    arguments = call["function"]["arguments"] if isinstance(call, dict) else call.function.arguments
    assert json.loads(arguments)["city"] in PLACES
    return arguments


def structured() -> str:
    text = ask(response_format=SCHEMA, max_tokens=60)
    assert json.loads(text)["city"] in PLACES
    # What DSPy itself writes is read from text, so that a program runs with any model.
    with dspy.context(lm=model(max_tokens=60), adapter=dspy.ChatAdapter()):
        assert dspy.Predict("question -> answer")(question=QUESTION).answer
    return text


def logprobs() -> str:
    answer = ask(logprobs=True)
    assert answer["logprobs"].content
    return f"{len(answer['logprobs'].content)} tokens"


def too_long() -> str:
    return raises((ContextWindowExceededError, litellm.ContextWindowExceededError), lambda: ask(TOO_LONG))


def bad_model() -> str:
    return raises(Exception, lambda: ask(name="gpt-0"), "gpt-0")


def bad_key() -> str:
    return raises(Exception, lambda: ask(key="wrong"), "API key")


def abort() -> str:
    raise MissingError("a program cannot be left in the middle")


def at_once() -> str:
    return same_at_once(ask)


run("chat completions", sys.modules[__name__])
