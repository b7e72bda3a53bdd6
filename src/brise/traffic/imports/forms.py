"""Requests and answers as tracing tools keep them: the bodies of an API, or only messages, or plain text.

A body of the Responses API, of Anthropic's Messages or of chat completions stays what it is. Gemini's contents, single
messages and texts become chats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brise.dialects.bodies import Body, Fields, Kind, Usage, objects
from brise.traffic.imports.row import BadRowError, chat_body, finish_reason, message, text

ITEMS = frozenset({"message", "function_call", "reasoning", "function_call_output", "web_search_call", "output_text"})
KEPT = ("tools", "tool_choice", "response_format", "system", "instructions", "text", "max_tokens", "max_output_tokens",
        "max_completion_tokens", "temperature", "top_p", "seed", "stop", "reasoning_effort")


@dataclass(frozen=True)
class Call:
    """A request and its answer, None where there was none, in the dialect of `kind`."""

    kind: Kind
    request: Body
    response: Body | None


def call(asked: Any, answered: Any, model: str, parameters: Body, usage: Usage | None, *finish: object) -> Call:
    """The bodies of a request and its answer. `finish` are places beside the answer that may say why it stopped."""
    kind = kind_of(asked if isinstance(asked, dict) else {}, answered)
    answered = answered[0] if isinstance(answered, list) and len(answered) == 1 and kind != "responses" else answered
    if kind == "responses":
        body = answered if isinstance(answered, dict) else {"object": "response", "model": model, "status": "completed",
                                                            "output": answered}
        return Call(kind, {"model": model, **parameters, **_responses_request(asked)}, body)
    if kind == "messages":
        return Call(kind, {"model": model, **parameters, **_chat_request(asked)}, answered)
    request = {"model": model, **parameters, **_chat_request(asked)}
    return Call("chat", request, _chat_answer(answered, model, usage, finish))


def kind_of(request: Body, response: Any) -> Kind:
    """The dialect of a request and its answer, by marks that only one has; else a chat."""
    items = response.get("output") if isinstance(response, dict) else response
    is_items = isinstance(items, list) and any(str(item.get("type")) in ITEMS and "role" not in item or (
        item.get("type") == "message") for item in objects(items))
    if isinstance(response, dict) and response.get("object") == "response" or is_items:
        return "responses"
    if isinstance(response, dict) and isinstance(response.get("content"), list) and (
            response.get("type") == "message" or "stop_reason" in response):
        return "messages"
    is_text = isinstance(response, dict) and isinstance(response.get("choices"), list) and any(
        "text" in choice and "message" not in choice for choice in objects(response["choices"]))
    return "completion" if is_text and "prompt" in request and "messages" not in request else "chat"


def are_messages(items: Sequence[Any]) -> bool:
    """Whether these are messages of a chat, and not a list of anything else."""
    return all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in items)


def _responses_request(asked: Any) -> Fields:
    match asked:
        case {"input": str() | list()}:
            return {name: value for name, value in asked.items() if name != "model"}
        case str() | list() if asked:
            return {"input": asked}
        case dict() if isinstance(asked.get("messages"), list):
            return {"input": asked["messages"], **_kept(asked)}
    raise BadRowError("its input is neither text nor items")


def _chat_request(asked: Any) -> Fields:
    match asked:
        case {"contents": _}:
            return _of_gemini(asked)
        case [{"parts": list()}, *_]:
            return _of_gemini({"contents": asked})
        case {"messages": list(messages)}:
            others = _kept(asked)
        case {"role": str()}:
            messages, others = [asked], {}
        case {"prompt": str(prompt)} | {"input": str(prompt)}:
            messages, others = [{"role": "user", "content": prompt}], _kept(asked)
        case {"input": list(messages)}:
            others = _kept(asked)
        case list():
            messages, others = asked, {}
        case str() if asked.strip():
            messages, others = [{"role": "user", "content": asked}], {}
        case _:
            raise BadRowError("its input is neither text nor messages")
    if not messages or not are_messages(messages):
        raise BadRowError("its input has messages without a role")
    return {"messages": messages, **others}


def _kept(asked: Mapping[str, Any]) -> Fields:
    return {name: asked[name] for name in KEPT if asked.get(name) is not None}


def _chat_answer(value: Any, model: str, usage: Usage | None, finish: Sequence[object]) -> Body | None:
    def said(content: str, *more: object) -> Body:
        return chat_body({"role": "assistant", "content": content}, model, finish_reason(*more, *finish), usage)

    match value:
        case {"choices": list()}:
            return dict(value)
        case {"candidates": list()} | {"parts": list()}:
            return _gemini_answer(value, model, usage, finish)
        case {"content": _} | {"tool_calls": list()}:
            own = {name: field for name, field in value.items() if name not in ("finish_reason", "stop_reason")}
            return chat_body({"role": "assistant", **own}, model, finish_reason(value, *finish), usage)
        case {"completion": str(content)}:
            return said(content, value)
        case str() if value.strip():
            return said(value)
        case None | "":
            return None
        case dict():  # structured output, kept as the object that it is
            return said(json.dumps(value, ensure_ascii=False))
    raise BadRowError("its output is neither text nor a message")


def _of_gemini(asked: Mapping[str, Any]) -> Fields:
    contents = asked.get("contents")
    config = asked.get("config") if isinstance(asked.get("config"), dict) else asked
    assert isinstance(config, dict), "asked for just now"
    system = config.get("systemInstruction", config.get("system_instruction"))
    turns = [{"role": "user", "parts": [{"text": contents}]}] if isinstance(contents, str) else (
        [contents] if isinstance(contents, dict) else contents)
    messages: list[Fields] = []
    if system:
        parts = system.get("parts") if isinstance(system, dict) else [{"text": system}]
        messages.append({"role": "system", "content": _texts(parts)})
    for turn in objects(turns):
        messages += _gemini_turn(turn)
    if not isinstance(turns, list) or not any(each["role"] == "user" for each in messages):
        raise BadRowError("its input has no contents of a user")
    functions = [function for tool in objects(config.get("tools")) for function in objects(
        tool.get("functionDeclarations", tool.get("function_declarations")))]
    tools = [{"type": "function", "function": {**({"description": each["description"]} if text(
        each.get("description")) else {}), "name": each.get("name"), "parameters": each.get(
            "parameters", each.get("parametersJsonSchema")) or {"type": "object"}}} for each in functions]
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _gemini_turn(turn: Body) -> list[Fields]:
    """A turn as messages: results of functions are messages of their own. A call has no id, so its name is one."""
    calls, results = list[Fields](), list[Fields]()
    for part in objects(turn.get("parts")):
        made = part.get("functionCall", part.get("function_call"))
        result = part.get("functionResponse", part.get("function_response"))
        if isinstance(made, dict):
            calls.append({"id": str(made.get("id") or made.get("name")), "type": "function", "function": {
                "name": str(made.get("name")), "arguments": json.dumps(made.get("args") or {})}})
        elif isinstance(result, dict):
            results.append({"role": "tool", "tool_call_id": str(result.get("id") or result.get("name")),
                            "content": json.dumps(result.get("response"), ensure_ascii=False)})
        elif not isinstance(part.get("text"), str):
            raise BadRowError(f"a content has a part with {', '.join(map(str, part))[:64]!r}")
    said = _texts(turn.get("parts"))
    role = "assistant" if turn.get("role") == "model" else "user"
    return [*results, *([message(role, said, tool_calls=calls)] if said or calls or not results else [])]


def _gemini_answer(value: Mapping[str, Any], model: str, usage: Usage | None, finish: Sequence[object]) -> Body:
    candidates = objects(value.get("candidates")) or [{"content": value}]
    content = candidates[0].get("content")
    answer, *more = _gemini_turn({**(content if isinstance(content, dict) else {}), "role": "model"})
    if more:
        raise BadRowError("its output holds results of functions")
    return chat_body(answer, model, finish_reason(candidates[0], *finish), usage)


def _texts(parts: object) -> str:
    return "".join(part["text"] for part in objects(parts) if isinstance(part.get("text"), str)
                   and part.get("thought") is not True)
