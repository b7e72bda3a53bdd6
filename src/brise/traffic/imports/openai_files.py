"""OpenAI's files: chat rows as for fine-tuning, and the requests and responses of a batch, which belong together.

    {"messages": [..., {"role": "assistant", ...}], "tools": [...]}            a row for fine-tuning, or of our export
    {"custom_id": "1", "method": "POST", "url": "/v1/...", "body": {...}}      a request of a batch
    {"custom_id": "1", "response": {"status_code": 200, "body": {...}}}        its response
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from brise.dialects import table
from brise.traffic.imports.row import (
    BadRowError,
    ImportedRow,
    chat_body,
    exchange,
    fields_of,
    identity,
    seconds,
    text,
    whole,
)
from brise.traffic.records import Exchange


def read(rows: Sequence[ImportedRow]) -> Iterator[tuple[ImportedRow, Exchange | BadRowError]]:
    """An exchange for each chat row and each request of a batch; a batch's files are given together."""
    requests = {row.value["custom_id"]: row for row in rows if _is_request(row)}
    responses = {row.value["custom_id"]: row for row in rows if _is_response(row)}
    for row in rows:
        try:
            if _is_request(row):
                yield row, _of_batch(row, responses.get(row.value["custom_id"]))
            elif _is_response(row):
                if row.value["custom_id"] not in requests:
                    raise BadRowError(f"it answers the request {str(row.value['custom_id'])[:64]!r} of a batch, "
                                      "which is in none of the files")
            else:
                yield row, _of_chat(row)
        except BadRowError as error:
            yield row, error


def _is_request(row: ImportedRow) -> bool:
    return isinstance(row.value.get("custom_id"), str) and isinstance(row.value.get("body"), dict)


def _is_response(row: ImportedRow) -> bool:
    return isinstance(row.value.get("custom_id"), str) and "response" in row.value


def _of_chat(row: ImportedRow) -> Exchange:
    value = row.value
    messages: Any = value.get("messages")
    if messages is None and isinstance(value.get("prompt"), str) and isinstance(value.get("completion"), str):
        messages = [{"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": value["completion"]}]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRowError("it has neither 'messages' nor 'prompt' and 'completion', nor a batch's 'custom_id'")
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise BadRowError("its last message is not an assistant's: there is no answer in it")
    meta = fields_of(value.get("meta"))
    model = text(value.get("model")) or text(meta.get("model")) or text(value.get("provider")) or "unknown"
    at_s = seconds(meta.get("at")) or row.at_s
    turns = [{name: field for name, field in message.items() if name != "weight"} for message in messages]
    request = {"model": model, "messages": turns[:-1],
               **{name: value[name] for name in ("tools", "parallel_tool_calls") if value.get(name) is not None}}
    return exchange(identity(at_s if "at" in meta else 0, "openai", dict(value)), at_s, "chat", request,
                    chat_body(turns[-1], model, None, None), task=text(meta.get("task")) or row.stem, model=model,
                    conversation=str(value.get("conversation") or value.get("conversation_id") or ""),
                    served_by=model)


def _of_batch(row: ImportedRow, answer: ImportedRow | None) -> Exchange:
    body, url = row.value["body"], str(row.value.get("url") or "/v1/chat/completions")
    dialect = table.BY_PATH.get(url)
    if dialect is None:
        raise BadRowError(f"its url is {url[:64]!r}; read are {', '.join(table.BY_PATH)}")
    if answer is None:
        raise BadRowError(f"the request {row.value['custom_id'][:64]!r} of a batch has no response in the files")
    response = fields_of(answer.value.get("response"))
    answer_body = response.get("body")
    status = whole(response.get("status_code"))
    problem: Any = answer.value.get("error") or (answer_body.get("error") if isinstance(answer_body, dict) else None)
    error = None if status == 200 and not problem else str(
        problem.get("message") if isinstance(problem, dict) else problem or f"status {status}")
    answer_body = answer_body if isinstance(answer_body, dict) else None
    at_s = (seconds(answer_body.get("created")) if answer_body is not None else None) or row.at_s
    model = text(body.get("model")) or "unknown"
    about = answer_body or {}
    return exchange(identity(at_s, "batch", row.value["custom_id"], body), at_s, dialect.name, body, answer_body,
                    task=model, model=model, path=url, error=error, served_by=text(about.get("model")),
                    fingerprint=text(about.get("system_fingerprint")), usage=dialect.usage(about))
