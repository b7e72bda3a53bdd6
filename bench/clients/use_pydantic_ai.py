"""Pydantic AI: chat completions, responses and messages."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

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
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRequest, NativeOutput, ToolCallPart, ToolDefinition, ToolReturnPart
from pydantic_ai.direct import model_request_sync
from pydantic_ai.exceptions import ModelAuthenticationError, ModelContextWindowExceededError, ModelNotFoundError
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Wind(BaseModel):
    """The wind in a place."""

    place: Literal["Paris", "Rome"]
    speed: int


def model(api: str, name: str, key: str) -> Any:
    match api:
        case "messages":
            return AnthropicModel(name, provider=AnthropicProvider(base_url=URL, api_key=key))
        case "responses":
            return OpenAIResponsesModel(name, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=key))
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=key))


class Cells:
    """The cells of one API."""

    def __init__(self, api: str) -> None:
        self.api = api

    def agent(self, output: Any = str, name: str = MODEL, key: str = KEY, tokens: int = 30, **more: Any) -> Agent:
        settings = {"temperature": 0.0, "max_tokens": tokens, **more}
        return Agent(model(self.api, name, key), output_type=output, model_settings=settings, retries=2)

    def chat(self) -> str:
        return self.agent().run_sync(QUESTION).output

    def stream(self) -> str:
        async def pieces() -> list[str]:
            async with self.agent().run_stream(QUESTION) as result:
                return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return goes_on(asyncio.run(pieces()), self.chat())

    def tools(self) -> str:
        settings: Any = {"temperature": 0.0, "max_tokens": 100, "tool_choice": "required"}
        offered = ModelRequestParameters(function_tools=[ToolDefinition(
            name="get_weather", description="The weather of a city", parameters_json_schema=WEATHER)])
        asked = ModelRequest.user_text_prompt(QUESTION)
        first = model_request_sync(model(self.api, MODEL, KEY), [asked], model_settings=settings,
                                   model_request_parameters=offered)
        calls = [part for part in first.parts if isinstance(part, ToolCallPart)]
        assert calls[0].args_as_dict()["city"] in PLACES
        results = ModelRequest(parts=[ToolReturnPart(call.tool_name, "sunny", call.tool_call_id) for call in calls])
        again = model_request_sync(model(self.api, MODEL, KEY), [asked, first, results],
                                   model_settings={**settings, "tool_choice": "none"}, model_request_parameters=offered)
        assert again.text
        return str(calls[0].args)

    def structured(self) -> str:
        by_call = self.agent(Wind, tokens=100).run_sync(QUESTION).output
        assert by_call.place in PLACES
        if self.api != "messages":  # this client knows by the model's name which of Anthropic's models follow a schema
            assert self.agent(NativeOutput(Wind), tokens=60).run_sync(QUESTION).output.place in PLACES
        return repr(by_call)

    def logprobs(self) -> str:
        if self.api == "messages":
            raise MissingError("the Messages API has none")
        answer = self.agent(openai_logprobs=True, openai_top_logprobs=2).run_sync(QUESTION)
        found = answer.response.provider_details or {}
        details = [part.provider_details or {} for part in answer.response.parts]
        assert found.get("logprobs") or any(part.get("logprobs") for part in details), answer.response
        return "in provider_details"

    def abort(self) -> str:
        async def leave() -> None:
            async with self.agent(tokens=4000).run_stream(LONG_STORY) as result:
                async for _ in result.stream_text(delta=True, debounce_by=None):
                    break
        asyncio.run(leave())
        return wait_until_idle()

    def too_long(self) -> str:
        return raises(ModelContextWindowExceededError, lambda: self.agent().run_sync(TOO_LONG))

    def bad_model(self) -> str:
        return raises(ModelNotFoundError, lambda: self.agent(name="gpt-0").run_sync(QUESTION))

    def bad_key(self) -> str:
        return raises(ModelAuthenticationError, lambda: self.agent(key="wrong").run_sync(QUESTION))

    def at_once(self) -> str:
        return same_at_once(self.chat)


for each in ("chat completions", "responses", "messages"):
    run(each, Cells(each))
