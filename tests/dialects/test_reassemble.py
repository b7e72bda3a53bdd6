"""A stream put together is the body that the same request without `stream` gets; a broken one gives what there was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.dialects.bodies import Kind
from brise.dialects.streams import AssembledStream, assemble, progress_of
from brise.dialects.table import named
from tests.cpu_time import cpu_s
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_body, chat_events, encode
from tests.serve.live import Live, live

CALLS = [("weather", '{"city": "Genève"}'), ("time", "{}")]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"x": {"type": "integer", "enum": [1, 2]}}, "required": ["x"],
    "additionalProperties": False}}}


def stream(events: Sequence[object]) -> bytes:
    return b"".join(encode(event) for event in events)


def reassemble(kind: Kind, stream: bytes) -> AssembledStream:
    return assemble(named(kind), stream)


def chunk(*deltas: dict[str, Any], finish: str | None = None, **more: object) -> dict[str, Any]:
    """One chunk with a choice for each delta."""
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [
        {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        for index, delta in enumerate(deltas)], **more}


def message(*events: object, kind: Kind = "chat") -> dict[str, Any]:
    body = reassemble(kind, stream([*events, "[DONE]"])).body
    assert body is not None
    return dict(body["choices"][0]["message"])


@pytest.mark.parametrize(("text", "calls"), [("one two three", ()), ("", CALLS), ("a", CALLS), ("", ())])
def test_a_chat_is_the_body_without_stream(text: str, calls: Sequence[tuple[str, str]]) -> None:
    made = reassemble("chat", stream(chat_events(text, calls, with_usage=True)))
    assert made.body == chat_body(text, calls) and made.error is None


@given(st.lists(st.text(max_size=5), max_size=8), st.lists(st.text(max_size=5), max_size=8))
def test_however_texts_are_cut_into_pieces_they_are_the_same(first: list[str], second: list[str]) -> None:
    events = [chunk({"content": a}, {"content": b}) for a, b in zip(first, second, strict=False)]
    more = min(len(first), len(second))
    events += [chunk({"content": a}) for a in first[more:]] + [chunk({}, {"content": b}) for b in second[more:]]
    made = reassemble("chat", stream([*events, chunk({}, {}, finish="stop"), "[DONE]"]))
    assert made.error is None and made.body is not None
    texts = ["".join(choice["message"]["content"] or "") for choice in made.body["choices"]]
    assert texts == ["".join(first), "".join(second)]


@given(st.data())
def test_a_stream_cut_anywhere_gives_what_there_was(data: st.DataObject) -> None:
    whole = stream(chat_events("one two Genève", CALLS))
    made = reassemble("chat", whole[:data.draw(st.integers(0, len(whole) - 1))])
    if made.body is None:
        assert made.error is not None
        return
    found = made.body["choices"][0]["message"] if made.body["choices"] else {}
    assert "one two Genève".startswith(found.get("content") or "")
    for call, (name, arguments) in zip(found.get("tool_calls", ()), CALLS, strict=False):
        assert call["function"]["name"] == name and arguments.startswith(call["function"]["arguments"])
    finish = made.body["choices"][0]["finish_reason"] if made.body["choices"] else None
    assert finish is not None or made.error is not None


@given(st.binary(max_size=200), st.sampled_from(["chat", "completion", "responses", "messages", "other"]))
def test_any_bytes_give_something_and_never_an_exception(noise: bytes, kind: Kind) -> None:
    for text in (noise, b"data: " + noise + b"\n\n", stream(chat_events("a b"))[:40] + noise):
        reassemble(kind, text)


JSON = st.recursive(st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([
                        "choices", "delta", "index", "content", "tool_calls", "function", "type", "error", "usage",
                        "response", "item", "output_index", "content_index", "message", "content_block", "id",
                        "logprobs", "name", "arguments", "text"]), inner, max_size=4), max_leaves=12)


@given(st.lists(JSON, max_size=4), st.sampled_from(["chat", "completion", "responses", "messages"]))
def test_any_json_gives_something_and_never_an_exception(events: list[Any], kind: Kind) -> None:
    reassemble(kind, stream(events))


@given(st.lists(st.sampled_from([
    {"type": "message_start", "message": {"content": []}}, {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": None}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"content": "no list", "summary": [1]}},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "x"},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 1, "delta": "x"},
    {"type": "response.completed", "response": None}, {"type": "message_delta", "delta": 3, "usage": []}])))
def test_typed_events_in_any_order(events: list[dict[str, Any]]) -> None:
    for kind in ("responses", "messages"):
        reassemble(kind, stream(events))  # type: ignore[arg-type]


def test_pieces_of_several_calls_may_alternate() -> None:
    found = message(
        chunk({"tool_calls": [{"index": index, "id": id, "function": {"name": name, "arguments": ""}}
                              for index, id, name in ((1, "b", "g"), (0, "a", "f"))]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\""}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}))
    assert {call["id"]: call["function"] for call in found["tool_calls"]} == {
        "a": {"name": "f", "arguments": '{"x":1}'}, "b": {"name": "g", "arguments": "{}"}}


def test_calls_that_share_an_index_are_told_apart_by_id() -> None:
    found = message(*(chunk({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": {
        "name": "f", "arguments": f'{{"{id}":1}}'}}]}) for id in "ab"))
    assert [(call["id"], call["function"]["arguments"]) for call in found["tool_calls"]] == [
        ("a", '{"a":1}'), ("b", '{"b":1}')]


def calls_of(*pieces: dict[str, Any] | list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Name and arguments of the calls that these pieces make."""
    found = message(*(chunk({"tool_calls": piece if isinstance(piece, list) else [piece]}) for piece in pieces))
    return [(call["function"]["name"], call["function"]["arguments"]) for call in found["tool_calls"]]


def piece(arguments: str, name: str | None = None, **more: object) -> dict[str, Any]:
    return {**more, "function": {"arguments": arguments, **({} if name is None else {"name": name})}}


@pytest.mark.parametrize("more", [{"index": 0, "id": ""}, {"index": 0}, {"id": None}, {"index": 0, "id": None}])
def test_calls_without_ids_are_told_apart_by_whole_arguments(more: dict[str, Any]) -> None:
    two = [("f", '{"x": "A}{"}'), ("f", '{"x": "B"}')]
    assert calls_of(*(piece(arguments, name, **more) for name, arguments in two)) == two
    assert calls_of([piece(arguments, name, **more) for name, arguments in two]) == two
    assert calls_of(piece("{}", "f", **more), piece('{"y": 1}', "g", **more)) == [("f", "{}"), ("g", '{"y": 1}')]
    # The name in every piece of one call makes no second one.
    assert calls_of(*(piece(part, "f", **more) for part in ('{"x"', ": {", "}}"))) == [("f", '{"x": {}}')]
    assert calls_of(piece("", "get_", **more), piece('{"x"', "weather", **more), piece(":1}", **more)) == [
        ("get_weather", '{"x":1}')]
    assert calls_of(piece('{"x', "f", **more), piece('": 1}', **more)) == [("f", '{"x": 1}')]


def test_a_call_without_an_id_is_trained_with_one() -> None:
    body = reassemble("chat", stream([chunk({"tool_calls": [piece("{}", "f", index=0, id="")]}),
                                      chunk({}, finish="tool_calls"), "[DONE]"])).body
    assert body is not None and named("chat").chat_answer(body)["tool_calls"][0]["id"] == "call_0"


def test_a_name_and_an_id_in_every_piece_are_no_pieces() -> None:
    found = message(*(chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {
        "name": "f", "arguments": piece}}]}) for piece in ("{", "}")))
    assert found["tool_calls"] == [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def test_reasoning_and_refusals_are_fields_of_their_own() -> None:
    assert message(chunk({"role": "assistant", "reasoning_content": "let me"}), chunk({"reasoning_content": " see"}),
                   chunk({"content": "4"})) == {
        "role": "assistant", "content": "4", "refusal": None, "reasoning_content": "let me see"}
    assert message(chunk({"role": "assistant", "content": "", "refusal": None}), chunk({"refusal": "I "}),
                   chunk({"refusal": "won't"})) == {"role": "assistant", "content": None, "refusal": "I won't"}


def test_parts_grow_part_by_part() -> None:
    def thinking(text: str) -> dict[str, Any]:
        return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}

    assert message(chunk(thinking("a")), chunk(thinking("b")), chunk({"content": "so"}),
                   chunk({"content": " it is"}))["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "ab"}]}, {"type": "text", "text": "so it is"}]


def test_text_before_parts_is_a_part() -> None:
    assert message(chunk({"content": "so "}), chunk({"content": [{"type": "text", "text": "it"}]}),
                   chunk({"content": [{"type": "text", "text": " is"}, {"type": "reference", "ids": [1]}]}),
                   chunk({"content": "."}))["content"] == [
        {"type": "text", "text": "so it is"}, {"type": "reference", "ids": [1]}, {"type": "text", "text": "."}]


def test_a_response_without_output_at_its_end_is_made_of_what_came_before() -> None:
    begun = {"type": "message", "role": "assistant", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        *({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": text}
          for text in ("Hel", "lo")), {"type": "response.output_item.done", "output_index": 0, "item": begun},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
        {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": []}}]
    made = reassemble("responses", stream(events))
    assert made.error is None and made.body == {"id": "r", "status": "completed", "output": [
        {**begun, "content": [{"type": "output_text", "text": "Hello"}]}, {"type": "function_call", "arguments": "{}"}]}


def growing(number: int) -> dict[str, bytes]:
    """Long streams of several dialects, in small pieces."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    return {
        "chat": stream([chunk({"content": [thought, {"type": "text", "text": "x"}], "reasoning": "y", "tool_calls": [
            piece("[" * 9, "f", index=0)]})] * number),
        "responses": stream([{"type": "response.output_text.delta", "output_index": 0, "content_index": 0,
                              "delta": "x" * 20}] * number),
        "messages": stream([{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                            *[{"type": "content_block_delta", "index": 0, "delta": {"text": "x" * 20}},
                              {"type": "content_block_delta", "index": 0, "delta": {
                                  "type": "citations_delta", "citation": {}}}] * number])}


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_a_long_stream_takes_time_in_proportion_to_its_length(kind: Kind) -> None:
    def seconds(number: int) -> float:
        sent = growing(number)[kind]
        return cpu_s(lambda: (reassemble(kind, sent), progress_of(named(kind), sent)))

    assert seconds(8_000) < 24 * max(seconds(1_000), 0.01)


def test_logprobs_are_one_list() -> None:
    one, two = {"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}
    events = [chunk({"content": token["token"]}) for token in (one, two)]
    for event, token in zip(events, (one, two), strict=True):
        event["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    body = reassemble("chat", stream([*events, chunk({}, finish="stop"), "[DONE]"])).body
    assert body is not None and body["choices"][0]["logprobs"] == {"content": [one, two], "refusal": None}


def test_fields_of_other_servers_are_kept_and_padding_is_not() -> None:
    event = chunk({"content": "a"}, obfuscation="xyz", provider="p")
    event["choices"][0]["stop_reason"] = 7
    body = reassemble("chat", stream([event, chunk({}, finish="stop"), "[DONE]"])).body
    assert body is not None and body["provider"] == "p" and "obfuscation" not in body
    assert body["choices"][0]["stop_reason"] == 7 and "usage" not in body


@pytest.mark.parametrize(("events", "error"), [
    ([chunk({"content": "a"})], "the stream ended before its answer did"), ([], "the stream holds no answer"),
    ([chunk({"content": "a"}), {"error": {"message": "overloaded", "code": 1}}], "overloaded"),
    ([chunk({"content": "a"}), "{broken", "[DONE]"], "event 2 is no JSON object"),
    ([chunk({"content": "a"}, finish="stop")], None)])
def test_what_is_wrong_with_a_stream_is_noted(events: list[object], error: str | None) -> None:
    found = reassemble("chat", stream(events)).error
    assert found is None if error is None else found is not None and error in found


def test_anthropic_messages() -> None:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "stop_reason": None,
                                              "usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}, {"type": "ping"},
        *({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": text}} for text in "ab"),
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "f",
                                                                      "input": {}}},
        *({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": text}}
          for text in ('{"x":', "1}")),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 9}}, {"type": "message_stop"}]
    sent = b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
    made = reassemble("messages", sent)
    assert made.error is None and made.body == {
        "id": "m", "role": "assistant", "stop_reason": "tool_use", "usage": {"input_tokens": 5, "output_tokens": 9},
        "content": [{"type": "thinking", "thinking": "hm", "signature": "sig"}, {"type": "text", "text": "ab"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model("Hello there!")) as running:
        yield running


@pytest.mark.parametrize(("path", "kind", "body"), [
    ("/v1/chat/completions", "chat", {"n": 2, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", "chat", {"max_tokens": 3}), ("/v1/chat/completions", "chat", {
        "tools": [TOOL], "tool_choice": "required", "max_tokens": 400}),
    ("/v1/completions", "completion", {"prompt": ["hi", "you"], "logprobs": 1, "echo": True, "max_tokens": 4}),
    ("/v1/responses", "responses", {"input": "hi"})])
def test_our_own_server_streams_what_it_answers_whole(server: Live, path: str, kind: Kind,
                                                      body: dict[str, Any]) -> None:
    asked = {"model": "stub", "temperature": 0, **({"messages": [{"role": "user", "content": "hi"}]}
                                                   if kind == "chat" else {}), **body}
    with_usage = {} if kind == "responses" else {"stream_options": {"include_usage": True}}
    whole = server.post(path, asked).json()
    made = reassemble(kind, server.post(path, {**asked, "stream": True, **with_usage}).content)
    assert made.error is None and without_chance(made.body) == without_chance(whole)


def without_chance(value: Any) -> Any:
    """Without ids and times, and without how much of the prompt was cached, which differ from request to request."""
    if isinstance(value, dict):
        return {name: without_chance(item) for name, item in value.items()
                if name not in ("id", "created", "created_at", "cached_tokens")}
    return [without_chance(item) for item in value] if isinstance(value, list) else value
