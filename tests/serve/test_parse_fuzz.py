"""A parser turns any JSON into a request, or raises a RequestError that can be shown to the client."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.errors import RequestError
from brise.serve.embeddings import parse_embedding
from brise.serve.error_response import error_body
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_completions import parse_completion
from brise.serve.openai_responses import parse_response
from tests.engine.stub import stub_model
from tests.profiles import examples
from tests.serve.live import Live, live
from tests.serve.test_parse_chat import CALL, TOOL, USER
from tests.text.test_json_text import JSON

CHAT = {"model": "m", "messages": [
    *USER, {"role": "assistant", "tool_calls": [CALL], "content": [{"type": "text", "text": "x"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"}], "tools": [TOOL], "tool_choice": {
        "type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
            {"type": "function", "function": {"name": "add"}}]}},
    "stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"1": 2}, "stop": ["a"], "n": 2,
    "temperature": 1, "metadata": {"a": "b"}, "logprobs": True, "top_logprobs": 2, "seed": 5,
    "response_format": {"type": "text"}, "max_tokens": 5}
SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
VALID: list[tuple[Callable[[Any], object], dict[str, object]]] = [
    (parse_chat, CHAT),
    (parse_completion, {"model": "m", "prompt": [[1, 2], "a"], "logprobs": 2, "echo": True, "best_of": 1,
                        "n": 1}),
    (parse_embedding, {"model": "m", "input": ["a", [1]], "encoding_format": "float", "dimensions": 3}),
    (parse_response, {"model": "m", "text": {"format": SCHEMA}, "instructions": "a", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "tools": []})]
TOOLS = {"messages": USER, "tools": [TOOL], "tool_choice": "required", "max_tokens": 4}
OVER_HTTP = [
    ("/v1/chat/completions", {**CHAT, "stream": False, "stream_options": None}),
    ("/v1/chat/completions", TOOLS),
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 4, "response_format": {
        "type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {
            "x": {"type": "string", "pattern": "a+"}}, "required": ["x"]}}}}),
    ("/v1/completions", {**VALID[1][1], "max_tokens": 4}), ("/v1/embeddings", VALID[2][1]),
    ("/v1/responses", {**VALID[3][1], "max_output_tokens": 4})]
PARSERS = [parse for parse, _ in VALID]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model("Hello there!", pooling="mean")) as running:
        yield running
        running.wait_idle()


@pytest.mark.parametrize(("parse", "body"), VALID)
def test_the_bodies_to_damage_are_valid(parse: Callable[[Any], object],
                                               body: dict[str, object]) -> None:
    assert parse(body)


@settings(max_examples=examples(60))
@given(st.sampled_from(PARSERS), JSON)
def test_random_json(parse: Callable[[Any], object], body: object) -> None:
    answered(parse, body)


@settings(max_examples=examples(400))
@given(st.data())
def test_one_damaged_place(data: st.DataObject) -> None:
    parse, valid = data.draw(st.sampled_from(VALID))
    body: Any = copy.deepcopy(valid)
    parent, key = data.draw(st.sampled_from(list(places(body))))
    parent[key] = data.draw(JSON)
    answered(parse, body)


def answered(parse: Callable[[Any], object], body: object) -> None:
    try:
        parse(body)
    except RequestError as error:
        assert error.status == 400
        json.dumps(error_body(error))


def places(value: Any) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


@settings(max_examples=examples(60))
@given(st.data())
def test_one_damaged_place_over_http_is_never_our_fault(server: Live, data: st.DataObject) -> None:
    path, valid = data.draw(st.sampled_from(OVER_HTTP))
    body: Any = copy.deepcopy({**valid, "model": "stub"})
    parent, key = data.draw(st.sampled_from(list(places(body))))
    parent[key] = data.draw(JSON)
    answer = server.post(path, body)
    assert answer.status_code < 500, answer.text
