"""A row is told by marks that only its format has; it keeps why its answer stopped; a changed one is a bad row."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brise.traffic import log
from brise.traffic.export import ExportReport, TrafficExportOptions, rows
from brise.traffic.imports.read import read
from brise.traffic.log import ImportOptions
from brise.traffic.records import Exchange
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import EVERYTHING
from brise.traffic.stores import open_store
from tests.traffic.test_imports import BASE, CALL, GENERATION, MESSAGES, NEW_IN, START, event, one, otlp, said, write

CUT: dict[str, Any] = {"role": "assistant", "content": "cut in the mid"}
LITELLM: dict[str, Any] = {
    "request_id": "chatcmpl-1", "call_type": "acompletion", "spend": 0.25, "total_tokens": 30, "prompt_tokens": 10,
    "completion_tokens": 20, "startTime": START, "endTime": "2026-03-01T10:00:01.500Z", "model": "gpt-4o",
    "user": "u1", "metadata": {}, "session_id": "s1", "messages": MESSAGES, "response": {
        "id": "chatcmpl-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"},
                                         "finish_reason": "stop"}]}}
INFERENCE: dict[str, Any] = {
    "openinference.span.kind": "LLM", "llm.model_name": "gpt-4o", "session.id": "s1", "user.id": "u1",
    "llm.input_messages.0.message.role": "system", "llm.input_messages.0.message.content": "s",
    "llm.input_messages.1.message.role": "user",
    "llm.input_messages.1.message.contents.0.message_content.type": "text",
    "llm.input_messages.1.message.contents.0.message_content.text": "hi",
    "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "hello",
    "llm.token_count.prompt": 7, "llm.token_count.completion": 2, "llm.token_count.prompt_details.cache_read": 3,
    "llm.invocation_parameters": '{"temperature": 0.5}'}
AI_SDK: dict[str, Any] = {
    "operation.name": "ai.generateText.doGenerate", "gen_ai.request.model": "gpt-4o",
    "ai.prompt.messages": json.dumps([{"role": "system", "content": "s"}, {"role": "user", "content": [
        {"type": "text", "text": "hi"}]}]), "ai.response.text": "hello", "ai.response.finishReason": "stop",
    "ai.usage.promptTokens": 7, "ai.usage.completionTokens": 2, "ai.telemetry.metadata.sessionId": "s1",
    "ai.telemetry.metadata.userId": "u1"}
GEMINI: dict[str, Any] = {
    **GENERATION, "input": {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "config": {
        "systemInstruction": {"parts": [{"text": "s"}]}}}, "output": {"candidates": [
            {"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}]}}
RESPONSES: dict[str, Any] = {
    **GENERATION, "input": [{"role": "system", "content": "s"}, {"role": "user", "content": [
        {"type": "input_text", "text": "hi"}]}], "output": {"object": "response", "status": "completed", "output": [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}]}}
ANTHROPIC: dict[str, Any] = {
    **GENERATION, "input": {"system": "s", "messages": MESSAGES[1:]}, "output": {
        "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn"}}
STORED: dict[str, Any] = {**LITELLM["response"], "object": "chat.completion", "model": "gpt-4o", "created": 1750000000,
                          "messages": {"object": "list", "data": MESSAGES}}
PAIR: dict[str, Any] = {"request": {"model": "gpt-4o", "messages": MESSAGES}, "response": LITELLM["response"]}


def bare(said_: dict[str, Any]) -> dict[str, Any]:
    """A span with these attributes only."""
    return {"name": "call", "context": {"trace_id": "t", "span_id": "s"}, "start_time": START, "end_time": START,
            "attributes": said_, "events": [], "status": {}}


FORMATS: dict[str, dict[str, Any]] = {
    "litellm": LITELLM, "openinference": bare(INFERENCE), "ai sdk": bare(AI_SDK), "gemini": GEMINI,
    "responses": RESPONSES, "anthropic": ANTHROPIC, "stored": STORED, "pair": PAIR}


def exported(store: SqlStore, exchange: Exchange) -> list[dict[str, Any]]:
    store.add([exchange])
    return list(rows(store, EVERYTHING, TrafficExportOptions(), None, ExportReport()))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_the_same_row(tmp_path: Path, store: SqlStore, name: str) -> None:
    row, = exported(store, one(write(tmp_path, "a.jsonl", FORMATS[name])))
    assert [(turn["role"], turn["content"]) for turn in row["messages"]] == [
        ("system", "s"), ("user", "hi"), ("assistant", "hello")]


def test_what_a_row_of_litellm_says(tmp_path: Path) -> None:
    found = one(write(tmp_path, "a.jsonl", LITELLM))
    assert (found.cost_usd, found.total_s, found.conversation, found.subject, found.model) == (
        0.25, 1.5, "s1", "u1", "gpt-4o")
    assert found.usage is not None and (found.usage.prompt_tokens, found.usage.completion_tokens) == (10, 20)
    cached = {"usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "prompt_tokens_details": {
        "cached_tokens": 60}, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 60}}
    usage = one(write(tmp_path, "b.jsonl", {**LITELLM, "response": {**LITELLM["response"], **cached}})).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.cache_write_tokens) == (100, 60, 30)


def test_prompts_that_litellm_keeps_elsewhere_or_not_at_all(tmp_path: Path) -> None:
    body = {"model": "gpt-4o", "messages": MESSAGES, "temperature": 0.5}
    found = one(write(tmp_path, "a.jsonl", {**LITELLM, "messages": {}, "proxy_server_request": json.dumps(body)}))
    assert found.request is not None and found.request["messages"] == MESSAGES and found.request["temperature"] == 0.5
    bad = read([write(tmp_path, "b.jsonl", {**LITELLM, "messages": {}}, {**LITELLM, "response": "{}"},
                      {**LITELLM, "call_type": "aembedding"})])
    assert bad.passed_over == 1 and all("store_prompts_in_spend_logs" in why for _, why in bad.bad)
    failed = one(write(tmp_path, "c.jsonl", {**LITELLM, "response": {}, "status": "failure", "metadata": {
        "error_information": {"error_message": "too many requests"}}}))
    assert (failed.status, failed.error) == (502, "too many requests")


def test_what_other_spans_say(tmp_path: Path) -> None:
    for said_ in (INFERENCE, AI_SDK):
        found = one(write(tmp_path, "a.jsonl", bare(said_)))
        assert (found.conversation, found.subject, found.model) == ("s1", "u1", "gpt-4o")
        assert found.usage is not None and (found.usage.prompt_tokens, found.usage.completion_tokens) == (7, 2)
    others = [{**INFERENCE, "openinference.span.kind": "TOOL"}, {**AI_SDK, "operation.name": "ai.generateText"}]
    assert read([write(tmp_path, "b.jsonl", *map(bare, others))]).passed_over == 2


def test_calls_of_other_spans(tmp_path: Path) -> None:
    call = {"llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "f",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"x": 1}'}
    inference = {name: value for name, value in INFERENCE.items() if name != "llm.output_messages.0.message.content"}
    sdk = {name: value for name, value in AI_SDK.items() if name != "ai.response.text"} | {
        "ai.response.toolCalls": json.dumps([{"toolCallId": "c1", "toolName": "f", "args": '{"x": 1}'}])}
    for row in ({**inference, **call}, sdk):
        found = one(write(tmp_path, "a.jsonl", bare(row)))
        assert said(found)["tool_calls"] == [CALL]


@pytest.mark.parametrize("row", [
    {"messages": [*MESSAGES, {**CUT, "finish_reason": "length"}]},
    {"messages": [*MESSAGES, CUT], "finish_reason": "length"},
    {"messages": [*MESSAGES, CUT], "metadata": {"finish_reason": "length"}},
    {**GENERATION, "output": {**CUT, "finish_reason": "length"}},
    {**GENERATION, "output": {**CUT, "response_metadata": {"finish_reason": "length"}}},
    {**GENERATION, "output": {**CUT, "additional_kwargs": {"stop_reason": "max_tokens"}}},
    {**GENERATION, "output": "cut in the mid", "metadata": {"finish_reason": "length"}},
    {**GENERATION, "output": "cut in the mid", "metadata": json.dumps({"attributes": {
        "gen_ai.response.finish_reasons": '["length"]'}})},
    {**GENERATION, "output": [{**CUT, "finishReason": "MAX_TOKENS"}]},
    {**GEMINI, "output": {"candidates": [{**GEMINI["output"]["candidates"][0], "finishReason": "MAX_TOKENS"}]}},
    {**ANTHROPIC, "output": {**ANTHROPIC["output"], "stop_reason": "max_tokens"}},
    {**RESPONSES, "output": {**RESPONSES["output"], "status": "incomplete", "incomplete_details": {
        "reason": "max_output_tokens"}}},
    otlp({"gen_ai.input.messages": NEW_IN, "gen_ai.output.messages": [
        {"role": "assistant", "finish_reason": "length", "parts": [{"type": "text", "content": "cut"}]}]}),
    otlp({"gen_ai.response.finish_reasons": ["length"]}, [event("gen_ai.user.message", content="hi"), event(
        "gen_ai.choice", index=0, message={"content": "cut"})]),
    otlp({"gen_ai.response.finish_reasons": []}, [event("gen_ai.user.message", content="hi"), event(
        "gen_ai.choice", index=0, finish_reason="length", message=json.dumps({"content": "cut"}))]),
    otlp({"gen_ai.response.finish_reasons": "length", "gen_ai.prompt.0.content": "hi",
          "gen_ai.completion.0.content": "cut"}),
    otlp({"gen_ai.prompt.0.content": "hi", "gen_ai.completion.0.content": "cut",
          "gen_ai.completion.0.finish_reason": "max_tokens"}),
    bare({**AI_SDK, "ai.response.finishReason": "length"}),
    bare({**INFERENCE, "output.value": json.dumps({"choices": [{"finish_reason": "length"}]})}),
    {**STORED, "choices": [{**STORED["choices"][0], "finish_reason": "length"}]}])
def test_a_cut_answer_stays_cut_wherever_that_stands(tmp_path: Path, store: SqlStore, row: dict[str, Any]) -> None:
    exchange = one(write(tmp_path, "a.jsonl", row))
    store.add([exchange])
    report = ExportReport()
    assert not list(rows(store, EVERYTHING, TrafficExportOptions(), None, report))
    assert list(report.left_out) == ["the answer is cut (finish reason length)"]


@pytest.mark.parametrize("more", [{"session_id": "s"}, {"start_time": "noon"}, {"trace_id": "t", "timestamp": 1}])
def test_a_row_of_messages_is_a_chat_whatever_it_names_besides(tmp_path: Path, more: dict[str, Any]) -> None:
    found = one(write(tmp_path, "a.jsonl", {"messages": [*MESSAGES, {"role": "assistant", "content": "x"}], **more}))
    assert said(found)["content"] == "x"


@pytest.mark.parametrize(("row", "reason"), [
    ({**LITELLM["response"], "object": "chat.completion"}, "a stored completion of OpenAI without what was asked"),
    ({"object": "response", "output": []}, "a stored response"), ({"conversations": []}, "ShareGPT"),
    ({"instruction": "a", "output": "b"}, "Alpaca"), ({"chosen": [], "rejected": []}, "a preference pair")])
def test_what_cannot_be_read_is_named_as_what_it_is(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    (_, why), = read([write(tmp_path, "a.jsonl", row)]).bad
    assert reason in why


@pytest.mark.parametrize("value", [
    {"intValue": "abc"}, {"intValue": {}}, {"intValue": 1.5}, {"intValue": True}, {"stringValue": 5},
    {"boolValue": "yes"}, {"doubleValue": "much"}, {"arrayValue": 3}, {"arrayValue": {"values": 3}},
    {"kvlistValue": {"values": "x"}}, {"kvlistValue": []}, {"arrayValue": {"values": [{"intValue": "x"}]}}])
def test_a_typed_value_of_a_wrong_type_is_named(tmp_path: Path, value: dict[str, Any]) -> None:
    good, bad = otlp({"gen_ai.input.messages": NEW_IN, "gen_ai.output.messages": NEW_IN[:1]}), otlp({})
    bad["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["attributes"].append({"key": "x", "value": value})
    found = read([write(tmp_path, "a.jsonl", good, bad)])
    (place, why), = found.bad
    assert len(found.exchanges) == 1 and place == f"{tmp_path / 'a.jsonl'}:2, span 2" and "'x' has" in why


ODD = st.sampled_from([None, True, -1, 0, 7, 1.5, 10**400, 1e300, "", "x", "{", "[1]", "\ud800", "\0", [], {}, [[]],
                       [None], {"x": 1}, [{"role": 1}], {"values": 1}, {"attributes": 5}, "9" * 400])
ROWS = [*FORMATS.values(), GENERATION, otlp({"gen_ai.input.messages": NEW_IN}, [event("gen_ai.choice", message="x")]),
        {"messages": [*MESSAGES, CUT]}, {"custom_id": "a", "body": {"model": "m", "messages": MESSAGES}},
        {"custom_id": "a", "response": {"status_code": 200, "body": LITELLM["response"]}},
        otlp({**BASE, **INFERENCE}), {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"spanId": "s", "body": {
            "kvlistValue": {"values": []}}, "attributes": [{"key": "a", "value": {"intValue": "1"}}]}]}]}]}]


def places(value: Any) -> Iterator[Callable[[Any], None]]:
    """For each part of a JSON value what puts another one into its place."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield lambda other, key=key: value.__setitem__(key, other)
        yield from places(value[key])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROWS), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), ODD), min_size=1, max_size=3))
def test_a_changed_row_is_an_exchange_or_a_bad_row(tmp_path: Path, row: dict[str, Any],
                                                   changes: list[tuple[float, Any]]) -> None:
    changed = copy.deepcopy(row)
    for where, value in changes:
        ways = list(places(changed))
        ways[int(where * len(ways))](copy.deepcopy(value)) if ways else None
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(changed) + "\n" + json.dumps({"messages": [*MESSAGES, CUT]}) + "\n")
    for old in tmp_path.glob("store.sqlite*"):
        old.unlink()
    with closing(open_store(tmp_path / "store.sqlite", tmp_path)) as opened:
        log.import_files(opened, ImportOptions((path,), skip_bad=True), tmp_path)
        made = list(rows(opened, EVERYTHING, TrafficExportOptions(), None, ExportReport()))
    assert any(row["messages"][-1]["content"] == CUT["content"] for row in made)
