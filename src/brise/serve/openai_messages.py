"""Chat messages as OpenAI's clients send them, and as chat templates want them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from brise.errors import RequestError
from brise.serve.body import Json, parse_json
from brise.serve.fields import Fields

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 8192


@dataclass(frozen=True)
class Call:
    """A function call that the model made earlier in the conversation."""

    id: str
    name: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True)
class Message:
    """One message; `content` is None only where an assistant did nothing but call functions."""

    role: str
    content: str | None
    name: str | None = None
    calls: tuple[Call, ...] = ()
    call_id: str | None = None


def parse_messages(fields: Fields) -> tuple[Message, ...]:
    """All messages of a conversation, checked one by one and against each other."""
    items = fields.items("messages")
    if items is None:
        raise fields.missing("messages")
    if not 1 <= len(items) <= MAX_MESSAGES:
        raise fields.error("messages", f"has {len(items)} messages, allowed are 1 to {MAX_MESSAGES}")
    messages: list[Message] = []
    known_calls: set[str] = set()
    for message_fields in fields.objects("messages"):
        message = _message(message_fields)
        if message.call_id is not None and message.call_id not in known_calls:
            raise message_fields.error("tool_call_id", "answers no tool call of an earlier assistant message")
        known_calls.update(call.id for call in message.calls)
        messages.append(message)
    return tuple(messages)


def template_message(message: Message) -> dict[str, object]:
    """What a chat template reads. Templates know no `developer`: it is OpenAI's newer word for `system`."""
    role = "system" if message.role == "developer" else message.role
    view: dict[str, object] = {"role": role, "content": message.content or ""}
    if message.name is not None:
        view["name"] = message.name
    if message.call_id is not None:
        view["tool_call_id"] = message.call_id
    if message.calls:
        view["tool_calls"] = [{"id": call.id, "type": "function",
                               "function": {"name": call.name, "arguments": dict(call.arguments)}}
                              for call in message.calls]
    return view


def plain_message(message: Message) -> dict[str, object]:
    """The same for a template that knows no tools: calls and results are written out in the hermes format."""
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"}
    view = template_message(message)
    view.pop("tool_calls", None)
    calls = [json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
             for call in message.calls]
    if calls:
        written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        view["content"] = f"{message.content}\n{written}" if message.content else written
    return view


def _message(fields: Fields) -> Message:
    if fields.raw("role") == "function":
        raise fields.unsupported("role", "'function' is OpenAI's old way; use 'tool'")
    role = fields.required_choice("role", ROLES)
    content = _content(fields)
    name = fields.text("name")
    calls: tuple[Call, ...] = ()
    call_id = None
    if role == "assistant":
        calls = tuple(_call(call) for call in fields.objects("tool_calls"))
        _assistant_leftovers(fields)
    elif role == "tool":
        call_id = fields.required_text("tool_call_id")
    if content is None and not calls:
        raise fields.missing("content")
    fields.done()
    return Message(role, content, name, calls, call_id)


def _assistant_leftovers(fields: Fields) -> None:
    """Fields of OpenAI's answers that clients send back; empty they mean nothing."""
    fields.refuse("refusal", "this server's models write no refusals apart from their text")
    fields.refuse("audio", "this server has no audio")
    fields.refuse("function_call", "it is OpenAI's old way; use 'tool_calls'")
    fields.only("annotations", ([],), "this server makes none")


def _content(fields: Fields) -> str | None:
    """A string, or text parts joined by newlines."""
    value = fields.raw("content")
    if value is None or isinstance(value, str):
        return value
    texts = []
    for part in fields.objects("content"):
        kind = part.required_text("type")
        if kind != "text":
            raise part.unsupported("type", f"a part of type {kind[:32]!r}; this server reads 'text'")
        texts.append(part.required_text("text"))
        part.refuse("prompt_cache_breakpoint", "equal beginnings are always cached")
        part.done()
    if not texts:
        raise fields.error("content", "has no parts")
    return "\n".join(texts)


def _call(fields: Fields) -> Call:
    if fields.required_text("type") != "function":
        raise fields.unsupported("type", "only 'function' is")
    function = fields.required_child("function")
    call_id, name = fields.required_text("id"), function.required_text("name")
    text = function.required_text("arguments")
    fields.only("index", tuple(range(1024)), "it counts calls")
    function.done()
    fields.done()
    try:
        arguments = parse_json(text.encode() or b"{}")
    except RequestError:
        arguments = None
    if not isinstance(arguments, dict):
        raise function.error("arguments", "must be the text of a JSON object")
    return Call(call_id, name, arguments)
