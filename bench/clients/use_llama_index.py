"""LlamaIndex's OpenAILike on chat completions."""

import gc
import sys
from typing import Any, Literal

import openai
from cells import (
    KEY,
    LONG_STORY,
    MODEL,
    PLACES,
    QUESTION,
    TOO_LONG,
    URL,
    goes_on,
    raises,
    run,
    same_at_once,
    wait_until_idle,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


class Wind(BaseModel):
    """The wind in a place."""

    place: Literal["Paris", "Rome"]
    speed: int = Field(ge=0, le=99)


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def model(name: str = MODEL, key: str = KEY, **more: Any) -> OpenAILike:
    return OpenAILike(**{"model": name, "api_base": f"{URL}/v1", "api_key": key, "is_chat_model": True,
                         "is_function_calling_model": True, "temperature": 0.0, "max_tokens": 30, "max_retries": 0,
                         "timeout": 120, "context_window": 8192, **more})


def ask(question: str = QUESTION, **more: Any) -> str:
    return model(**more).chat([ChatMessage(role="user", content=question)]).message.content


def chat() -> str:
    return ask()


def stream() -> str:
    pieces = [part.delta or "" for part in model().stream_chat([ChatMessage(role="user", content=QUESTION)])]
    return goes_on(pieces, ask())


def tools() -> str:
    tool = FunctionTool.from_defaults(get_weather)
    asked, chosen = ChatMessage(role="user", content=QUESTION), model(max_tokens=100)
    first = chosen.chat_with_tools([tool], chat_history=[asked], tool_required=True)
    calls = chosen.get_tool_calls_from_response(first)
    assert calls[0].tool_kwargs["city"] in PLACES
    results = [ChatMessage(role="tool", content=tool(**call.tool_kwargs).content,
                           additional_kwargs={"tool_call_id": call.tool_id}) for call in calls]
    assert chosen.chat_with_tools([tool], chat_history=[asked, first.message, *results]).message is not None
    return str(calls[0].tool_kwargs)


def structured() -> str:
    by_call = model(max_tokens=100).as_structured_llm(Wind).complete(QUESTION).raw
    by_schema = model(max_tokens=60, should_use_structured_outputs=True).structured_predict(
        Wind, prompt=PromptTemplate(QUESTION))
    assert {by_call.place, by_schema.place} <= set(PLACES)
    return repr(by_call)


def logprobs() -> str:
    answer = model(logprobs=True, top_logprobs=2).chat([ChatMessage(role="user", content=QUESTION)])
    assert answer.logprobs
    return f"{len(answer.logprobs)} tokens"


def too_long() -> str:
    return raises(openai.BadRequestError, lambda: ask(TOO_LONG), "maximum context length")


def bad_model() -> str:
    return raises(openai.NotFoundError, lambda: ask(name="gpt-0"), "gpt-0")


def bad_key() -> str:
    return raises(openai.AuthenticationError, lambda: ask(key="wrong"))


def abort() -> str:
    parts = model(max_tokens=4000).stream_chat([ChatMessage(role="user", content=LONG_STORY)])
    next(parts), next(parts)
    del parts
    gc.collect()  # its generators are in each other, and closing the outer one closes no other
    return wait_until_idle()


def at_once() -> str:
    return same_at_once(ask)


run("chat completions", sys.modules[__name__])
