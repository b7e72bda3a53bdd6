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
    """Tokens as the answering server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


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


def token_usage(body: Body) -> Usage | None:
    """The tokens that a body counts, under the names of OpenAI's APIs or of Anthropic's."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    cached = cached or _count(usage.get("cache_read_input_tokens"))
    return Usage(_count(usage.get("prompt_tokens")) or _count(usage.get("input_tokens")),
                 _count(usage.get("completion_tokens")) or _count(usage.get("output_tokens")), cached)


def person(request: Body) -> str | None:
    """Whom a request names as the person behind it, under the names of OpenAI's APIs or of Anthropic's."""
    metadata = request.get("metadata")
    names = (request.get("user"), request.get("safety_identifier"),
             metadata.get("user_id") if isinstance(metadata, dict) else None)
    return next(filter(None, map(text, names)), None)


def openai_error(message: str, code: str) -> Body:
    """An error of the server, in the shape of OpenAI's APIs."""
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
