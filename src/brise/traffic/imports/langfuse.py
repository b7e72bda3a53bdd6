"""Langfuse: traces with their observations, observations alone (JSON, JSON lines), and the tables' CSV.

An observation of type GENERATION is a request to a model. Names come as `traceId` from the interface and as `trace_id`
from exports to a bucket; both are read. A trace without observations counts as one request, if it looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brise.dialects import table, token_counts
from brise.dialects.bodies import Usage
from brise.traffic.imports import counts, forms
from brise.traffic.imports.row import (
    BadRowError,
    ImportedRow,
    PassedOverError,
    exchange,
    identity,
    number,
    parsed,
    seconds,
    text,
)
from brise.traffic.records import Exchange

OTHER_TYPES = ("SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "GUARDRAIL", "EMBEDDING")
MARKS = ("observations", "provided_model_name")  # only such a row has them
SHARED_MARKS = ("trace_id", "start_time", "session_id", "timestamp")  # with an input, an output or a type of ours


BESIDE = ("input_usage", "prompt_tokens", "input_tokens", "output_usage", "completion_tokens", "output_tokens",
          "total_usage", "total_tokens")


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of Langfuse's. Rows of messages may name their session, too."""
    names = _snake(value).keys()
    is_observation = "input" in names or "output" in names or str(value.get("type")) in ("GENERATION", *OTHER_TYPES)
    return "messages" not in names and (not names.isdisjoint(MARKS) or (
        is_observation and not names.isdisjoint(SHARED_MARKS)))


def read(rows: Sequence[ImportedRow]) -> Iterator[tuple[ImportedRow, Exchange | BadRowError | PassedOverError]]:
    """An exchange for each generation."""
    for row in rows:
        value = _snake(row.value)
        observations = parsed(value.get("observations"))
        if isinstance(observations, list) and any(isinstance(each, dict) for each in observations):
            about = {name: value.get(name) for name in ("user_id", "session_id")} | {
                "trace_name": value.get("name"), "trace_id": value.get("id")}
            for index, each in enumerate(observations):
                inner = ImportedRow(row.value, f"{row.place}, observation {index}", row.at_s, row.stem)
                fields = _snake(each) if isinstance(each, dict) else {}
                yield inner, _made(about | {name: item for name, item in fields.items() if item is not None}, inner)
        else:
            yield row, _made(value, row)


def _made(value: Mapping[str, Any], row: ImportedRow) -> Exchange | BadRowError | PassedOverError:
    try:
        return _exchange(value, row)
    except (BadRowError, PassedOverError) as error:
        return error


def _exchange(value: Mapping[str, Any], row: ImportedRow) -> Exchange:
    kind = str(value.get("type") or "").upper()
    if kind in OTHER_TYPES:
        raise PassedOverError
    at_s = seconds(value.get("start_time") or value.get("timestamp"))
    if at_s is None:
        raise BadRowError(f"its time is {str(value.get('start_time') or value.get('timestamp'))[:40]!r}, "
                          "ISO 8601 is read")
    model = text(value.get("model")) or text(value.get("provided_model_name")) or "unknown"
    usage, end_s = _usage(value), seconds(value.get("end_time"))
    first_s = seconds(value.get("completion_start_time"))
    error = text(value.get("status_message")) if str(value.get("level")).upper() == "ERROR" else None
    call = forms.call(parsed(value.get("input")), parsed(value.get("output")), model,
                      _parameters(parsed(value.get("model_parameters"))), usage, {"metadata": value.get("metadata")})
    if call.response is None and error is None:
        raise BadRowError("it has no output")
    trace = text(value.get("trace_id")) or ""
    return exchange(
        identity(at_s, "langfuse", *([value["id"], trace] if value.get("id") else [dict(row.value), row.place])), at_s,
        call.kind, call.request, call.response, path=table.named(call.kind).path,
        task=text(value.get("trace_name")) or text(value.get("name")) or model, model=model, error=error,
        conversation=text(value.get("session_id")) or trace, subject=text(value.get("user_id")), served_by=model,
        usage=usage, cost_usd=_cost(value), total_s=max(0.0, (end_s or at_s) - at_s),
        first_token_s=None if first_s is None else max(0.0, first_s - at_s))


def _usage(value: Mapping[str, Any]) -> Usage | None:
    """As Langfuse counts, or as the server did if its own words were kept; beside them in the oldest exports."""
    for name in ("usage_details", "usage"):
        details = parsed(value.get(name))
        if isinstance(details, dict):
            found = _snake(details)
            if str(found.get("unit") or "TOKENS").upper() != "TOKENS":  # characters, images, seconds
                continue
            is_nested = any(isinstance(each, dict) for each in found.values())
            usage = (token_counts.of_openai({"usage": details}) if is_nested
                     else counts.usage_of(found, is_apart=True))
            if usage is not None:
                return usage
    return counts.usage_of({name: value.get(name) for name in BESIDE}, is_apart=True)


def _cost(value: Mapping[str, Any]) -> float | None:
    details = parsed(value.get("cost_details"))
    found = number(details.get("total")) if isinstance(details, dict) else None
    for name in ("total_cost", "calculated_total_cost"):
        found = number(value.get(name)) if found is None else found
    return found


def _parameters(value: Any) -> dict[str, Any]:
    """Parameters such as temperature."""
    return {name: field for name, field in value.items() if isinstance(field, int | float | str | bool)
            and name not in ("model", "messages", "stream")} if isinstance(value, dict) else {}


def _snake(value: Mapping[str, Any]) -> dict[str, Any]:
    """traceId as trace_id."""
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace(" ", "_"): field
            for name, field in value.items()}
