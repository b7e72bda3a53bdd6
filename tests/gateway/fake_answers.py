"""What the fake large model says: bodies and events in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

MODEL, FINGERPRINT = "hosted-1-2026-01-01", "fp_fake"


def encode(data: object) -> bytes:
    """One event."""
    if isinstance(data, bytes):
        return data
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def chat_body(text: str = "", calls: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """A whole answer of a chat; `calls` are names and arguments."""
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else "stop"}
    return {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1_767_225_600, "model": MODEL,
            "system_fingerprint": FINGERPRINT, "choices": [choice], "usage": usage(text)}


def chat_events(text: str = "", calls: Sequence[tuple[str, str]] = (), *, with_usage: bool = False) -> list[object]:
    """The same as the events of a stream, with the role first, and each word and each call's arguments apart."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if text else None}]
    deltas += [{"content": word if number == 0 else f" {word}"} for number, word in enumerate(text.split(" ")) if text]
    for number, (name, arguments) in enumerate(calls):
        deltas.append({"tool_calls": [{"index": number, "id": f"call_{number}", "type": "function",
                                       "function": {"name": name, "arguments": ""}}]})
        middle = len(arguments) // 2
        deltas += [{"tool_calls": [{"index": number, "function": {"arguments": part}}]}
                   for part in (arguments[:middle], arguments[middle:])]
    chunks: list[object] = [_chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])
                            for delta in deltas]
    finish = "tool_calls" if calls else "stop"
    chunks.append(_chunk([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}]))
    if with_usage:
        chunks.append({**_chunk([]), "usage": usage(text)})
    return [*chunks, "[DONE]"]


def usage(text: str) -> dict[str, Any]:
    """As if every word were a token, and the prompt ten."""
    count = len(text.split())
    return {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count,
            "prompt_tokens_details": {"cached_tokens": 4}}


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1_767_225_600, "model": MODEL,
            "system_fingerprint": FINGERPRINT, "choices": choices}
