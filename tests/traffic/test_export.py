"""What is exported can be trained on and evaluated, says whose answer it is, and says why the rest is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from brise.data.parse_row import RowRules
from brise.data.read_rows import read_rows
from brise.evals import data
from brise.traffic.export import ExportReport, TrafficExportOptions, rows
from brise.traffic.records import Exchange, Label, RecordedAnswer
from brise.traffic.scrub import Scrubber
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from tests.traffic.records import answer, exchange, label

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def body(text: str | None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": None, **message}}]}


def export(store: SqlStore, exchanges: Sequence[Exchange], answers: Sequence[RecordedAnswer] = (),
           labels: Sequence[Label] = (),
           options: TrafficExportOptions = TrafficExportOptions()) -> tuple[list[dict[str, Any]], ExportReport]:  # noqa: B008
    store.add(exchanges, answers, labels)
    report = ExportReport()
    return list(rows(store, Query(), options, None, report)), report


def test_tune_and_eval_read_what_is_exported(store: SqlStore, tmp_path: Path) -> None:
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    history = [*first, body("A")["choices"][0]["message"], {"role": "user", "content": "b"}]
    made, report = export(store, [
        exchange("1", 1.0, conversation="talk", request={"messages": first}, response=body("A"), model="gpt-4o"),
        exchange("2", 2.0, conversation="talk", request={"messages": history, "tools": [TOOL]}, model="gpt-4o",
                 response=body(None, tool_calls=[{**CALL, "index": 0}]))])
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    read, examples = read_rows([path], RowRules()), data.read([path], data.Reading())
    assert not read.bad and report.rows == 2 and [each.provider for each in read.examples] == ["openai"] * 2
    assert {each.conversation for each in read.examples} == {"talk"}
    assert [each.reference.text for each in examples] == ["A", ""] and examples[1].reference.calls[0].name == "f"
    assert [message.get("weight") for message in made[1]["messages"]] == [None, None, 0, None, None]


def test_whose_answer(store: SqlStore) -> None:
    small = exchange("small", 1.0, mode="small", response=body("small said"), served_by="mine")
    drawn = [answer("audit", "small", role="audit", response=body("hosted said"), served_by="gpt-4o"),
             answer("shadow", "small", response=body("shadow said"), served_by="mine")]
    scored = [label("l", "small", score=0.25, answer="shadow", answer_score=1.0)]

    def said(**options: Any) -> tuple[str | None, str | None]:
        made, _ = export(store, [small], drawn, scored, TrafficExportOptions(**options))
        return (made[0]["messages"][-1]["content"], made[0].get("provider")) if made else (None, None)

    assert said(whose="hosted") == ("hosted said", "openai")
    assert said(whose="served") == ("small said", None)
    assert said(whose="best") == ("shadow said", None)
    assert said(whose="best", least_score=1.0) == ("shadow said", None)


@pytest.mark.parametrize(("model", "option", "provider"), [
    ("claude-sonnet", None, "anthropic"), ("own-70b", None, "own-70b"), ("own-70b", "", None),
    ("gpt-5", "acme", "acme")])
def test_a_hosted_answer_names_its_provider(store: SqlStore, model: str, option: str | None,
                                            provider: str | None) -> None:
    made, _ = export(store, [exchange("a", served_by=model)], options=TrafficExportOptions(provider=option))
    assert made[0].get("provider") == provider


@pytest.mark.parametrize(("changes", "reason"), [
    ({"request": None, "response": None}, "its content was not kept"), ({"response": None}, "its answer was not kept"),
    ({"status": 500, "error": "x"}, "answered with an error"), ({"mode": "small"}, "the large model did not answer"),
    ({"kind": "embedding", "request": {"input": "x"}}, "'embedding' is no chat"),
    ({"response": body("")}, "its answer is empty"), ({"response": body(None, refusal="no")}, "refused"),
    ({"request": {"messages": [{"role": "function", "content": "x"}]}}, "in OpenAI's old way"),
    ({"request": {"messages": "x"}}, "no list of objects"),
    ({"request": {"messages": [{"role": "user", "content": ""}]}}, "is empty"),
    ({"request": {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "web_search"}]}}, "'web_search'")])
def test_what_cannot_be_a_row_is_left_out_with_its_reason(store: SqlStore, changes: dict[str, Any],
                                                          reason: str) -> None:
    made, report = export(store, [exchange("bad", **changes), exchange("good", 2.0)])
    assert [row["id"] for row in made] == ["good"] and report.rows == 1
    assert len(report.left_out) == 1 and reason in next(iter(report.left_out))


def stopped(kind: str, reason: str) -> dict[str, Any]:
    """An answer in a dialect that stopped for this reason."""
    if kind == "messages":
        return {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "the first half"}],
                "stop_reason": {"length": "max_tokens", "content_filter": "refusal"}[reason]}
    if kind == "responses":
        why = {"length": "max_output_tokens", "content_filter": "content_filter"}[reason]
        return {"status": "incomplete", "incomplete_details": {"reason": why}, "output": [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "the first half"}]}]}
    if kind == "completion":
        return {"choices": [{"text": "the first half", "finish_reason": reason}]}
    return {"choices": [{**body("the first half")["choices"][0], "finish_reason": reason}]}


@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize("kind", ["chat", "completion", "messages", "responses"])
@pytest.mark.parametrize("whose", ["hosted", "served"])
def test_an_answer_that_is_not_whole_is_no_row(store: SqlStore, kind: str, reason: str, whose: Any) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a"}
    made, report = export(store, [exchange("cut", kind=kind, request=asked, response=stopped(kind, reason)),
                                  exchange("good", 2.0)], options=TrafficExportOptions(whose=whose))
    assert [row["id"] for row in made] == ["good"]
    assert [(number, reason in why) for why, number in report.left_out.items()] == [(1, True)]


@pytest.mark.parametrize("failure", [
    {"error": {"message": "upstream is down"}}, {"choices": []}, {"choices": None},
    {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "error"}]}])
def test_a_failure_that_an_older_version_took_for_an_answer_is_no_row(store: SqlStore, failure: Any) -> None:
    made, report = export(store, [exchange("bad", response=failure), exchange("good", 2.0)])
    assert [row["id"] for row in made] == ["good"] and "it is no answer" in next(iter(report.left_out))


def test_the_best_answer_is_a_whole_one(store: SqlStore) -> None:
    served = exchange("a", response=stopped("chat", "length"))
    made, _ = export(store, [served], [answer("s", "a", response=body("whole"))],
                     [label("l", "a", score=1.0, answer="s", answer_score=0.5)], TrafficExportOptions(whose="best"))
    assert [row["messages"][-1]["content"] for row in made] == ["whole"]


def test_half_characters_cost_nothing(store: SqlStore) -> None:
    half = {"messages": [{"role": "user", "content": "cut emoji: \ud83d"}, {
        "role": "assistant", "content": None, "tool_calls": [
            {**CALL, "function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "\udc00 \0"}]}
    store.add([exchange("a", request=half), exchange("b", 2.0)])
    report = ExportReport()
    made = list(rows(store, Query(), TrafficExportOptions(), Scrubber(), report))
    assert len(made) == 2 and not report.left_out
    json.dumps(made, ensure_ascii=False).encode()
    assert made[0]["messages"][0]["content"] == "cut emoji: \ufffd"


def test_other_dialects_become_chats(store: SqlStore) -> None:
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    made, report = export(store, [
        exchange("a", 1.0, kind="messages", request={
            "system": [{"type": "text", "text": "s"}], "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]}]},
            response={"content": [{"type": "text", "text": "so"}]}),
        exchange("b", 2.0, kind="responses", request={"instructions": "s", "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, response={"output": [
                {"type": "reasoning"}, {"type": "message", "role": "assistant", "content": [
                    {"type": "output_text", "text": "let me"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}),
        exchange("c", 3.0, kind="completion", request={"prompt": "hi"}, response={"choices": [{"text": "ho"}]}),
        exchange("d", 4.0, kind="messages", request={"messages": [{"role": "user", "content": [
            {"type": "image", "source": image}, {"type": "text", "text": "what?"}]}]},
            response={"content": [{"type": "text", "text": "a cat"}]})])
    assert not report.left_out and [[message["role"] for message in row["messages"]] for row in made] == [
        ["system", "user", "assistant", "tool", "assistant"], ["system", "user", "assistant"], ["user", "assistant"],
        ["user", "assistant"]]
    assert made[0]["tools"] == [TOOL] and made[0]["messages"][2]["tool_calls"][0]["function"]["name"] == "f"
    assert made[1]["messages"][-1]["tool_calls"][0]["id"] == "c" and made[1]["messages"][-1]["content"] == "let me"
    assert made[3]["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,AAAA"


def test_one_scrubber_goes_through_the_whole_export(store: SqlStore) -> None:
    store.add([exchange(id, float(id), request={"messages": [{"role": "user", "content": "I am a@b.io"}]})
               for id in "12"])
    scrubber = Scrubber()
    made = list(rows(store, Query(), TrafficExportOptions(), scrubber, ExportReport()))
    assert {row["messages"][0]["content"] for row in made} == {"I am [EMAIL_1]"} and scrubber.counts == {"EMAIL": 2}


def test_arguments_are_exported_in_the_order_of_their_schema(store: SqlStore) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"x": {}, "y": {}}}}}
    call = {**CALL, "function": {"name": "f", "arguments": '{"y": 1, "x": 2}'}}
    made, _ = export(store, [exchange("1", request={"messages": [{"role": "user", "content": "a"}], "tools": [tool]},
                                      response=body(None, tool_calls=[{**call, "index": 0}]))])
    assert made[0]["messages"][-1]["tool_calls"][0]["function"]["arguments"] == '{"x": 2, "y": 1}'
