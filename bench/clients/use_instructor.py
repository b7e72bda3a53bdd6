"""Instructor: structured answers by a tool and by a schema."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from cells import KEY, MODEL, PLACES, QUESTION, TOO_LONG, URL, MissingError, raises, run, same_at_once
from instructor.core import InstructorRetryException
from pydantic import BaseModel, Field

ERRORS = (InstructorRetryException, openai.APIStatusError)


class Wind(BaseModel):
    """The wind in a place."""

    place: Literal["Paris", "Rome"]
    speed: int = Field(ge=0, le=99)


class Cells:
    """The cells of one of Instructor's modes."""

    def __init__(self, mode: instructor.Mode) -> None:
        self.mode = mode

    def create(self, question: str = QUESTION, model: str = MODEL, key: str = KEY, **more: Any) -> Any:
        client = instructor.from_openai(
            openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0, timeout=120), mode=self.mode)
        method = client.chat.completions.create_partial if more.get("stream") else client.chat.completions.create
        field = "max_output_tokens" if self.mode is instructor.Mode.RESPONSES_TOOLS else "max_tokens"
        return method(model=model, messages=[{"role": "user", "content": question}], response_model=Wind,
                      temperature=0, max_retries=1, **{field: 80, **more})

    def chat(self) -> str:
        raise MissingError("every answer is structured")

    def stream(self) -> str:
        parts = list(self.create(stream=True))
        assert parts and parts[-1].place in PLACES  # a call may come in one piece
        return f"{len(parts)} pieces"

    def tools(self) -> str:
        raise MissingError("every answer is structured")

    def structured(self) -> str:
        wind = self.create()
        assert wind.place in PLACES
        return repr(wind)

    def logprobs(self) -> str:
        raise MissingError("no such call")

    def too_long(self) -> str:
        return raises(ERRORS, lambda: self.create(TOO_LONG), "maximum context length")

    def bad_model(self) -> str:
        return raises(ERRORS, lambda: self.create(model="gpt-0"), "gpt-0")

    def bad_key(self) -> str:
        return raises(ERRORS, lambda: self.create(key="wrong"), "API key")

    def abort(self) -> str:
        raise MissingError("the iterator cannot be closed")

    def at_once(self) -> str:
        return same_at_once(lambda: repr(self.create()))


run("chat completions, by tool", Cells(instructor.Mode.TOOLS))
run("chat completions, by schema", Cells(instructor.Mode.JSON_SCHEMA))
run("responses, by tool", Cells(instructor.Mode.RESPONSES_TOOLS))
