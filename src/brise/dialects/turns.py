"""Messages in the form in which they are compared: the same whether a server said them or a client sends them back.

Clients change what they send back: content becomes parts, fields that are null go, marks of caches move on, thoughts
are left out, white space around texts is lost. None of this makes another message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from brise.dialects.bodies import Body, Kind

TEXTS = ("text", "input_text", "output_text", "refusal")
THOUGHTS = ("thinking", "redacted_thinking", "reasoning")


@dataclass(frozen=True)
class ConversationItem:
    """One message, or one item of the Responses API. `is_answer`: a model said it."""

    is_answer: bool
    content: str


def turns_of(kind: Kind, request: Body) -> list[ConversationItem]:
    """What a request says, without its system prompt. Nothing where there are no messages to continue."""
    match kind:
        case "chat" | "messages":
            return [turn for message in _objects(request.get("messages")) for turn in _message(message)]
        case "responses":
            asked = request.get("input")
            items = [{"role": "user", "content": asked}] if isinstance(asked, str) else _objects(asked)
            return [turn for item in items for turn in _item(item)]
        case _:
            return []


def answers_of(kind: Kind, response: Body) -> list[list[ConversationItem]]:
    """The answers in a body, each as the turns that a client sends back."""
    match kind:
        case "chat":
            messages = [choice.get("message") for choice in _objects(response.get("choices"))]
            return [list(_message({"role": "assistant", **message})) for message in messages
                    if isinstance(message, dict)]
        case "messages":
            return [list(_message({"role": "assistant", "content": response.get("content")}))]
        case "responses":
            return [[turn for item in _objects(response.get("output")) for turn in _item(item)]]
        case _:
            return []


def _message(message: Body) -> Iterator[ConversationItem]:
    role = message.get("role")
    if role in ("system", "developer"):  # tuples, as above: a stranger's JSON may have a list here
        return
    said: dict[str, Any] = {"role": role, **_content(message.get("content"))}
    if message.get("refusal"):
        said["text"] = (said.get("text", "") + str(message["refusal"])).strip()
    calls = [_call(call.get("id"), call.get("function")) for call in _objects(message.get("tool_calls"))]
    if message.get("function_call"):
        calls.append(_call(None, message["function_call"]))
    if calls:
        said["calls"] = calls
    if message.get("tool_call_id"):
        said["answers"] = message["tool_call_id"]
    yield ConversationItem(role == "assistant", _canonical(said))


def _item(item: Body) -> Iterator[ConversationItem]:
    """An item of the Responses API; reasoning is none."""
    kind = str(item.get("type") or "message")
    if kind == "message":
        yield from _message(item)
    elif kind not in THOUGHTS:
        kept = {name: value for name, value in item.items() if name not in ("id", "status") and value is not None}
        yield ConversationItem(kind.endswith("_call"), _canonical(kept))


def _content(content: object) -> dict[str, Any]:
    """Texts joined, and what is no text beside them, in order."""
    if not isinstance(content, list):
        return {"text": content.strip()} if isinstance(content, str) and content.strip() else {}
    texts, others = list[str](), list[object]()
    for part in content:
        if not isinstance(part, dict):
            others.append(part)
        elif part.get("type") in TEXTS:
            texts.append(str(part.get("text") or part.get("refusal") or ""))
        elif part.get("type") not in THOUGHTS:
            others.append(_without_marks(part))
    text = "".join(texts).strip()
    return ({"text": text} if text else {}) | ({"parts": others} if others else {})


def _call(id: object, function: object) -> object:
    fields = function if isinstance(function, dict) else {}
    arguments = fields.get("arguments")
    try:  # a client may have parsed them, and writes them with other spaces
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        pass
    return [id, fields.get("name"), arguments]


def _without_marks(part: Body) -> dict[str, Any]:
    """Of a tool's result the texts, wherever they stand; marks of caches are no content."""
    kept = {name: value for name, value in part.items() if name != "cache_control" and value is not None}
    return kept if "content" not in kept else {**kept, "content": _content(kept["content"])}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=repr)


def _objects(value: object) -> list[Body]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
