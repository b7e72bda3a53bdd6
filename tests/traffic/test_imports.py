"""Traffic that other systems captured becomes exchanges: all rows, or none and what is wrong with which line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brise.dialects.bodies import Usage
from brise.errors import EvidenceError
from brise.traffic.imports.read import Format, read
from brise.traffic.records import Exchange

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
START = "2026-03-01T10:00:00.000Z"
START_S = 1772359200.0
GENERATION: dict[str, Any] = {
    "id": "o1", "traceId": "t1", "type": "GENERATION", "name": "answer", "startTime": START,
    "endTime": "2026-03-01T10:00:01.500Z", "completionStartTime": "2026-03-01T10:00:00.250Z", "model": "gpt-4o",
    "modelParameters": {"temperature": 0.5}, "input": MESSAGES, "output": {"role": "assistant", "content": "hello"},
    "usage": {"input": 7, "output": 2, "total": 9, "unit": "TOKENS"}, "totalCost": 0.01, "level": "DEFAULT"}


def write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def one(path: Path, format: Format = "auto") -> Exchange:
    found = read([path], format)
    assert not found.bad
    exchange, = found.exchanges
    return exchange


def said(exchange: Exchange) -> Any:
    assert exchange.response is not None
    return exchange.response["choices"][0]["message"]


def asked(exchange: Exchange) -> Any:
    assert exchange.request is not None
    return exchange.request["messages"]


def test_rows_for_fine_tuning(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 1}
    found = one(write(tmp_path, "triage.jsonl", {"messages": [*MESSAGES, answer], "tools": tools, "model": "gpt-4o",
                                                 "conversation": "c"}))
    assert asked(found) == MESSAGES and said(found)["tool_calls"] == [CALL] and "weight" not in said(found)
    assert (found.task, found.model, found.conversation, found.mode, found.status) == (
        "triage", "gpt-4o", "c", "hosted", 200)
    assert found.request is not None and found.request["tools"] == tools
    assert asked(one(write(tmp_path, "p.jsonl", {"prompt": "a", "completion": "b"}))) == [
        {"role": "user", "content": "a"}]


def test_a_batch_has_two_files(tmp_path: Path) -> None:
    body = {"model": "gpt-4o", "messages": MESSAGES}
    answered = {"id": "chatcmpl-1", "created": START_S, "model": "gpt-4o-2026", "system_fingerprint": "fp", "choices": [
        {"message": {"role": "assistant", "content": "hello"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    asked_for = write(tmp_path, "in.jsonl", *({"custom_id": id, "method": "POST", "url": "/v1/chat/completions",
                                               "body": body} for id in "ab"))
    answers = write(tmp_path, "out.jsonl", {"id": "r", "custom_id": "b", "response": {
        "status_code": 429, "body": {"error": {"message": "slow down"}}}, "error": None}, {
        "id": "r", "custom_id": "a", "response": {"status_code": 200, "body": answered}, "error": None})
    found = {exchange.status: exchange for exchange in read([answers, asked_for]).exchanges}
    good, bad = found[200], found[502]
    assert (good.at_s, good.served_by, good.fingerprint, good.usage) == (START_S, "gpt-4o-2026", "fp", Usage(7, 2))
    assert said(good)["content"] == "hello" and (bad.mode, bad.error) == ("failed", "slow down")
    assert "has no response" in read([asked_for]).bad[0][1] and "in none of the files" in read([answers]).bad[0][1]


def test_langfuse_generations(tmp_path: Path) -> None:
    found = one(write(tmp_path, "o.jsonl", {**GENERATION, "sessionId": "s1", "userId": "anna", "traceName": "triage"}))
    assert asked(found) == MESSAGES and said(found)["content"] == "hello"
    assert (found.at_s, found.total_s, found.first_token_s) == (START_S, 1.5, 0.25)
    assert (found.task, found.conversation, found.subject, found.usage, found.cost_usd) == (
        "triage", "s1", "anna", Usage(7, 2), 0.01)
    assert found.request is not None and found.request["temperature"] == 0.5


def test_langfuse_traces_carry_what_their_observations_lack(tmp_path: Path) -> None:
    trace = {"id": "t1", "timestamp": START, "name": "triage", "userId": "anna", "sessionId": "s1", "observations": [
        GENERATION, {"id": "o2", "type": "SPAN", "startTime": START, "name": "database"}]}
    path = tmp_path / "trace.json"
    for whole in (trace, [trace], {"data": [trace], "meta": {"page": 1}}):
        path.write_text(json.dumps(whole))
        found = read([path])
        assert [(each.task, each.subject, each.conversation) for each in found.exchanges] == [("triage", "anna", "s1")]
        assert found.passed_over == 1 and not found.bad


def test_langfuse_tables_and_buckets(tmp_path: Path) -> None:
    row = {"id": "o1", "trace_id": "t1", "type": "GENERATION", "start_time": "2026-03-01 10:00:00.000000",
           "end_time": "2026-03-01 10:00:02.000000", "provided_model_name": "gpt-4o", "input": json.dumps(MESSAGES),
           "output": json.dumps({"role": "assistant", "content": "hello,\n\"you\""}), "usage_details": json.dumps(
               {"input": 7, "output": 2}), "cost_details": json.dumps({"total": 0.5}), "user_id": ""}
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(row))
        table.writeheader()
        table.writerow(row)
    found = one(path)
    assert said(found)["content"] == 'hello,\n"you"' and (found.total_s, found.usage, found.cost_usd) == (
        2.0, Usage(7, 2), 0.5)
    assert found.subject is None and found == one(write(tmp_path, "bucket.jsonl", row))


@pytest.mark.parametrize(("given", "messages"), [
    ("hi", MESSAGES[1:]), (MESSAGES[1], MESSAGES[1:]), ({"messages": MESSAGES, "tools": []}, MESSAGES),
    ({"prompt": "hi"}, MESSAGES[1:])])
def test_langfuse_inputs(tmp_path: Path, given: object, messages: object) -> None:
    assert asked(one(write(tmp_path, "o.jsonl", {**GENERATION, "input": given}))) == messages


@pytest.mark.parametrize(("given", "content"), [
    ("hello", "hello"), ({"choices": [{"message": {"content": "hello"}}]}, "hello"), ({"completion": "hello"}, "hello"),
    ([{"role": "assistant", "content": "hello"}], "hello"), ({"label": "x"}, '{"label": "x"}')])
def test_langfuse_outputs(tmp_path: Path, given: object, content: str) -> None:
    assert said(one(write(tmp_path, "o.jsonl", {**GENERATION, "output": given})))["content"] == content


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    def typed(value: Any) -> dict[str, Any]:
        match value:
            case bool():
                return {"boolValue": value}
            case int():
                return {"intValue": str(value)}
            case float():
                return {"doubleValue": value}
            case list():
                return {"arrayValue": {"values": [typed(item) for item in value]}}
            case dict():
                return {"kvlistValue": {"values": attributes(value)}}
            case _:
                return {"stringValue": value}
    return [{"key": key, "value": typed(value)} for key, value in values.items()]


BASE = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2026", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.request.temperature": 0.5, "gen_ai.conversation.id": "c1"}
NEW_IN = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]},
          {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {"x": 1}}]},
          {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "1"}]}]
NEW_OUT = [{"role": "assistant", "finish_reason": "stop", "parts": [
    {"type": "reasoning", "content": "hm"}, {"type": "text", "content": "hello"}]}]


def otlp(said_: dict[str, Any], events: list[dict[str, Any]] | None = None, **span: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": attributes({"service.name": "shop"})}, "scopeSpans": [{
        "scope": {}, "spans": [
            {"traceId": "t", "spanId": "db", "name": "select", "startTimeUnixNano": "1", "attributes": []},
            {"traceId": "t", "spanId": "s", "name": "chat gpt-4o", "startTimeUnixNano": str(int(START_S * 1e9)),
             "endTimeUnixNano": str(int((START_S + 1.5) * 1e9)), "attributes": attributes({**BASE, **said_}),
             "events": events or [], "status": {}, **span}]}]}]}


def event(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "timeUnixNano": "1", "attributes": attributes(values)}


NEWEST = {"gen_ai.input.messages": NEW_IN, "gen_ai.output.messages": NEW_OUT,
          "gen_ai.system_instructions": [{"type": "text", "content": "s"}]}
AS_TEXT = {name: json.dumps(value) for name, value in NEWEST.items()}
OLD = [event("gen_ai.system.message", content="s"), event("gen_ai.user.message", content="hi"),
       event("gen_ai.assistant.message", tool_calls=json.dumps([CALL])),
       event("gen_ai.tool.message", content="1", id="c1"),
       event("gen_ai.choice", index=0, finish_reason="stop", message=json.dumps({"content": "hello"}))]
NUMBERED = {
    "gen_ai.prompt.0.role": "system", "gen_ai.prompt.0.content": "s", "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": "hi", "gen_ai.prompt.2.role": "assistant", "gen_ai.prompt.2.tool_calls.0.id": "c1",
    "gen_ai.prompt.2.tool_calls.0.name": "f", "gen_ai.prompt.2.tool_calls.0.arguments": '{"x": 1}',
    "gen_ai.prompt.3.role": "tool", "gen_ai.prompt.3.content": "1", "gen_ai.prompt.3.tool_call_id": "c1",
    "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "hello"}


@pytest.mark.parametrize("export", [
    otlp(NEWEST), otlp(AS_TEXT), otlp({}, [{**event("gen_ai.client.inference.operation.details", **NEWEST)}]),
    otlp({}, OLD), otlp(NUMBERED)], ids=["newest", "as text", "details", "events", "numbered"])
def test_open_telemetry_in_all_its_ways(tmp_path: Path, export: dict[str, Any]) -> None:
    found = read([write(tmp_path, "spans.jsonl", export)])
    assert not found.bad and found.passed_over == 1
    exchange, = found.exchanges
    assert [(message["role"], message.get("content")) for message in asked(exchange)] == [
        ("system", "s"), ("user", "hi"), ("assistant", ""), ("tool", "1")]
    assert asked(exchange)[2]["tool_calls"] == [CALL] and asked(exchange)[3]["tool_call_id"] == "c1"
    assert said(exchange)["content"] == "hello"
    assert (exchange.at_s, exchange.total_s, exchange.usage, exchange.conversation, exchange.task) == (
        START_S, 1.5, Usage(7, 2), "c1", "shop")


def test_open_telemetry_events_may_be_log_records(tmp_path: Path) -> None:
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [
        {"spanId": "s", "eventName": "gen_ai.user.message", "body": {"kvlistValue": {"values": attributes(
            {"content": "hi"})}}},
        {"spanId": "s", "attributes": attributes({"event.name": "gen_ai.choice"}), "body": {"kvlistValue": {
            "values": attributes({"message": {"content": "hello"}})}}}]}]}]}
    found = read([write(tmp_path, "logs.jsonl", logs), write(tmp_path, "spans.jsonl", otlp({}))])
    assert [said(each)["content"] for each in found.exchanges] == ["hello"] and not found.bad


def test_a_span_a_line_and_a_span_that_failed(tmp_path: Path) -> None:
    span = {"name": "chat", "context": {"trace_id": "t", "span_id": "s"}, "start_time": START, "end_time": START,
            "attributes": {**BASE, **AS_TEXT}, "events": [], "status": {"status_code": "OK"}}
    assert said(one(write(tmp_path, "span.jsonl", span)))["content"] == "hello"
    failed = otlp({"gen_ai.input.messages": NEW_IN}, status={"code": 2, "message": "timed out"})
    exchange, = read([write(tmp_path, "failed.jsonl", failed)]).exchanges
    assert (exchange.mode, exchange.error, exchange.response) == ("failed", "timed out", None)


@pytest.mark.parametrize(("name", "row", "reason"), [
    ("a.jsonl", "{broken", "not JSON"), ("a.jsonl", "[1]", "no JSON object"), ("a.jsonl", {"x": 1}, "has neither"),
    ("a.jsonl", {"messages": MESSAGES}, "last message is not an assistant's"),
    ("a.jsonl", {**GENERATION, "startTime": "noon"}, "its time is 'noon'"),
    ("a.jsonl", {**GENERATION, "input": 7}, "neither text nor messages"),
    ("a.jsonl", {**GENERATION, "output": None}, "no output"), ("a.jsonl", otlp({}), "the span holds no messages"),
    ("a.jsonl", {"custom_id": "a", "url": "/v1/batches", "body": {}}, "'/v1/batches'")])
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, name: str, row: object, reason: str) -> None:
    good = {"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}
    found = read([write(tmp_path, name, good, row, good)])
    (place, why), = found.bad
    assert place.startswith(f"{tmp_path / name}:2") and reason in why


@pytest.mark.parametrize(("name", "text", "reason"), [
    ("a.xml", "", "of no kind"), ("a.jsonl", "", "no row"), ("none.jsonl", None, "cannot read")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(EvidenceError, match=reason):
        read([tmp_path / name])


def test_the_same_row_has_the_same_id(tmp_path: Path) -> None:
    rows = [GENERATION, {**GENERATION, "id": "o2"}, otlp(NEWEST), {"prompt": "a", "completion": "b"}]
    first, second = ([each.id for each in read([write(tmp_path, name, *rows)]).exchanges]
                     for name in ("a.jsonl", "b.jsonl"))
    assert sorted(first) == sorted(second) and len(set(first)) == 4


NAMES = (
    "messages role content custom_id body response traceId type startTime input output observations resourceSpans "
    "scopeSpans spans attributes key value stringValue events name gen_ai.request.model gen_ai.input.messages parts "
    "context arrayValue values usage model meta status kvlistValue intValue resourceLogs scopeLogs logRecords").split()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**40) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["messages", "custom_id", "body", "traceId", "input", "output", "startTime",
                                        "resourceSpans", "attributes", "spanId", "events", "type", "resourceLogs"]),
                       VALUES, max_size=6), st.sampled_from(["auto", "openai", "langfuse", "otel"]))
def test_any_object_is_an_exchange_or_a_bad_row(tmp_path: Path, row: dict[str, Any], format: Format) -> None:
    read([write(tmp_path, "any.jsonl", row)], format)


@pytest.mark.parametrize(("counted", "right"), [
    ({"usageDetails": {"input": 86, "input_cached_tokens": 17817, "output": 20, "total": 17923}},
     Usage(17903, 20, 17817)),
    ({"usageDetails": {"input": 86, "input_cached_tokens": 17817, "output": 20}}, Usage(17903, 20, 17817)),
    ({"usageDetails": {"input": 100, "input_cached_tokens": 64, "output": 20, "total": 120}}, Usage(100, 20, 64)),
    ({"usageDetails": {"input": 3, "cache_read_input_tokens": 12304, "cache_creation_input_tokens": 2000,
                       "output": 550}}, Usage(14307, 550, 12304, 2000)),
    ({"usageDetails": {"input": 3, "input_cache_read": 100, "input_cache_creation": 20, "output": 5,
                       "output_reasoning_tokens": 30, "total": 158}}, Usage(123, 35, 100, 20, reasoning_tokens=30)),
    ({"usageDetails": {"input": "86", "output": 20.0, "total": None}}, Usage(86, 20)),
    ({"usageDetails": {"input": 86, "input_cached_tokens": -4, "output": 20}}, Usage(None, 20, None)),
    ({"usageDetails": {"input": 0, "output": 0, "total": 0}}, None), ({"usageDetails": {}}, None),
    ({"usageDetails": {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 64}}},
     Usage(100, 5, 64)),
    ({"usageDetails": json.dumps({"input": 1, "input_audio_tokens": 9, "output": 2, "output_audio_tokens": 4})},
     Usage(10, 6, audio_prompt_tokens=9, audio_completion_tokens=4)),
    ({"usage": {"input": 7, "output": 2, "total": 9, "unit": "TOKENS"}}, Usage(7, 2)),
    ({"usage": {"input": 7, "output": 2, "total": 9, "unit": "CHARACTERS"}}, None),
    ({"promptTokens": 7, "completionTokens": 2, "totalTokens": 9}, Usage(7, 2))])
def test_langfuse_counts_its_cache_apart(tmp_path: Path, counted: dict[str, Any], right: Usage | None) -> None:
    row = {name: value for name, value in GENERATION.items() if not name.lower().startswith("usage")}
    assert one(write(tmp_path, "o.jsonl", {**row, **counted})).usage == right


@pytest.mark.parametrize(("counted", "right"), [
    ({"input_tokens": 100, "output_tokens": 5, "cache_read.input_tokens": 64, "cache_creation.input_tokens": 8,
      "reasoning.output_tokens": 3}, Usage(100, 5, 64, 8, reasoning_tokens=3)),
    ({"input_tokens": 3, "output_tokens": 550, "cache_read_input_tokens": 12304, "cache_creation_input_tokens": 2000},
     Usage(14307, 550, 12304, 2000)),
    ({"input_tokens": 50, "output_tokens": 5, "cache_read.input_tokens": 40, "total_tokens": 95}, Usage(90, 5, 40)),
    ({"prompt_tokens": 7, "completion_tokens": 2, "details.cache_read_tokens": 4, "details.input_tokens": 3},
     Usage(7, 2, 4)), ({"input_tokens": -7, "output_tokens": 2}, Usage(None, 2)),
    ({"input_tokens": 0, "output_tokens": 0}, None)])
def test_open_telemetry_counts_its_cache_with_the_prompt(tmp_path: Path, counted: dict[str, int],
                                                         right: Usage | None) -> None:
    export = otlp({**NEWEST, **{f"gen_ai.usage.{name}": value for name, value in counted.items()}})
    assert read([write(tmp_path, "spans.jsonl", export)]).exchanges[0].usage == right
