"""JSON bodies as they go over the wire, and the readers of them that several dialects share.

A reader takes whatever a stranger's JSON holds: what has not the expected form counts as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from brise.files.digests import text_digest

Body = Mapping[str, Any]  # a JSON object
Fields = dict[str, Any]  # one that is being made
Kind = Literal["chat", "completion", "embedding", "responses", "messages", "other"]  # a dialect's name in the store


@dataclass(frozen=True)
class Usage:
    """Tokens as the answering server counted them; None where it did not say, or said what cannot be.

    Those of the prompt are all: what its cache had (`cached_tokens`) and what was written into the cache
    (`cache_write_tokens`, of which `cache_write_1h_tokens` for an hour) is among them. So is reasoning among those of
    the completion.
    """

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cached_tokens: int | None = 0
    cache_write_tokens: int | None = 0
    cache_write_1h_tokens: int | None = 0
    reasoning_tokens: int | None = None
    audio_prompt_tokens: int | None = 0
    audio_completion_tokens: int | None = 0

    @property
    def plain_prompt_tokens(self) -> int | None:
        """Those that were read anew, as text, and kept in no cache; None if a part is unknown or larger than all."""
        parts = (self.cached_tokens, self.cache_write_tokens, self.audio_prompt_tokens)
        rest = self.prompt_tokens
        for part in parts:
            rest = None if rest is None or part is None else rest - part
        return None if rest is None or rest < 0 else rest

    @property
    def total_tokens(self) -> int | None:
        """Prompt and completion."""
        return (None if self.prompt_tokens is None or self.completion_tokens is None
                else self.prompt_tokens + self.completion_tokens)


def objects(value: object) -> list[Body]:
    """The objects in a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: object) -> str | None:
    """A string that is not empty."""
    return value if isinstance(value, str) and value else None


def first_choice(response: Body) -> Body | None:
    """The first of an answer's `choices`."""
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def context_digest(request: Body) -> str | None:
    """SHA-256 of what surrounds every request of a workflow: its system prompt and tools. None if there are none."""
    around: list[Any] = [message for message in objects(request.get("messages"))
                         if message.get("role") in ("system", "developer")]
    around += [request[name] for name in ("system", "instructions", "tools", "functions") if request.get(name)]
    if not around:
        return None
    canonical = json.dumps(around, sort_keys=True, separators=(",", ":"))
    return text_digest(canonical)


def person(request: Body) -> str | None:
    """Whom a request names as the person behind it, under the names of OpenAI's APIs or of Anthropic's."""
    metadata = request.get("metadata")
    names = (request.get("user"), request.get("safety_identifier"),
             metadata.get("user_id") if isinstance(metadata, dict) else None)
    return next(filter(None, map(text, names)), None)


def openai_error(message: str, code: str) -> Body:
    """An error of the server, in the shape of OpenAI's APIs."""
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
