"""LiteLLM as a library: OpenAI's chat completions, and Anthropic's messages."""

from __future__ import annotations

import json
from typing import Any

import litellm
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

litellm.suppress_debug_info = True
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
                                           "parameters": WEATHER}}]


class Cells:
    """The cells of one of LiteLLM's providers."""

    def __init__(self, provider: str, base_url: str) -> None:
        self.provider, self.base_url = provider, base_url

    def ask(self, question: str = QUESTION, model: str = MODEL, key: str = KEY, **more: Any) -> Any:
        return litellm.completion(f"{self.provider}/{model}", **{
            "messages": [{"role": "user", "content": question}], "api_base": self.base_url, "api_key": key,
            "temperature": 0, "max_tokens": 30, "num_retries": 0, "timeout": 120, **more})

    def text(self) -> str:
        return self.ask().choices[0].message.content

    def chat(self) -> str:
        answer = self.ask()
        assert answer.choices[0].message.content and answer.usage.total_tokens > 0
        return answer.choices[0].finish_reason

    def stream(self) -> str:
        return goes_on([chunk.choices[0].delta.content or "" for chunk in self.ask(stream=True)], self.text())

    def tools(self) -> str:
        message = self.ask(tools=TOOLS, tool_choice="required", max_tokens=100).choices[0].message
        calls = message.tool_calls
        assert json.loads(calls[0].function.arguments)["city"] in PLACES
        results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
        back = [{"role": "user", "content": QUESTION}, message, *results]
        assert self.ask(messages=back, tools=TOOLS, tool_choice="none").choices[0].message.content
        return calls[0].function.arguments

    def structured(self) -> str:
        schema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
        content = self.ask(response_format=schema, max_tokens=60).choices[0].message.content
        assert json.loads(content)["city"] in PLACES
        return content

    def logprobs(self) -> str:
        if self.provider == "anthropic":
            raise MissingError("the Messages API has none")
        found = self.ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        assert found and all(item.logprob <= 0 for item in found)
        return f"{len(found)} tokens"

    def too_long(self) -> str:
        return raises(litellm.ContextWindowExceededError, lambda: self.ask(TOO_LONG))

    def bad_model(self) -> str:
        return raises(litellm.NotFoundError, lambda: self.ask(model="gpt-0"), "gpt-0")

    def bad_key(self) -> str:
        return raises(litellm.AuthenticationError, lambda: self.ask(key="wrong"))

    def abort(self) -> str:
        chunks = self.ask(LONG_STORY, stream=True, max_tokens=4000)
        next(iter(chunks)), next(iter(chunks))
        chunks.completion_stream.close()
        return wait_until_idle()

    def at_once(self) -> str:
        return same_at_once(self.text)


run("chat completions", Cells("openai", f"{URL}/v1"))
run("hosted_vllm", Cells("hosted_vllm", f"{URL}/v1"))
run("messages", Cells("anthropic", URL))
