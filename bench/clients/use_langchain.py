"""LangChain's ChatOpenAI, by chat completions and by responses."""

from __future__ import annotations

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
    MissingError,
    goes_on,
    raises,
    run,
    same_at_once,
    wait_until_idle,
)
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Wind(BaseModel):
    """The wind in a place."""

    place: Literal["Paris", "Rome"]
    speed: int


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class Cells:
    """The cells of chat completions, or of responses."""

    def __init__(self, responses: bool) -> None:
        self.responses = responses

    def model(self, **more: object) -> ChatOpenAI:
        return ChatOpenAI(**{"base_url": f"{URL}/v1", "api_key": KEY, "model": MODEL, "temperature": 0,
                             "max_tokens": 30, "max_retries": 0, "timeout": 120, "use_responses_api": self.responses,
                             **more})

    def stream(self) -> str:
        return goes_on([chunk.text for chunk in self.model().stream(QUESTION)], self.model().invoke(QUESTION).text)

    def tools(self) -> str:
        bound = self.model(max_tokens=100).bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
        first = bound.invoke(QUESTION)
        call = first.tool_calls[0]
        assert call["args"]["city"] in PLACES
        result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
        assert self.model().bind_tools([get_weather]).invoke([HumanMessage(QUESTION), first, result]).text
        return str(call["args"])

    def structured(self) -> str:
        by_schema = self.model(max_tokens=60).with_structured_output(Wind).invoke(QUESTION)
        by_call = self.model(max_tokens=100).with_structured_output(Wind, method="function_calling").invoke(QUESTION)
        assert {by_schema.place, by_call.place} <= set(PLACES)
        return repr(by_schema)

    def logprobs(self) -> str:
        if self.responses:
            raise MissingError("LangChain drops them")
        found = self.model(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]["content"]
        assert found and all(item["logprob"] <= 0 for item in found)
        return f"{len(found)} tokens"

    def abort(self) -> str:
        pieces = self.model(max_tokens=4000).stream(LONG_STORY)
        next(pieces), next(pieces)
        pieces.close()
        return wait_until_idle()

    def chat(self) -> object:
        return self.model().invoke(QUESTION).usage_metadata["total_tokens"]

    def too_long(self) -> str:
        return raises(ContextOverflowError, lambda: self.model().invoke(TOO_LONG))

    def bad_model(self) -> str:
        return raises(openai.NotFoundError, lambda: self.model(model="gpt-0").invoke(QUESTION), "gpt-0")

    def bad_key(self) -> str:
        return raises(openai.AuthenticationError, lambda: self.model(api_key="wrong").invoke(QUESTION))

    def at_once(self) -> str:
        return same_at_once(lambda: self.model().invoke(QUESTION).text)


run("chat completions", Cells(responses=False))
run("responses", Cells(responses=True))
