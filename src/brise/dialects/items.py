"""Messages in the form in which they are compared: the same whether a server said them or a client sends them back.

Clients change what they send back: content becomes parts, null fields are dropped, cache markers move on, reasoning is
left out, white space around texts is lost. None of this makes another message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from brise.dialects.bodies import Body, Fields, objects

TEXTS = ("text", "input_text", "output_text", "refusal")
REASONING = ("thinking", "redacted_thinking", "reasoning")


@dataclass(frozen=True)
class ConversationItem:
    """One message, or one item of the Responses API. `is_answer`: a model said it."""

    is_answer: bool
    content: str


def message_items(message: Body) -> Iterator[ConversationItem]:
    """The one item of a message; none for a system prompt."""
    role = message.get("role")
    if role in ("system", "developer"):  # a tuple, as above: the role may be anything, a list too
        return
    item: Fields = {"role": role, **_content(message.get("content"))}
    if message.get("refusal"):
        item["text"] = (item.get("text", "") + str(message["refusal"])).strip()
    calls = [_call(call.get("id"), call.get("function")) for call in objects(message.get("tool_calls"))]
    if message.get("function_call"):
        calls.append(_call(None, message["function_call"]))
    if calls:
        item["calls"] = calls
    if message.get("tool_call_id"):
        item["answers"] = message["tool_call_id"]
    yield ConversationItem(role == "assistant", canonical(item))


def canonical(value: object) -> str:
    """Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=repr)


def _content(content: object) -> Fields:
    """Texts joined, and other parts beside them, in order."""
    if not isinstance(content, list):
        return {"text": content.strip()} if isinstance(content, str) and content.strip() else {}
    texts, others = list[str](), list[object]()
    for part in content:
        if not isinstance(part, dict):
            others.append(part)
        elif part.get("type") in TEXTS:
            texts.append(str(part.get("text") or part.get("refusal") or ""))
        elif part.get("type") not in REASONING:
            others.append(_without_markers(part))
    joined = "".join(texts).strip()
    return ({"text": joined} if joined else {}) | ({"parts": others} if others else {})


def _call(id: object, function: object) -> object:
    fields = function if isinstance(function, dict) else {}
    arguments = fields.get("arguments")
    try:  # a client may have parsed them, and writes them with other spaces
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        pass
    return [id, fields.get("name"), arguments]


def _without_markers(part: Body) -> Fields:
    """Cache markers are no content; of a tool's result the texts count, however they are split."""
    kept = {name: value for name, value in part.items() if name != "cache_control" and value is not None}
    return kept if "content" not in kept else {**kept, "content": _content(kept["content"])}
