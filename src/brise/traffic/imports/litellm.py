"""LiteLLM: the proxy's spend logs, and the records that its callbacks write. Both have `call_type`.

Tokens are counted as OpenAI does, whoever answered: the prompt with what a cache had. A request stands in `messages`,
or, in newer versions, in `proxy_server_request`; where the proxy was told not to keep it, both are empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brise.dialects import table, token_counts
from brise.dialects.bodies import Usage
from brise.traffic.imports import forms
from brise.traffic.imports.row import (
    BadRowError,
    ImportedRow,
    PassedOverError,
    exchange,
    fields_of,
    identity,
    number,
    parsed,
    seconds,
    text,
)
from brise.traffic.records import Exchange

CALLS = ("completion", "text_completion", "responses", "anthropic_messages", "generate_content", "chat")
PARAMETERS = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "tools", "tool_choice",
              "response_format", "presence_penalty", "frequency_penalty", "reasoning_effort", "instructions", "system")


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of LiteLLM's."""
    return isinstance(value.get("call_type"), str) and any(
        name in value for name in ("startTime", "start_time", "messages", "response", "proxy_server_request"))


def read(rows: Sequence[ImportedRow]) -> Iterator[tuple[ImportedRow, Exchange | BadRowError | PassedOverError]]:
    """An exchange for each call of a model that writes text."""
    for row in rows:
        try:
            yield row, _exchange({name: parsed(value) for name, value in row.value.items()}, row)
        except (BadRowError, PassedOverError) as error:
            yield row, error


def _exchange(value: Mapping[str, Any], row: ImportedRow) -> Exchange:
    name = str(value.get("call_type"))
    if name.removesuffix("_stream").removeprefix("a").removeprefix("_") not in (
            *CALLS, *(each.removeprefix("a") for each in CALLS)):
        raise PassedOverError
    at_s = seconds(value.get("startTime", value.get("start_time")))
    if at_s is None:
        raise BadRowError(f"its startTime is {str(value.get('startTime'))[:40]!r}, ISO 8601 or seconds are read")
    meta = fields_of(value.get("metadata"))
    model = text(value.get("model_group")) or text(value.get("model")) or "unknown"
    end_s = seconds(value.get("endTime", value.get("end_time")))
    first_s = seconds(value.get("completionStartTime", value.get("completion_start_time")))
    error = _error(value, meta)
    usage = _usage(value, meta)
    asked, answered = _asked(value), value.get("response")
    if asked is None:
        raise BadRowError("it holds no messages: the proxy keeps them with store_prompts_in_spend_logs")
    if not answered and error is None:
        raise BadRowError("it holds no response: the proxy keeps it with store_prompts_in_spend_logs")
    call = forms.call(asked, answered or None, model, _parameters(value), usage)
    request_id = text(value.get("request_id")) or text(value.get("id"))
    return exchange(
        identity(at_s, "litellm", request_id or [dict(row.value), row.place]), at_s, call.kind, call.request,
        call.response, path=table.named(call.kind).path, error=error, task=model, model=model,
        conversation=text(value.get("session_id")) or text(value.get("trace_id")) or "",
        subject=text(value.get("end_user")) or text(value.get("user")), served_by=text(value.get("model")) or model,
        fingerprint=text(fields_of(answered).get("system_fingerprint")), usage=usage, cost_usd=_cost(value),
        total_s=max(0.0, (end_s or at_s) - at_s), first_token_s=None if first_s is None else max(0.0, first_s - at_s))


def _asked(value: Mapping[str, Any]) -> Any:
    """What was asked: the row's messages, or the body that the proxy got."""
    body = fields_of(value.get("proxy_server_request"))
    body = fields_of(parsed(body.get("body"))) or body
    for place in (value.get("messages"), body):
        if isinstance(place, dict) and not any(name in place for name in (
                "messages", "input", "prompt", "contents", "role")):
            continue
        if place:
            kept = {name: body[name] for name in PARAMETERS if body.get(name) is not None}
            return {"messages": place, **kept} if isinstance(place, list) and forms.are_messages(place) else place
    return None


def _parameters(value: Mapping[str, Any]) -> dict[str, Any]:
    found = fields_of(value.get("model_parameters"))
    return {name: found[name] for name in PARAMETERS if found.get(name) is not None}


def _error(value: Mapping[str, Any], meta: Mapping[str, Any]) -> str | None:
    about = fields_of(meta.get("error_information")) or fields_of(value.get("error_information"))
    said = text(value.get("error_str")) or text(about.get("error_message"))
    failed = "failure" in (value.get("status"), meta.get("status"))
    return said or text(about.get("error_class")) or "the call failed" if failed else None


def _usage(value: Mapping[str, Any], meta: Mapping[str, Any]) -> Usage | None:
    """As the answer has it, or the proxy's own record, or the row's counts."""
    response, more = fields_of(value.get("response")), fields_of(meta.get("additional_usage_values"))
    counts = {name: value.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    for usage in (response.get("usage"), meta.get("usage_object"), {**counts, **more}):
        if isinstance(usage, dict) and usage:
            found = token_counts.of_openai({"usage": usage})
            if found is not None:
                return found
    return None


def _cost(value: Mapping[str, Any]) -> float | None:
    spend = number(value.get("spend"))
    return number(value.get("response_cost")) if spend is None else spend
