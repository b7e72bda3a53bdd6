"""OpenTelemetry: spans with gen_ai.* attributes, as OTLP JSON (of a file exporter) or one span a line.

Messages stand in one of four places, by the age of the conventions and of who wrote the spans:

    gen_ai.input.messages, gen_ai.output.messages   attributes of the span, or of its event operation.details
    gen_ai.user.message, ..., gen_ai.choice          events of the span, or log records with its id
    gen_ai.content.prompt, gen_ai.content.completion events with the attributes gen_ai.prompt, gen_ai.completion
    gen_ai.prompt.0.role, gen_ai.completion.0...     attributes with numbers

Spans of OpenInference and of the AI SDK have names of their own: other_spans.py.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from brise.traffic.imports import counts, otel_values, other_spans
from brise.traffic.imports.otel_values import Fields, attributes, objects
from brise.traffic.imports.other_spans import SpanCall
from brise.traffic.imports.row import (
    BadRowError,
    ImportedRow,
    PassedOverError,
    chat_body,
    exchange,
    fields_of,
    finish_reason,
    identity,
    message,
    parsed,
    seconds,
    text,
)
from brise.traffic.records import Exchange

ROLES: Mapping[str, str] = {"gen_ai.system.message": "system", "gen_ai.user.message": "user",
                            "gen_ai.assistant.message": "assistant", "gen_ai.tool.message": "tool"}
USAGE = "gen_ai.usage."
CHATS = ("chat", "text_completion", "generate_content", "completion", "")
PARAMETERS: Mapping[str, str] = {
    "gen_ai.request.temperature": "temperature", "gen_ai.request.top_p": "top_p",
    "gen_ai.request.max_tokens": "max_tokens", "gen_ai.request.seed": "seed",
    "gen_ai.request.frequency_penalty": "frequency_penalty", "gen_ai.request.presence_penalty": "presence_penalty"}


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether a row looks like OTLP, or like a span."""
    return any(name in value for name in ("resourceSpans", "resourceLogs", "resource_spans")) or (
        "attributes" in value and any(name in value for name in ("spanId", "span_id", "context")))


def read(rows: Sequence[ImportedRow]) -> Iterator[tuple[ImportedRow, Exchange | BadRowError | PassedOverError]]:
    """An exchange for each span of a request to a model."""
    events: defaultdict[str, list[Fields]] = defaultdict(list)
    for row in rows:
        for record in otel_values.log_records(row.value):
            try:
                events[str(record.get("spanId", record.get("span_id")))].append(otel_values.event_of_record(record))
            except BadRowError as error:
                yield row, error
    for row in rows:
        for place, span, resource in otel_values.spans(row):
            inner = replace(row, place=place)
            try:
                said = {**attributes(resource), **attributes(span.get("attributes"))}
                yield inner, _exchange(span, said, events, inner)
            except (BadRowError, PassedOverError) as error:
                yield inner, error


def _exchange(span: Fields, said: Fields, logged: Mapping[str, list[Fields]], row: ImportedRow) -> Exchange:
    at_s = seconds(span.get("startTimeUnixNano") or span.get("start_time_unix_nano") or span.get("start_time"))
    end_s = seconds(span.get("endTimeUnixNano") or span.get("end_time_unix_nano") or span.get("end_time"))
    context = fields_of(span.get("context"))
    span_id = str(span.get("spanId") or span.get("span_id") or context.get("span_id") or "")
    trace_id = str(span.get("traceId") or span.get("trace_id") or context.get("trace_id") or "")
    call = other_spans.of_ai_sdk(said, str(span.get("name") or "")) or other_spans.of_openinference(said) or _call_of(
        said, [*map(_event, objects(span.get("events"))), *logged.get(span_id, ())])
    if at_s is None:
        raise BadRowError("the span has no start time")
    status = fields_of(span.get("status"))
    failed = str(status.get("code") or status.get("status_code")) in ("2", "STATUS_CODE_ERROR", "ERROR")
    error = (text(status.get("message")) or text(said.get("error.type")) or "the span failed") if failed else None
    if not call.messages:
        raise BadRowError("the span holds no messages")
    if call.answer is None and error is None:
        raise BadRowError("the span holds no answer")
    model = call.model or "unknown"
    served_by = text(said.get("gen_ai.response.model")) or text(said.get("ai.response.model")) or model
    request = {"model": model, "messages": call.messages, **call.more}
    ids = [trace_id, span_id] if span_id else [trace_id, span_id, request, call.answer, row.place]
    return exchange(
        identity(at_s, "otel", *ids), at_s, "chat", request,
        None if call.answer is None else chat_body(call.answer, served_by, call.finish, call.usage), error=error,
        task=call.task or text(said.get("gen_ai.agent.name")) or text(said.get("service.name")) or model, model=model,
        conversation=call.conversation or text(said.get("gen_ai.conversation.id")) or trace_id,
        subject=call.subject or text(said.get("enduser.id")) or text(said.get("user.id")), served_by=served_by,
        fingerprint=text(said.get("gen_ai.openai.response.system_fingerprint")
                         or said.get("openai.response.system_fingerprint")),
        usage=call.usage, total_s=max(0.0, (end_s or at_s) - at_s))


def _call_of(said: Fields, events: Sequence[Fields]) -> SpanCall:
    """A call by the conventions of OpenTelemetry, in any of their ages."""
    model = text(said.get("gen_ai.request.model")) or text(said.get("gen_ai.response.model"))
    if model is None or str(said.get("gen_ai.operation.name") or "") not in CHATS:
        raise PassedOverError
    messages, answer = _messages(said, events)
    finish = finish_reason(None if answer is None else answer.pop("finish_reason", None),
                           said.get("gen_ai.response.finish_reasons"))
    usage = counts.usage_of({name.removeprefix(USAGE): value for name, value in said.items() if name.startswith(USAGE)},
                            is_apart=False)
    return SpanCall(model, messages, answer, finish, usage, {**_tools(said), **{
        name: said[known] for known, name in PARAMETERS.items() if known in said}})


def _messages(said: Fields, events: Sequence[Fields]) -> tuple[list[Fields], Fields | None]:
    """The request and the answer."""
    for event in events:
        if event["name"] == "gen_ai.client.inference.operation.details":
            said = {**event, **said}
    asked, answers = _parts(said.get("gen_ai.input.messages")), _parts(said.get("gen_ai.output.messages"))
    if not asked:
        asked, answers = _of_events(events)
    if not asked:
        asked, answers = _numbered(said, "gen_ai.prompt"), _numbered(said, "gen_ai.completion")
    system = _parts([{"role": "system", "parts": parsed(said["gen_ai.system_instructions"])}]) if (
        "gen_ai.system_instructions" in said) else []
    for turn in asked:
        turn.pop("finish_reason", None)
    return [*system, *asked], answers[0] if answers else None


def _parts(value: object) -> list[Fields]:
    """Messages of the newest conventions as messages of a chat."""
    out: list[Fields] = []
    found = parsed(value)
    for each in found if isinstance(found, list) else ():
        if not isinstance(each, dict):
            raise BadRowError("its messages are no objects")
        role, parts = str(each.get("role") or "user"), each.get("parts")
        if not isinstance(parts, list):
            out.append(message(role, each.get("content"), tool_calls=_calls(each.get("tool_calls")),
                               finish_reason=finish_reason(each)))
            continue
        texts, calls = list[str](), list[Fields]()
        for part in parts:
            match part:
                case {"type": "text", "content": content}:
                    texts.append(str(content))
                case {"type": "tool_call", "name": name}:
                    calls.append(_call(part.get("id"), name, part.get("arguments")))
                case {"type": "tool_call_response"}:
                    out.append({"role": "tool", "tool_call_id": part.get("id"), "content": _text(
                        part.get("response", part.get("result")))})
                case {"type": "reasoning"}:
                    pass
                case _:
                    kind = part.get("type") if isinstance(part, dict) else part
                    raise BadRowError(f"a message has a part of type {str(kind)[:32]!r}")
        if texts or calls or not parts:
            out.append(message(role, "\n".join(texts), tool_calls=calls, finish_reason=finish_reason(each)))
    return out


def _of_events(events: Sequence[Fields]) -> tuple[list[Fields], list[Fields]]:
    """The older conventions: one event for each message."""
    asked, answers = list[Fields](), list[Fields]()
    for event in events:
        name = str(event["name"])
        if name in ROLES:
            asked.append(message(str(event.get("role") or ROLES[name]), _text(event.get("content")),
                                 tool_calls=_calls(event.get("tool_calls")),
                                 tool_call_id=event.get("id") if ROLES[name] == "tool" else None))
        elif name == "gen_ai.choice":
            inner = parsed(event.get("message"))
            inner = inner if isinstance(inner, dict) else event
            answers.append(message("assistant", _text(inner.get("content")),
                                   tool_calls=_calls(inner.get("tool_calls") or event.get("tool_calls")),
                                   finish_reason=finish_reason(event, inner)))
        elif name == "gen_ai.content.prompt":
            asked += _plain(event.get("gen_ai.prompt"), "user")
        elif name == "gen_ai.content.completion":
            answers += _plain(event.get("gen_ai.completion"), "assistant")
    return asked, answers


def _plain(value: object, role: str) -> list[Fields]:
    found = parsed(value)
    if isinstance(found, list):
        return [dict(each) for each in found if isinstance(each, dict)]
    return [] if found is None else [message(role, _text(found))]


def _numbered(said: Fields, prefix: str) -> list[Fields]:
    """gen_ai.prompt.0.content and so on."""
    out: defaultdict[int, Fields] = defaultdict(dict)
    for name, value in said.items():
        found = re.fullmatch(rf"{re.escape(prefix)}\.(\d{{1,4}})\.(.+)", name)
        if found:
            out[int(found[1])][found[2]] = value
    return [message(str(fields.get("role") or ("assistant" if prefix.endswith("completion") else "user")),
                    _text(parsed(fields.get("content"))), tool_call_id=fields.get("tool_call_id"), tool_calls=[
                        _call(fields.get(f"tool_calls.{at}.id"), fields[f"tool_calls.{at}.name"],
                              fields.get(f"tool_calls.{at}.arguments"))
                        for at in range(64) if f"tool_calls.{at}.name" in fields], finish_reason=finish_reason(fields))
            for _, fields in sorted(out.items())]


def _calls(value: object) -> list[Fields]:
    found = parsed(value)
    calls = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    made = [(call, fields_of(call.get("function")) or call) for call in calls]
    return [_call(call.get("id"), function.get("name"), function.get("arguments")) for call, function in made]


def _call(id: object, name: object, arguments: object) -> Fields:
    return {"id": str(id or name), "type": "function", "function": {"name": str(name), "arguments": (
        arguments if isinstance(arguments, str) else json.dumps(arguments or {}))}}


def _tools(said: Fields) -> Fields:
    found = parsed(said.get("gen_ai.tool.definitions"))
    tools = [tool if "function" in tool else {"type": "function", "function": {
        name: value for name, value in tool.items() if name in ("name", "description", "parameters")}}
             for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []
    return {"tools": tools} if tools else {}


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _event(event: Fields) -> Fields:
    return {**attributes(event.get("attributes")), "name": event.get("name") or ""}
