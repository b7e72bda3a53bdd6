"""Pieces of the form in which training and evaluation read conversations: messages of a chat completion.

ValueError says why something has no such form; whoever exports counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from brise.dialects.bodies import Body

Message = dict[str, Any]
# Fields of a message that training files have; the others say nothing of what was said.
KEPT = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


def chat_message(message: Body) -> Message:
    """A message of OpenAI's chat completions."""
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
        kept["tool_calls"] = [{name: value for name, value in call.items() if name != "index"}
                              for call in required_objects(kept["tool_calls"], "tool_calls")]
    return kept


def answered(message: Message) -> Message:
    """The message itself, if it says something."""
    if not message.get("tool_calls") and not str(message.get("content") or "").strip():
        raise ValueError("its answer is empty")
    return message


def system_messages(prompt: object) -> list[Message]:
    """The system prompt of a dialect that keeps it apart from the messages."""
    if isinstance(prompt, list):
        prompt = "\n".join(str(block.get("text")) for block in prompt if isinstance(block, dict) and block.get("text"))
    return [{"role": "system", "content": prompt}] if isinstance(prompt, str) and prompt else []


def plain_text(content: object) -> str:
    """Text, or the texts of parts; other parts have no form here."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = required_objects(content, "content")
    if any(not isinstance(part.get("text"), str) for part in parts):
        raise ValueError("it has parts that are no text")
    return "\n".join(part["text"] for part in parts)


def tool_call(id: object, name: object, arguments: str) -> Message:
    """A call of a function; `arguments` is JSON text."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def function_tool(tool: Body, schema: str) -> Message:
    """A function whose parameters stand under the name `schema`."""
    return {"type": "function", "function": {"name": tool.get("name"), "parameters": tool.get(schema), **(
        {"description": tool["description"]} if tool.get("description") else {})}}


def functions(request: Body, convert: Callable[[Body], Message | None]) -> list[Message]:
    """The functions that a request offers; `convert` gives None for a tool that is none, as a server's own."""
    offered, tools = list[Message](), request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            raise ValueError("its tools are no objects")
        function = convert(tool)
        if function is None:
            raise ValueError(f"it offers a tool of type {str(tool.get('type'))[:32]!r}")
        offered.append(function)
    return offered


def required_objects(value: object, name: str) -> Sequence[Body]:
    """A list of objects, which it must be."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"its {name} are no list of objects")
    return value
