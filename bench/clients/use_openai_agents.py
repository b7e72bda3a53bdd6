"""OpenAI's Agents SDK: chat completions and responses."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
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
from pydantic import BaseModel

set_tracing_disabled(True)  # traces would go to OpenAI


class Wind(BaseModel):
    """The wind in a place."""

    place: Literal["Paris", "Rome"]
    speed: int


def agent(kind: Any, tokens: int = 30, name: str = MODEL, key: str = KEY, **more: Any) -> Agent:
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0, timeout=120)
    chosen = {"temperature": 0.0, "max_tokens": tokens, **more.pop("settings", {})}
    return Agent(name="one", model=kind(name, client), model_settings=ModelSettings(**chosen), **more)


class Cells:
    """The cells of one of the SDK's two models."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def ask(self, question: str = QUESTION, **more: Any) -> Any:
        return asyncio.run(Runner.run(agent(self.kind, **more), question)).final_output

    async def pieces(self, question: str, tokens: int, most: int) -> list[str]:
        result, read = Runner.run_streamed(agent(self.kind, tokens), question), []
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                read.append(event.data.delta)
                if len(read) == most:
                    result.cancel()
        return read

    def tools(self) -> str:
        called = []

        @function_tool
        def get_weather(city: Literal["Paris", "Rome"]) -> str:
            """The weather of a city."""
            called.append(city)
            return "sunny"

        # The SDK lets the model choose after the first call.
        answer = self.ask(tools=[get_weather], tokens=100, settings={"tool_choice": "required"})
        assert called and called[0] in PLACES and answer
        return f"called with {called[0]}"

    def structured(self) -> str:
        wind = self.ask(output_type=Wind, tokens=80)
        assert wind.place in PLACES
        return repr(wind)

    def logprobs(self) -> str:
        if self.kind is OpenAIChatCompletionsModel:
            raise MissingError("the SDK drops those of a whole answer")
        result = asyncio.run(Runner.run(agent(self.kind, settings={"top_logprobs": 2}), QUESTION))
        assert result.raw_responses[0].output[-1].content[0].logprobs
        return "in raw_responses"

    def abort(self) -> str:
        asyncio.run(self.pieces(LONG_STORY, 4000, 2))
        return wait_until_idle()

    def chat(self) -> object:
        return self.ask()

    def stream(self) -> str:
        return goes_on(asyncio.run(self.pieces(QUESTION, 30, 0)), self.ask())

    def too_long(self) -> str:
        return raises(openai.BadRequestError, lambda: self.ask(TOO_LONG), "maximum context length")

    def bad_model(self) -> str:
        return raises(openai.NotFoundError, lambda: self.ask(name="gpt-0"), "gpt-0")

    def bad_key(self) -> str:
        return raises(openai.AuthenticationError, lambda: self.ask(key="wrong"))

    def at_once(self) -> str:
        return same_at_once(self.ask)


run("chat completions", Cells(OpenAIChatCompletionsModel))
run("responses", Cells(OpenAIResponsesModel))
