"""Spans of OpenInference (Phoenix, Arize) and of Vercel's AI SDK, which have names of their own for what was said.

    openinference.span.kind "LLM", llm.input_messages.0.message.content, llm.output_messages.0..., llm.token_count.*
    operation.name "ai.generateText.doGenerate", ai.prompt.messages, ai.response.text, ai.response.toolCalls, ai.usage.*
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brise.dialects.bodies import Usage
from brise.traffic.imports import counts
from brise.traffic.imports.otel_values import Fields, objects
from brise.traffic.imports.row import BadRowError, PassedOverError, fields_of, finish_reason, message, parsed, text

INVOCATION = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "frequency_penalty",
              "presence_penalty", "tool_choice", "response_format")
AI_CALLS = (".doGenerate", ".doStream")  # the spans around them hold the same once more
AI_SETTINGS: Mapping[str, str] = {"ai.settings.temperature": "temperature", "ai.settings.topP": "top_p",
                                  "ai.settings.maxTokens": "max_tokens", "ai.settings.maxOutputTokens": "max_tokens",
                                  "ai.settings.seed": "seed"}


@dataclass(frozen=True)
class SpanCall:
    """What a span says of a request to a model, as a chat."""

    model: str | None
    messages: list[Fields]
    answer: Fields | None
    finish: str | None
    usage: Usage | None
    more: Fields = field(default_factory=dict)  # of the request: tools, temperature
    conversation: str | None = None
    subject: str | None = None
    task: str | None = None


def of_openinference(said: Fields) -> SpanCall | None:
    """None for a span of somebody else; PassedOverError for one that is no call of a model."""
    kind = said.get("openinference.span.kind")
    asked = _numbered(said, "llm.input_messages")
    if kind is None and not asked:
        return None
    if kind is not None and str(kind).upper() != "LLM":
        raise PassedOverError
    answers = _numbered(said, "llm.output_messages")
    if not asked:
        asked = [message("user", str(prompt)) for _, prompt in sorted(
            (name, value) for name, value in said.items() if re.fullmatch(r"llm\.prompts\.\d{1,4}(\..+)?", name))]
    raw = parsed(said.get("output.value"))
    tokens = {name.removeprefix("llm.token_count."): value for name, value in said.items()
              if name.startswith("llm.token_count.")}
    invocation = fields_of(parsed(said.get("llm.invocation_parameters")))
    tools = [parsed(value) for name, value in sorted(said.items())
             if re.fullmatch(r"llm\.tools\.\d{1,4}\.tool\.json_schema", name)]
    more = {name: invocation[name] for name in INVOCATION if invocation.get(name) is not None}
    return SpanCall(
        text(said.get("llm.model_name")) or text(invocation.get("model")), asked,
        answers[0] if answers else _answer_in(raw), finish_reason(said, raw if isinstance(raw, dict) else None),
        counts.usage_of(tokens, is_apart=False), {**more, **_tools(tools)}, text(said.get("session.id")),
        text(said.get("user.id")), text(said.get("llm.prompt_template.name")))


def _numbered(said: Fields, prefix: str) -> list[Fields]:
    """llm.input_messages.0.message.content and so on."""
    turns: defaultdict[int, Fields] = defaultdict(dict)
    for name, value in said.items():
        found = re.fullmatch(rf"{re.escape(prefix)}\.(\d{{1,4}})\.message\.(.+)", name)
        if found:
            turns[int(found[1])][found[2]] = value
    return [_turn(fields, "user" if "input" in prefix else "assistant") for _, fields in sorted(turns.items())]


def _turn(fields: Fields, role: str) -> Fields:
    parts: defaultdict[int, Fields] = defaultdict(dict)
    calls: defaultdict[int, Fields] = defaultdict(dict)
    for name, value in fields.items():
        for found, place in ((re.fullmatch(r"contents\.(\d{1,4})\.message_content\.(.+)", name), parts),
                             (re.fullmatch(r"tool_calls\.(\d{1,4})\.tool_call\.(.+)", name), calls)):
            if found:
                place[int(found[1])][found[2]] = value
    content: Any = fields.get("content")
    if content is None and parts:
        content = [_part(part) for _, part in sorted(parts.items())]
        if all(part["type"] == "text" for part in content):
            content = "".join(part["text"] for part in content)
    if fields.get("function_call_name"):
        calls[len(calls)] = {"function.name": fields["function_call_name"],
                             "function.arguments": fields.get("function_call_arguments_json")}
    return message(str(fields.get("role") or role), "" if content is None and calls else content, tool_calls=[
        _call(call.get("id"), call.get("function.name"), call.get("function.arguments"))
        for _, call in sorted(calls.items())], tool_call_id=fields.get("tool_call_id"))


def _part(part: Fields) -> Fields:
    url = part.get("image.image.url")
    if part.get("type") == "image" and isinstance(url, str):
        return {"type": "image_url", "image_url": {"url": url}}
    if not isinstance(part.get("text"), str):
        raise BadRowError(f"a message has a part of type {str(part.get('type'))[:32]!r}")
    return {"type": "text", "text": part["text"]}


def _answer_in(raw: object) -> Fields | None:
    """The answer in a whole body, or the text that stands in its place."""
    for choice in objects(fields_of(raw).get("choices")):
        if isinstance(choice.get("message"), dict):
            return dict(choice["message"])
    return message("assistant", raw) if isinstance(raw, str) and raw.strip() else None


def of_ai_sdk(said: Fields, name: str) -> SpanCall | None:
    """None for a span of somebody else; PassedOverError for one around the call of a model."""
    operation = str(said.get("ai.operationId") or said.get("operation.name") or name).split(" ", 1)[0]
    if not operation.startswith("ai.") or not any(key.startswith("ai.") for key in said):
        return None
    if not operation.endswith(AI_CALLS):
        raise PassedOverError
    asked = [turn for each in objects(parsed(said.get("ai.prompt.messages"))) for turn in _ai_turns(each)]
    content, calls = said.get("ai.response.text"), objects(parsed(said.get("ai.response.toolCalls")))
    if content is None:
        content = said.get("ai.response.object")
    answer = message("assistant", content if isinstance(content, str) else "", tool_calls=[
        _call(call.get("toolCallId"), call.get("toolName"), call.get("input", call.get("args"))) for call in calls])
    tokens = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.removeprefix("ai.usage.")).lower(): value
              for key, value in said.items() if key.startswith("ai.usage.")}
    schema = parsed(said.get("ai.schema"))
    tools = [parsed(tool) for tool in said["ai.prompt.tools"]] if isinstance(said.get("ai.prompt.tools"), list) else []
    about = {key.removeprefix("ai.telemetry.metadata."): value for key, value in said.items()
             if key.startswith("ai.telemetry.metadata.")}
    return SpanCall(
        text(said.get("gen_ai.request.model")) or text(said.get("ai.model.id")), asked,
        answer if isinstance(content, str) or calls else None,
        finish_reason(said.get("ai.response.finishReason"), said.get("gen_ai.response.finish_reasons")),
        counts.usage_of(tokens, is_apart=False),
        {**{known: said[key] for key, known in AI_SETTINGS.items() if said.get(key) is not None}, **_tools(tools), **(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
            if isinstance(schema, dict) else {})},
        text(about.get("sessionId")) or text(about.get("conversationId")), text(about.get("userId")),
        text(said.get("ai.telemetry.functionId")))


def _ai_turns(turn: Fields) -> list[Fields]:
    """A message of the SDK as messages of a chat: each result of a tool is one of its own."""
    role, content = str(turn.get("role") or "user"), turn.get("content")
    if not isinstance(content, list):
        return [message(role, content)]
    texts, calls, results = list[str](), list[Fields](), list[Fields]()
    for part in objects(content):
        match part:
            case {"type": "text", "text": str(said)}:
                texts.append(said)
            case {"type": "tool-call"}:
                calls.append(_call(part.get("toolCallId"), part.get("toolName"), part.get("input", part.get("args"))))
            case {"type": "tool-result"}:
                result = part.get("output", part.get("result"))
                value = fields_of(result).get("value", result) if fields_of(result).get("type") else result
                results.append({"role": "tool", "tool_call_id": str(part.get("toolCallId")), "content": _text(value)})
            case {"type": "reasoning" | "redacted-reasoning"}:
                pass
            case _:
                raise BadRowError(f"a message has a part of type {str(part.get('type'))[:32]!r}")
    return [*results, *([message(role, "".join(texts), tool_calls=calls)] if texts or calls or not results else [])]


def _tools(tools: list[Any]) -> Fields:
    """Functions as a chat has them, from any of the forms that spans have."""
    functions = []
    for tool in tools:
        about = fields_of(tool)
        inner = fields_of(about.get("function")) or about
        parameters = inner.get("parameters", inner.get("inputSchema", inner.get("input_schema")))
        if text(inner.get("name")):
            functions.append({"type": "function", "function": {**({"description": inner["description"]} if text(
                inner.get("description")) else {}), "name": inner["name"], "parameters": parameters if isinstance(
                    parameters, dict) else {"type": "object"}}})
    return {"tools": functions} if functions else {}


def _call(id: object, name: object, arguments: object) -> Fields:
    return {"id": str(id or name), "type": "function", "function": {"name": str(name), "arguments": (
        arguments if isinstance(arguments, str) else json.dumps(arguments or {}))}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
