"""Exchanges of any dialect as messages of a chat completion: what `brise tune` and `brise eval` read.

ValueError says why something has no such form; whoever exports counts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from brise.dialects.bodies import Body, Kind

Message = dict[str, Any]
# Fields of a message that training files have; the others say nothing of what was said.
KEPT = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


def request_messages(kind: Kind, request: Body) -> list[Message]:
    """What was asked."""
    match kind:
        case "chat":
            return [_chat_message(message) for message in _objects(request.get("messages"), "messages")]
        case "completion":
            prompt = request.get("prompt")
            if not isinstance(prompt, str):
                raise ValueError("its prompt is no single text")
            return [{"role": "user", "content": prompt}]
        case "messages":
            return [*_system(request.get("system")), *(
                made for message in _objects(request.get("messages"), "messages") for made in _blocks(message))]
        case "responses":
            return [*_system(request.get("instructions")), *_items(request)]
        case _:
            raise ValueError(f"a request of kind {kind!r} is no chat")


def answer_message(kind: Kind, response: Body) -> Message:
    """What was answered: the first choice."""
    match kind:
        case "chat" | "completion":
            choices = response.get("choices")
            first = choices[0] if isinstance(choices, list) and choices else None
            if not isinstance(first, dict):
                raise ValueError("its answer has no choices")
            if kind == "completion":
                return _said({"role": "assistant", "content": first.get("text")})
            message = first.get("message")
            if not isinstance(message, dict):
                raise ValueError("its answer has no message")
            return _said(_chat_message({"role": "assistant", **message}))
        case "messages":
            return _said(next(iter(_blocks({"role": "assistant", "content": response.get("content")}))))
        case "responses":
            made = list(_output(_objects(response.get("output"), "output")))
            if len(made) != 1:
                raise ValueError("its answer is no single message")
            return _said(made[0])
        case _:
            raise ValueError(f"an answer of kind {kind!r} is no chat")


def request_tools(kind: Kind, request: Body) -> list[Message]:
    """The functions that it offered, in the form of chat completions; tools that a server runs itself are none."""
    tools = request.get("tools")
    out: list[Message] = []
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            raise ValueError("its tools are no objects")
        if kind == "chat":
            if tool.get("type") != "function":
                raise ValueError(f"it offers a tool of type {str(tool.get('type'))[:32]!r}")
            out.append(tool)
        elif kind == "messages" and "input_schema" in tool:
            out.append(_function(tool, "input_schema"))
        elif kind == "responses" and tool.get("type") == "function":
            out.append(_function(tool, "parameters"))
        else:
            raise ValueError(f"it offers a tool of type {str(tool.get('type'))[:32]!r}")
    return out


def _function(tool: Body, schema: str) -> Message:
    return {"type": "function", "function": {"name": tool.get("name"), "parameters": tool.get(schema), **(
        {"description": tool["description"]} if tool.get("description") else {})}}


def _chat_message(message: Body) -> Message:
    if message.get("role") == "function" or message.get("function_call"):
        raise ValueError("it uses functions in OpenAI's old way")
    if message.get("refusal"):
        raise ValueError("the model refused to answer")
    if message.get("audio"):
        raise ValueError("it has audio")
    kept = {name: message[name] for name in KEPT if message.get(name) is not None}
    if kept.get("tool_calls") == []:
        del kept["tool_calls"]
    if "tool_calls" in kept:
        kept["tool_calls"] = [_without_index(call) for call in _objects(kept["tool_calls"], "tool_calls")]
    return kept


def _without_index(call: Body) -> Message:
    return {name: value for name, value in call.items() if name != "index"}


def _said(message: Message) -> Message:
    if not message.get("tool_calls") and not str(message.get("content") or "").strip():
        raise ValueError("its answer is empty")
    return message


def _system(text: object) -> list[Message]:
    """The system prompt of the dialects that have it beside the messages."""
    if isinstance(text, list):
        text = "\n".join(str(block.get("text")) for block in text if isinstance(block, dict) and block.get("text"))
    return [{"role": "system", "content": text}] if isinstance(text, str) and text else []


def _blocks(message: Body) -> Iterator[Message]:
    """A message of Anthropic's: its texts, calls and results. Results of tools are messages of their own."""
    role, content = message.get("role"), message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else _objects(content, "content")
    texts, calls, images = list[str](), list[Message](), list[Message]()
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking"} | {"type": "redacted_thinking"}:
                pass
            case {"type": "tool_use", "id": id, "name": name}:
                calls.append(_call(id, name, json.dumps(part.get("input") or {})))
            case {"type": "tool_result", "tool_use_id": id}:
                yield {"role": "tool", "tool_call_id": id, "content": _plain(part.get("content"))}
            case {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}:
                images.append({"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}})
            case _:
                raise ValueError(f"it has a part of type {str(part.get('type'))[:32]!r}")
    text = "\n".join(texts)
    if texts or calls or images or role == "assistant":
        yield {"role": role, "content": [*images, {"type": "text", "text": text}] if images else text,
               **({"tool_calls": calls} if calls else {})}


def _items(request: Body) -> Iterator[Message]:
    asked = request.get("input")
    if request.get("previous_response_id") or request.get("conversation"):
        raise ValueError("the server keeps the beginning of its conversation")
    if isinstance(asked, str):
        yield {"role": "user", "content": asked}
    else:
        yield from _output(_objects(asked, "input"))


def _output(items: list[Body]) -> Iterator[Message]:
    """Items of the Responses API; calls belong to the assistant's message before them, or are one."""
    open_: Message | None = None
    for item in items:
        kind = item.get("type") or "message"
        if kind == "reasoning":
            continue
        if kind == "function_call":
            open_ = open_ or {"role": "assistant", "content": ""}
            open_.setdefault("tool_calls", []).append(
                _call(item.get("call_id"), item.get("name"), str(item.get("arguments"))))
            continue
        if open_ is not None:
            yield open_
            open_ = None
        if kind == "message" and item.get("role") == "assistant":
            open_ = {"role": "assistant", "content": _plain(item.get("content"))}
        elif kind == "message":
            yield {"role": item.get("role"), "content": _plain(item.get("content"))}
        elif kind == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": _plain(item.get("output"))}
        else:
            raise ValueError(f"it has an item of type {str(kind)[:32]!r}")
    if open_ is not None:
        yield open_


def _plain(content: object) -> str:
    """Text, or the texts of parts; other parts have no form here."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = _objects(content, "content")
    if any(not isinstance(part.get("text"), str) for part in parts):
        raise ValueError("it has parts that are no text")
    return "\n".join(part["text"] for part in parts)


def _call(id: object, name: object, arguments: str) -> Message:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _objects(value: object, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"its {name} are no list of objects")
    return value
