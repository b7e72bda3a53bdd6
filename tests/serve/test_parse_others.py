"""Every field of legacy completions, embeddings and responses is honoured, or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from openai.resources.completions import Completions
from openai.resources.embeddings import Embeddings
from openai.resources.responses import Responses

from brise.errors import RequestError
from brise.serve.embeddings import EmbeddingRequest, parse_embedding
from brise.serve.openai_completions import CompletionRequest, parse_completion
from brise.serve.openai_responses import ResponseRequest, parse_response
from brise.text.inputs import Grammar

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CLIENT_ONLY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def completion(**fields: object) -> CompletionRequest:
    return parse_completion({"model": "m", "prompt": "a", **fields})  # type: ignore[dict-item]


def embedding(**fields: object) -> EmbeddingRequest:
    return parse_embedding({"model": "m", "input": "a", **fields})  # type: ignore[dict-item]


def response(**fields: object) -> ResponseRequest:
    return parse_response({"model": "m", "input": "a", **fields})  # type: ignore[dict-item]


def param(parse: Callable[..., object], **fields: object) -> str | None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return caught.value.param


def test_prompts_come_in_four_shapes() -> None:
    assert completion(prompt="a").prompts == ("a",)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt=[1, 2]).prompts == ((1, 2),)
    assert completion(prompt=[[1], [2]]).prompts == ((1,), (2,))


@pytest.mark.parametrize(("prompt", "place"), [
    (None, "prompt"), ([], "prompt"), ([1, "a"], "prompt"), ([1, -1], "prompt"), ([True], "prompt"),
    (5, "prompt"), ({}, "prompt"), ([[1], "a", 5], "prompt[2]"), ([1.5], "prompt[0]"),
    ([["a"]], "prompt[0]")])
def test_other_prompts_are_refused(prompt: object, place: str) -> None:
    assert param(completion, prompt=prompt) == place


def test_completion_defaults_and_limits() -> None:
    assert (completion().max_tokens, completion().echo, completion().logprobs) == (16, False, None)
    assert completion(max_tokens=0, echo=True, logprobs=0).max_tokens == 0
    assert param(completion, max_tokens=0) == "max_tokens"
    assert param(completion, prompt=["a"] * 65, n=2) == "prompt"


def test_completion_refusals() -> None:
    assert completion(best_of=2, n=2, suffix="").options.n == 2
    assert param(completion, best_of=2) == "best_of"
    assert param(completion, suffix="x", echo=True) == "echo" and param(completion, suffix=5) == "suffix"
    assert param(completion, logprobs=True) == "logprobs"
    assert param(completion, messages=[]) == "messages"


def test_embedding_fields() -> None:
    assert embedding(encoding_format="base64", dimensions=5).encoding == "base64"
    assert param(embedding, encoding_format="int8") == "encoding_format"
    assert param(embedding, input=[]) == "input"
    assert param(embedding, truncate=True) == "truncate"


def test_response_input_is_a_chat() -> None:
    request = response(instructions="be", input=[
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "b", "annotations": []}]}])
    assert [(m.role, m.content) for m in request.chat.messages] == [("system", "be"), ("user", "a"),
                                                                     ("assistant", "b")]


def test_response_format() -> None:
    text = {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": {"type": "object"}}}
    assert response(text=text).chat.grammar == Grammar("json_schema", '{"type": "object"}', strict=True)


@pytest.mark.parametrize(("field", "value"), [
    ("previous_response_id", "r"), ("background", True), ("tool_choice", "required"), ("truncation", "start"),
    ("conversation", "c"), ("prompt", {"id": "p"}), ("include", "x"), ("input", []), ("input", 5),
    ("instructions", 5), ("foo", 1)])
def test_response_refusals(field: str, value: object) -> None:
    assert param(response, **{field: value}) == field


@pytest.mark.parametrize(("place", "fields"), [
    ("tools[0].type", {"tools": [{"type": "web_search"}]}), ("reasoning.effort", {"reasoning": {"effort": "huge"}}),
    ("tools[0].name", {"tools": [{"type": "function", "name": "a b"}]}), ("tools", {"tools": [FUNCTION, FUNCTION]}),
    ("tool_choice.name", {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}}),
    ("input[0].type", {"input": [{"type": "web_search_call", "id": "ws_1"}]}),
    ("input[0].call_id", {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]})])
def test_response_refusals_name_the_place(place: str, fields: dict[str, object]) -> None:
    assert param(response, **fields) == place


@pytest.mark.parametrize("fields", [
    {"store": True}, {"include": ["reasoning.encrypted_content"]}, {"truncation": "auto"}, {"max_tool_calls": 3},
    {"reasoning": {"summary": "auto"}}, {"reasoning": {"effort": None}}, {"service_tier": "flex"},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h"}, {"parallel_tool_calls": False}, {"tools": []},
    {"tool_choice": "auto"}, {"background": False}])
def test_response_fields_that_change_no_answer_are_accepted(fields: dict[str, object]) -> None:
    assert response(**fields).chat == response(parallel_tool_calls=fields.get("parallel_tool_calls")).chat


def test_items_of_one_answer_become_one_message() -> None:
    request = response(input=[
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "think"}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "b", "annotations": [{"type": "x"}], "parsed": None, "logprobs": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"x\": 1}", "parsed_arguments": {}},
        {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{\"y"},
        {"type": "function_call_output", "call_id": "d", "output": "2"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"}])
    _, answer, first, second, last = request.chat.messages
    assert (answer.reasoning, answer.content) == ("think", "b")
    assert [(call.name, call.arguments) for call in answer.calls] == [("f", {"x": 1}), ("g", "{\"y")]
    assert [(result.call_id, result.content) for result in (first, second)] == [("d", "2"), ("c", "1")]
    assert (last.role, last.content) == ("assistant", "")


def test_an_image_in_a_result_follows_it_as_the_users() -> None:
    request = response(input=[
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}])
    assert [message.role for message in request.chat.messages] == ["assistant", "tool", "user"]


@pytest.mark.parametrize(("create", "parse"), [
    (Completions.create, completion), (Embeddings.create, embedding), (Responses.create, response)])
def test_every_field_of_the_official_client_is_known(create: Callable[..., object],
                                                     parse: Callable[..., object]) -> None:
    for name in inspect.signature(create).parameters.keys() - CLIENT_ONLY:
        try:
            parse(**{name: {"?": "?"}})
        except RequestError as error:
            assert error.code != "unknown_parameter" or error.param != name, name
