"""OpenAI's rows: chats as for fine-tuning, stored completions, and what a proxy wrote down of a request and its answer.

    {"messages": [..., {"role": "assistant", ...}], "tools": [...]}            a row for fine-tuning, or of our export
    {"object": "chat.completion", "choices": [...], "messages": [...]}         a stored completion with its messages
    {"request": {"messages": [...], ...}, "response": {"choices": [...]}}      a request and its answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brise.dialects import table
from brise.dialects.bodies import Body
from brise.traffic.imports import forms
from brise.traffic.imports.row import (
    BadRowError,
    ImportedRow,
    chat_body,
    exchange,
    fields_of,
    finish_reason,
    identity,
    seconds,
    text,
)
from brise.traffic.records import Exchange

OTHERS: Mapping[str, str] = {  # marks of rows that hold no captured request, and what has them
    "conversations": "ShareGPT's form ('conversations'): give its turns as 'messages' with 'role' and 'content'",
    "instruction": "Alpaca's form ('instruction'): give 'prompt' and 'completion', or 'messages'",
    "chosen": "a preference pair ('chosen', 'rejected'), which is no captured request"}


def read(rows: Sequence[ImportedRow]) -> Iterator[tuple[ImportedRow, Exchange | BadRowError]]:
    """An exchange for each row."""
    for row in rows:
        try:
            yield row, _exchange(row)
        except BadRowError as error:
            yield row, error


def _exchange(row: ImportedRow) -> Exchange:
    value = row.value
    if isinstance(value.get("choices"), list) or value.get("object") in ("chat.completion", "response"):
        return _stored(row)
    if isinstance(value.get("request"), dict) and isinstance(value.get("response"), dict):
        return _of_pair(row, value["request"], value["response"])
    return _of_chat(row)


def _of_chat(row: ImportedRow) -> Exchange:
    value = row.value
    messages: Any = value.get("messages")
    if messages is None and isinstance(value.get("prompt"), str) and isinstance(value.get("completion"), str):
        messages = [{"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": value["completion"]}]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        known = next((what for mark, what in OTHERS.items() if mark in value), None)
        raise BadRowError("it has neither 'messages' nor 'prompt' and 'completion', nor a batch's 'custom_id'"
                          if known is None else f"it is {known}")
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise BadRowError("its last message is not an assistant's: there is no answer in it")
    meta = fields_of(value.get("meta"))
    model = text(value.get("model")) or text(meta.get("model")) or text(value.get("provider")) or "unknown"
    at_s = seconds(meta.get("at")) or row.at_s
    turns = [{name: field for name, field in message.items() if name not in ("weight", "finish_reason")}
             for message in messages]
    request = {"model": model, "messages": turns[:-1],
               **{name: value[name] for name in ("tools", "parallel_tool_calls") if value.get(name) is not None}}
    finish = finish_reason(messages[-1], {"finish_reason": value.get("finish_reason")}, meta, value.get("metadata"))
    return exchange(identity(at_s if "at" in meta else 0, "openai", dict(value)), at_s, "chat", request,
                    chat_body(turns[-1], model, finish, None), task=text(meta.get("task")) or row.stem, model=model,
                    conversation=str(value.get("conversation") or value.get("conversation_id") or ""),
                    served_by=model)


def _stored(row: ImportedRow) -> Exchange:
    """A completion or a response that OpenAI kept, which a list of them gives without what was asked."""
    value = row.value
    is_chat = "choices" in value or value.get("object") == "chat.completion"
    name = "messages" if is_chat else "input"
    asked = value.get(name)
    asked = asked.get("data") if isinstance(asked, dict) else asked
    if not asked or not isinstance(asked, list | str):
        where = "/v1/chat/completions/ID/messages" if is_chat else "/v1/responses/ID/input_items"
        raise BadRowError(f"it is a {'stored completion' if is_chat else 'stored response'} of OpenAI without what was "
                          f"asked: add the answer of GET {where} to it as {name!r}")
    request = {"model": value.get("model"), name: asked, **{
        field: value[field] for field in ("tools", "tool_choice", "temperature", "top_p", "instructions")
        if value.get(field) is not None}}
    answer = {field: item for field, item in value.items() if field != name}
    return _of_pair(row, request, answer)


def _of_pair(row: ImportedRow, request: Body, response: Body) -> Exchange:
    kind = forms.kind_of(request, response)
    dialect = table.named(kind)
    about, meta = row.value, fields_of(row.value.get("metadata"))
    created = next((at for at in map(seconds, (about.get("created"), about.get("created_at"), about.get("timestamp"),
                                               response.get("created"), response.get("created_at")))
                    if at is not None), None)
    model = text(request.get("model")) or text(response.get("model")) or "unknown"
    return exchange(identity(created or 0, "stored", dict(about)), created or row.at_s, kind, request, response,
                    path=dialect.path, task=text(meta.get("task")) or row.stem, model=model,
                    conversation=text(meta.get("conversation")) or "", subject=text(request.get("user")),
                    served_by=text(response.get("model")) or model,
                    fingerprint=text(response.get("system_fingerprint")), usage=dialect.usage(response))
