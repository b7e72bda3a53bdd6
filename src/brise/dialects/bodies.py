"""JSON bodies as they go over the wire, and what those of all dialects have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Body = Mapping[str, Any]  # a JSON object as it went over the wire
Kind = Literal["chat", "completion", "embedding", "responses", "messages", "other"]

KINDS: Mapping[str, Kind] = {
    "/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/embeddings": "embedding",
    "/v1/responses": "responses", "/v1/messages": "messages"}


@dataclass(frozen=True)
class Usage:
    """Tokens as the answering server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


def context_digest(fields: Body | None) -> str | None:
    """SHA-256 of what surrounds every request of a workflow: its system prompt and tools. None if there are none."""
    if fields is None:
        return None
    messages = fields.get("messages")
    around: list[Any] = [message for message in messages if isinstance(message, dict)
                         and message.get("role") in ("system", "developer")] if isinstance(messages, list) else []
    around += [fields.get(name) for name in ("system", "instructions", "tools", "functions") if fields.get(name)]
    if not around:
        return None
    text = json.dumps(around, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def usage_of(body: Body) -> Usage | None:
    """The tokens that a body counts, under the names of any of the dialects."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _number(details.get("cached_tokens")) if isinstance(details, dict) else 0
    cached = cached or _number(usage.get("cache_read_input_tokens"))
    return Usage(_number(usage.get("prompt_tokens")) or _number(usage.get("input_tokens")),
                 _number(usage.get("completion_tokens")) or _number(usage.get("output_tokens")), cached)


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
